package p11

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"
)

// The race detector sees a reader whom a writer does not exclude, and so does
// the count, on any shard.
func TestShardedRWMutex(t *testing.T) {
	var m shardedRWMutex
	var a, b int // equal whenever no writer has the lock
	var wg sync.WaitGroup
	for h := range SessionHandle(2 * lockShards) {
		wg.Go(func() {
			for range 200 {
				l := m.of(h)
				l.RLock()
				if a != b {
					t.Errorf("session %d reads %d and %d", h, a, b)
				}
				l.RUnlock()
			}
		})
	}
	const writers = 4
	for range writers {
		wg.Go(func() {
			for range 100 {
				m.Lock()
				a++
				runtime.Gosched()
				b++
				m.Unlock()
			}
		})
	}
	wg.Wait()
	if a != writers*100 || b != a {
		t.Errorf("%d and %d writes of %d", a, b, writers*100)
	}
}

// A writer waits for the readers of every shard, and readers of different
// shards for nobody.
func TestShardedRWMutexWaits(t *testing.T) {
	for h := range SessionHandle(lockShards) {
		var m shardedRWMutex
		m.of(h).RLock()
		for other := range SessionHandle(lockShards) {
			if l := m.of(other); l.TryRLock() {
				l.RUnlock()
			} else {
				t.Errorf("a reader of shard %d keeps one of %d out", h, other)
			}
		}
		var written atomic.Bool
		done := make(chan struct{})
		go func() {
			m.Lock()
			written.Store(true)
			m.Unlock()
			close(done)
		}()
		time.Sleep(time.Millisecond)
		if written.Load() {
			t.Errorf("a writer does not wait for a reader of shard %d", h)
		}
		m.of(h).RUnlock()
		<-done
	}
}

// What sessions write with every call lies shardSpace apart.
func TestShardSpace(t *testing.T) {
	var m shardedRWMutex
	for i := range m.shards {
		if at := uintptr(unsafe.Pointer(m.of(SessionHandle(i)))) - uintptr(unsafe.Pointer(&m)); at != uintptr(i)*shardSpace {
			t.Errorf("shard %d at %d", i, at)
		}
	}
}
