package p11

import (
	"bytes"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/internal/x25519"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// pairSecretSize is the size of a private key: the seed of an Ed25519 key, the
// scalar of an X25519 key. Those of ECDSA stay in the device.
const pairSecretSize = 32

// liveKey is an unlocked private or secret key. Whoever uses it holds mu for
// reading, so that wiping waits for what is under way.
type liveKey struct {
	mu   shardedRWMutex
	key  *eddsa.Key     // an Ed25519 key
	raw  *secmem.Buffer // any other; both are nil once wiped
	idle *time.Timer
	used atomic.Int64 // the uptime of its last use, as far as usedEvery tells
	seen atomic.Int64 // the uptime when its object was seen on disk
}

// usedEvery is how often it is noted that a key is used, so that threads which
// sign with one key do not write to the same word with each signature. A key
// stays unlocked for at most that much less than it may.
const usedEvery = 10 * time.Millisecond

// uptime is the time since the module was loaded, in nanoseconds: no change of
// the clock moves it.
func uptime() int64 { return int64(time.Since(loaded)) }

var loaded = time.Now()

func newLiveKey(keyType uint, secret []byte) (*liveKey, error) {
	return newLiveKeyLike(nil, keyType, secret)
}

// newLiveKeyLike is newLiveKey for what is likely to be a known Ed25519 key.
func newLiveKeyLike(known *eddsa.Known, keyType uint, secret []byte) (*liveKey, error) {
	if keyType == CKK_EC_EDWARDS {
		k, err := known.NewKey(secret)
		return &liveKey{key: k}, err
	}
	raw, err := secmem.New(len(secret))
	if err != nil {
		return nil, err
	}
	secmem.Copy(raw.Bytes(), secret)
	return &liveKey{raw: raw}, nil
}

// public computes the public key of a private one. mu is held, or nobody else
// has the key yet.
func (k *liveKey) public(keyType uint) [32]byte {
	if keyType == CKK_EC_EDWARDS {
		return k.key.Public()
	}
	return x25519.Public(k.raw.Bytes())
}

// secret copies the seed, scalar or key to dst, which is secret memory.
func (k *liveKey) secret(dst []byte) (n int, err error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	switch {
	case k.key != nil:
		k.key.Seed(dst)
		return pairSecretSize, nil
	case k.raw != nil:
		return secmem.Copy(dst, k.raw.Bytes()), nil
	}
	return 0, CKR_KEY_HANDLE_INVALID
}

// with runs f on the key of any type but Ed25519, in secret memory.
func (k *liveKey) with(sess *session, f func(key []byte) error) error {
	mu := k.mu.of(sess.handle)
	mu.RLock()
	defer mu.RUnlock()
	if k.raw == nil {
		return errWiped
	}
	return f(k.raw.Bytes())
}

// errWiped: the key was wiped between being found and being used.
var errWiped = errors.New("the key was wiped")

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
	k.raw.Destroy()
	k.raw = nil
}

// keyring holds a token's keys that stay unlocked for a while after use.
type keyring struct {
	mu   shardedRWMutex
	keys map[sealstore.ID]*liveKey
	lent map[*liveKey]*session // to operations in parts
	// known are the Ed25519 keys that were unlocked since the login.
	known  map[sealstore.ID]*eddsa.Known
	logins int // counts the wipes, so that a key unsealed before one is not kept after it
	// tell is told of keys that stay unlocked, and of their end. r.mu is not held.
	tell func(id sealstore.ID, unlocked bool)
}

