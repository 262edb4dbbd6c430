package p11

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// Of the threads that use a key at one time, one is asked to look whether it is
// still there, and a key is wiped when it was not used for as long as it may stay.
func TestKeyInUse(t *testing.T) {
	told := 0
	r := keyring{tell: func(sealstore.ID, bool) { told++ }}
	k, err := newLiveKey(CKK_EC_EDWARDS, make([]byte, pairSecretSize))
	must(t, err)
	id := sealstore.ID{1}
	r.keep(id, k, time.Hour, r.epoch())
	if got, look := r.get(&session{handle: 1}, id); got != k || look {
		t.Fatalf("%p, %v of a key that was just unlocked", got, look)
	}

	past := uptime() - int64(time.Hour)
	k.used.Store(past)
	k.seen.Store(past)
	var wg sync.WaitGroup
	var looks atomic.Int32
	for h := range SessionHandle(2 * lockShards) {
		wg.Go(func() {
			got, look := r.get(&session{handle: h}, id)
			if got != k {
				t.Errorf("session %d does not find the key", h)
			}
			if look {
				looks.Add(1)
			}
		})
	}
	wg.Wait()
	if looks.Load() != 1 {
		t.Errorf("%d were asked to look", looks.Load())
	}

	r.expire(id, k, time.Minute)
	if got, _ := r.get(&session{}, id); got != k {
		t.Fatal("a key in use was locked")
	}
	k.used.Store(past)
	r.expire(id, k, time.Minute)
	if got, _ := r.get(&session{}, id); got != nil || k.key != nil || told != 2 {
		t.Errorf("a key that was not used: found %p, key %p, told of it %d times", got, k.key, told)
	}
}
