package p11

import (
	"sync"
	"unsafe"
)

// lockShards is how many sessions can read without a cache line in common.
const lockShards = 8

// shardSpace is what keeps two shards apart: the 64 bytes of a cache line, and
// as many again, since processors fetch lines in pairs.
const shardSpace = 128

// shardedRWMutex is a reader/writer lock for what every call reads and few
// write. To hold a sync.RWMutex for reading writes to it, so threads that only
// read still take its cache line from each other, which costs them more than
// what they read. Here the readers of a session write to a shard of their own,
// as far as there are shards; a writer, who takes them all, pays for it.
//
// As with sync.RWMutex, a reader must not take the lock again.
type shardedRWMutex struct {
	shards [lockShards]struct {
		sync.RWMutex
		_ [shardSpace - unsafe.Sizeof(sync.RWMutex{})]byte
	}
}

// of gives what a reader of a session locks, for reading only.
func (m *shardedRWMutex) of(h SessionHandle) *sync.RWMutex {
	return &m.shards[h%lockShards].RWMutex
}

// RLock and RUnlock are for readers who have no session.
func (m *shardedRWMutex) RLock()   { m.of(noSession).RLock() }
func (m *shardedRWMutex) RUnlock() { m.of(noSession).RUnlock() }

// Lock takes the shards in order, so that two writers never wait for each other.
func (m *shardedRWMutex) Lock() {
	for i := range m.shards {
		m.shards[i].Lock()
	}
}

func (m *shardedRWMutex) Unlock() {
	for i := range m.shards {
		m.shards[i].Unlock()
	}
}
