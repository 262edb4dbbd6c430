package p11

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

const seedSize = eddsa.SeedSize

// liveKey is an unlocked private key. Signing holds mu for reading, so that
// wiping waits for signatures that are under way.
type liveKey struct {
	mu   sync.RWMutex
	key  *eddsa.Key // nil once wiped
	idle *time.Timer
	used time.Time // guarded by keyring.mu, as is
	seen time.Time // when the object was seen on disk
}

func newLiveKey(seed []byte) (*liveKey, error) {
	k, err := eddsa.NewKey(seed)
	if err != nil {
		return nil, err
	}
	return &liveKey{key: k}, nil
}

// destroy wipes the key; a nil liveKey has nothing to wipe.
func (k *liveKey) destroy() {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.idle != nil {
		k.idle.Stop()
	}
	if k.key != nil {
		k.key.Destroy()
		k.key = nil
	}
}

// keyring holds a token's keys that stay unlocked for a while after use.
type keyring struct {
	mu     sync.Mutex
	keys   map[sealstore.ID]*liveKey
	logins int // counts the wipes, so that a key unsealed before one is not kept after it
	// tell is told of keys that stay unlocked, and of their end. r.mu is not held.
	tell func(id sealstore.ID, unlocked bool)
}

func (r *keyring) epoch() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.logins
}

// keep remembers an unlocked key for at most idle after its last use, and
// wipes it at once when it may not stay: the user has logged out since epoch,
// or another thread has unlocked the same key meanwhile.
func (r *keyring) keep(id sealstore.ID, k *liveKey, idle time.Duration, epoch int) {
	r.mu.Lock()
	if idle <= 0 || r.logins != epoch || r.keys[id] != nil {
		r.mu.Unlock()
		k.destroy()
		return
	}
	if r.keys == nil {
		r.keys = map[sealstore.ID]*liveKey{}
	}
	k.used = time.Now()
	k.seen = k.used
	r.keys[id] = k
	k.idle = time.AfterFunc(idle, func() { r.expire(id, k, idle) })
	r.mu.Unlock()
	r.tell(id, true)
}

// expire wipes a key that was not used for as long as it may stay.
func (r *keyring) expire(id sealstore.ID, k *liveKey, idle time.Duration) {
	r.mu.Lock()
	if r.keys[id] != k {
		r.mu.Unlock()
		return
	}
	if left := idle - time.Since(k.used); left > 0 {
		k.idle.Reset(left)
		r.mu.Unlock()
		return
	}
	delete(r.keys, id)
	r.mu.Unlock()
	k.destroy()
	r.tell(id, false)
}

// lookAgain is how long a key may be used without a look at whether another
// process has removed it, or made the token anew.
const lookAgain = time.Second

// get finds an unlocked key and counts it as used now. look asks the caller to
// find out whether its object is still there.
func (r *keyring) get(id sealstore.ID) (k *liveKey, look bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k = r.keys[id]; k != nil {
		k.used = time.Now()
		if look = k.used.Sub(k.seen) > lookAgain; look {
			k.seen = k.used
		}
	}
	return k, look
}

func (r *keyring) forget(id sealstore.ID) {
	r.mu.Lock()
	k := r.keys[id]
	delete(r.keys, id)
	r.mu.Unlock()
	if k != nil {
		k.destroy()
		r.tell(id, false)
	}
}

func (r *keyring) wipe() {
	r.mu.Lock()
	keys := r.keys
	r.keys = nil
	r.logins++
	r.mu.Unlock()
	for id, k := range keys {
		k.destroy()
		r.tell(id, false)
	}
}

// importSeed copies a seed from the caller's memory into secret memory and
// expands it.
func importSeed(seed []byte) (*secmem.Buffer, *eddsa.Key, error) {
	buf, err := secmem.New(seedSize)
	if err != nil {
		return nil, nil, err
	}
	copy(buf.Bytes(), seed)
	k, err := eddsa.NewKey(buf.Bytes())
	if err != nil {
		buf.Destroy()
		return nil, nil, err
	}
	return buf, k, nil
}

// seedOf brings the seed of a private key into dst, which is secret memory.
func (l *library) seedOf(s *slot, o *object, dst []byte) error {
	if o.live != nil {
		o.live.mu.RLock()
		defer o.live.mu.RUnlock()
		if o.live.key == nil {
			return CKR_KEY_HANDLE_INVALID
		}
		o.live.key.Seed(dst)
		return nil
	}
	n, err := s.token.Unseal(o.id, dst)
	if err == nil && n != seedSize {
		err = fmt.Errorf("%w: the seal holds %d bytes instead of a seed", sealstore.ErrIntegrity, n)
	}
	if errors.Is(err, sealstore.ErrNotFound) {
		return &coded{CKR_KEY_HANDLE_INVALID, err}
	}
	return l.fail("unsealing a private key", s.serial, err)
}

// unlock unseals a token's private key. The public key that follows from the
// seed must be the object's own: a wrong session setup gives garbage, not an
// error.
func (l *library) unlock(s *slot, o *object) (*liveKey, error) {
	buf, err := secmem.New(seedSize)
	if err != nil {
		return nil, l.fail("unsealing a private key", s.serial, err)
	}
	defer buf.Destroy()
	if err := l.seedOf(s, o, buf.Bytes()); err != nil {
		return nil, err
	}
	k, err := newLiveKey(buf.Bytes())
	if err != nil {
		return nil, l.fail("unsealing a private key", s.serial, err)
	}
	if pub := k.key.Public(); !bytes.Equal(pub[:], o.attrs[CKA_EC_POINT]) {
		k.destroy()
		return nil, l.fail("unsealing a private key", s.serial,
			fmt.Errorf("%w: what was unsealed is not the seed of this key", sealstore.ErrIntegrity))
	}
	return k, nil
}

// signWith makes a signature with the private key of o and wipes the key
// afterwards, unless the configuration lets it stay unlocked.
func (l *library) signWith(s *slot, o *object, sig []byte, p eddsa.Params, msg []byte) error {
	k := o.live
	if k == nil {
		var look bool
		if k, look = s.keys.get(o.id); look && !s.token.Has(o.id) {
			s.keys.forget(o.id)
			k = nil
		}
	}
	if k != nil {
		k.mu.RLock()
		if k.key != nil {
			err := k.key.Sign(sig, p, msg)
			k.mu.RUnlock()
			return l.fail("signing", s.serial, err)
		}
		// It was wiped between being found and being used.
		k.mu.RUnlock()
		if o.live != nil {
			return CKR_KEY_HANDLE_INVALID
		}
	}
	epoch := s.keys.epoch()
	k, err := l.unlock(s, o)
	if err != nil {
		return err
	}
	err = k.key.Sign(sig, p, msg)
	s.keys.keep(o.id, k, s.cfg.AutoLockTimeout, epoch)
	return l.fail("signing", s.serial, err)
}