func (r *keyring) epoch() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
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
	now := uptime()
	k.used.Store(now)
	k.seen.Store(now)
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
	if left := idle - time.Duration(uptime()-k.used.Load()); left > 0 {
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

// get finds an unlocked key and counts it as used now. look asks the caller, of
// several at a time one, to find out whether its object is still there.
func (r *keyring) get(sess *session, id sealstore.ID) (k *liveKey, look bool) {
	mu := r.mu.of(sess.handle)
	mu.RLock()
	defer mu.RUnlock()
	if k = r.keys[id]; k == nil {
		return nil, false
	}
	now := uptime()
	if now-k.used.Load() > int64(usedEvery) {
		k.used.Store(now)
	}
	seen := k.seen.Load()
	return k, now-seen > int64(lookAgain) && k.seen.CompareAndSwap(seen, now)
}

func (r *keyring) forget(id sealstore.ID) {
	r.mu.Lock()
	k := r.keys[id]
	delete(r.keys, id)
	delete(r.known, id)
	r.mu.Unlock()
	if k != nil {
		k.destroy()
		r.tell(id, false)
	}
}

func (r *keyring) wipe() {
	r.mu.Lock()
	keys, lent := r.keys, r.lent
	r.keys, r.lent, r.known = nil, nil, nil
	r.logins++
	r.mu.Unlock()
	for id, k := range keys {
		k.destroy()
		r.tell(id, false)
	}
	for k := range lent {
		k.destroy()
	}
}

// knownKey finds what is known of an Ed25519 key; nil: nothing.
func (r *keyring) knownKey(id sealstore.ID) *eddsa.Known {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.known[id]
}

// know remembers that an Ed25519 key is the one of the object, unless the user
// has logged out since epoch.
func (r *keyring) know(id sealstore.ID, n *eddsa.Known, epoch int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.logins != epoch {
		return
	}
	if r.known == nil {
		r.known = map[sealstore.ID]*eddsa.Known{}
	}
	r.known[id] = n
}

// lend remembers a key that an operation of a session holds, unless the user
// has logged out since epoch: then it is wiped.
func (r *keyring) lend(k *liveKey, sess *session, epoch int) bool {
	r.mu.Lock()
	ok := r.logins == epoch
	if ok {
		if r.lent == nil {
			r.lent = map[*liveKey]*session{}
		}
		r.lent[k] = sess
	}
	r.mu.Unlock()
	if !ok {
		k.destroy()
	}
	return ok
}

// giveBack wipes a key that was lent.
func (r *keyring) giveBack(k *liveKey) {
	r.mu.Lock()
	delete(r.lent, k)
	r.mu.Unlock()
	k.destroy()
}

// endSession wipes the keys that were lent to a session.
func (r *keyring) endSession(sess *session) {
	mu := r.mu.of(sess.handle)
	mu.RLock()
	none := len(r.lent) == 0
	mu.RUnlock()
	if none {
		return
	}
	r.mu.Lock()
	var ended []*liveKey
	for k, s := range r.lent {
		if s == sess {
			delete(r.lent, k)
			ended = append(ended, k)
		}
	}
	r.mu.Unlock()
	for _, k := range ended {
		k.destroy()
	}
}

// secretOf brings the seed, scalar or key of an object into dst, which is
// secret memory.
func (l *library) secretOf(s *slot, o *object, dst []byte) (int, error) {
	if o.live != nil {
		return o.live.secret(dst)
	}
	n, err := s.token.Unseal(o.id, dst)
	if err == nil && n != o.secretSize() {
		err = fmt.Errorf("%w: the seal holds %d bytes instead of a key of %d", sealstore.ErrIntegrity, n, o.secretSize())
	}
	if errors.Is(err, sealstore.ErrNotFound) {
		return 0, &coded{CKR_KEY_HANDLE_INVALID, err}
	}
	return n, l.fail("unsealing a key", s.serial, err)
}

// secretSize is that of the object's seed, scalar or key, in bytes.
func (o *object) secretSize() int {
	if o.body.ulong(CKA_CLASS) == CKO_SECRET_KEY {
		return int(o.body.ulong(CKA_VALUE_LEN))
	}
	return pairSecretSize
}

// unlock unseals a token's key. What follows from it must be what the object
// says: a wrong session setup gives garbage, not an error. epoch is that of the
// keyring, from before.
func (l *library) unlock(s *slot, o *object, epoch int) (*liveKey, error) {
	const op = "unsealing a key"
	buf, err := secmem.New(maxSecretKey)
	if err != nil {
		return nil, l.fail(op, s.serial, err)
	}
	defer buf.Destroy()
	n, err := l.secretOf(s, o, buf.Bytes())
	if err != nil {
		return nil, err
	}
	keyType := o.body.ulong(CKA_KEY_TYPE)
	known := s.keys.knownKey(o.id)
	k, err := newLiveKeyLike(known, keyType, buf.Bytes()[:n])
	if err != nil {
		return nil, l.fail(op, s.serial, err)
	}
	right := false
	if o.body.ulong(CKA_CLASS) == CKO_SECRET_KEY {
		// A key without a check value has none to compare.
		check := o.body.bytes(CKA_CHECK_VALUE)
		right = len(check) == 0 || bytes.Equal(checkValue(keyType, buf.Bytes()[:n]), check)
	} else {
		pub := k.public(keyType)
		right = bytes.Equal(pub[:], o.body.bytes(CKA_EC_POINT))
	}
	if !right {
		k.destroy()
		return nil, l.fail(op, s.serial, fmt.Errorf("%w: what was unsealed is not this key", sealstore.ErrIntegrity))
	}
	if k.key != nil && known == nil {
		s.keys.know(o.id, k.key.Known(), epoch)
	}
	return k, nil
}

// found finds a key that is unlocked: that of a session object, or one that
// stays unlocked for a while. nil: there is none.
func (sess *session) found(o *object) *liveKey {
	if o.live != nil {
		return o.live
	}
	s := sess.slot
	k, look := s.keys.get(sess, o.id)
	if look && !s.token.Has(o.id) {
		s.keys.forget(o.id)
		return nil
	}
	return k
}

// withKey runs f on a secret key or X25519 scalar, in secret memory, and wipes
// it afterwards unless the configuration lets it stay unlocked.
func (l *library) withKey(sess *session, o *object, f func(key []byte) error) error {
	s := sess.slot
	if k := sess.found(o); k != nil {
		err := k.with(sess, f)
		if err != errWiped {
			return err
		}
		if o.live != nil {
			return CKR_KEY_HANDLE_INVALID
		}
	}
	epoch := s.keys.epoch()
	k, err := l.unlock(s, o, epoch)
	if err != nil {
		return err
	}
	err = k.with(sess, f)
	s.keys.keep(o.id, k, s.cfg.AutoLockTimeout, epoch)
	return err
}

// signWith makes a signature with the private key of o and wipes the key
// afterwards, unless the configuration lets it stay unlocked.
func (l *library) signWith(sess *session, o *object, sig []byte, p eddsa.Params, msg []byte) error {
	s := sess.slot
	k := sess.found(o)
	if k != nil {
		mu := k.mu.of(sess.handle)
		mu.RLock()
		if k.key != nil {
			err := k.key.Sign(sig, p, msg)
			mu.RUnlock()
			return l.fail("signing", s.serial, err)
		}
		// It was wiped between being found and being used.
		mu.RUnlock()
		if o.live != nil {
			return CKR_KEY_HANDLE_INVALID
		}
	}
	epoch := s.keys.epoch()
	k, err := l.unlock(s, o, epoch)
	if err != nil {
		return err
	}
	err = k.key.Sign(sig, p, msg)
	s.keys.keep(o.id, k, s.cfg.AutoLockTimeout, epoch)
	return l.fail("signing", s.serial, err)
}
