package tpm

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// RootState is what is known of the storage root key and its handle.
type RootState struct {
	// OwnerPassword: the owner hierarchy has a password, without which no
	// storage root key can be created.
	OwnerPassword bool
	// Derived is the Name of the key that this TPM creates from the template;
	// nil where the owner's password is needed for that.
	Derived []byte
	// Name is that of the object at key_handle; nil: there is none.
	Name []byte
	// Template: the object is a storage root key, though not necessarily
	// Derived.
	Template bool
	// Password: the object has a password, so that it is of no use here.
	Password bool
}

// Ours: the object at key_handle is the key that this TPM creates.
func (s *RootState) Ours() bool { return s.Name != nil && bytes.Equal(s.Name, s.Derived) }

// RootKey looks at the storage root key. owner is the owner hierarchy's
// password; without it, Derived may stay unknown.
func (t *TPM) RootKey(owner []byte) (s RootState, err error) {
	err = t.do("looking at the storage root key", func() (err error) {
		s, err = t.rootState(owner)
		return err
	})
	return s, err
}

func (t *TPM) rootState(owner []byte) (s RootState, err error) {
	props, err := t.properties(tpm2.TPMPTPermanent, 1)
	if err != nil {
		return s, err
	}
	s.OwnerPassword = props[tpm2.TPMPTPermanent]&permanentOwnerAuth != 0
	if err := checkPassword("owner password", s.OwnerPassword, owner); err != nil {
		return s, err
	}
	if !s.OwnerPassword || len(owner) > 0 {
		k, err := t.derive(owner)
		if err != nil {
			return s, err
		}
		t.flush(k.handle)
		s.Derived = k.name.Buffer
	}
	k, err := t.readRoot()
	if err != nil || k == nil {
		return s, err
	}
	s.Name, s.Template = k.name.Buffer, isRootTemplate(&k.public)
	if s.Template {
		s.Password, err = t.hasPassword(k)
	}
	return s, err
}

// hasPassword tries whether a key opens without one, by sealing nothing of
// value under it. A storage root key counts no wrong tries.
func (t *TPM) hasPassword(k *rootKey) (bool, error) {
	_, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: k.handle, Name: k.name, Auth: tpm2.PasswordAuth(nil)},
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: []byte{0}}),
		}},
		InPublic: tpm2.New2B(sealTemplate(sealstore.SealOptions{})),
	}.Execute(t.link)
	if isWrongAuth(err) {
		return true, nil
	}
	return false, err
}

// derive creates the storage root key. The caller flushes it.
func (t *TPM) derive(owner []byte) (k *rootKey, err error) {
	err = t.withPassword(owner, func(s tpm2.Session) (err error) {
		k, err = t.createRoot(tpm2.TPMRHOwner, s)
		return err
	})
	if isWrongAuth(err) {
		return nil, ownerError(owner)
	}
	if err != nil {
		return nil, fmt.Errorf("creating the storage root key: %w", err)
	}
	return k, nil
}

// ownerError says what a TPM means that refuses the owner hierarchy's password.
func ownerError(owner []byte) error {
	if len(owner) > 0 {
		return verdict{errors.New("wrong owner password")}
	}
	return advice.With(fmt.Errorf("creating the storage root key: %w", sealstore.ErrOwner),
		`run "icn-p11 srk persist --owner-auth-source SRC", so that none has to be created`)
}

var errNoOwner = fmt.Errorf("%w, which was not given", sealstore.ErrOwner)

// Persist makes the storage root key persistent at key_handle, and gives its
// Name. done is false if it is there already.
func (t *TPM) Persist(owner []byte) (name []byte, done bool, err error) {
	err = t.do("making the storage root key persistent", func() error {
		s, err := t.rootState(owner)
		if err != nil {
			return err
		}
		if s.Derived == nil {
			return errNoOwner
		}
		name = s.Derived
		if err := t.Foreign(&s); err != nil || s.Ours() {
			return err
		}
		k, err := t.derive(owner)
		if err != nil {
			return err
		}
		defer t.flush(k.handle)
		if err := t.evictControl(owner, k); err != nil {
			return err
		}
		t.release()
		t.persistent = nil // look again
		done = true
		return nil
	})
	return name, done, err
}

// Evict removes the storage root key from key_handle. done is false if nothing
// is there.
func (t *TPM) Evict(owner []byte) (done bool, err error) {
	err = t.do("evicting the storage root key", func() error {
		s, err := t.rootState(owner)
		if err != nil || s.Name == nil {
			return err
		}
		if s.Derived == nil {
			return errNoOwner
		}
		// One with a password is still the same key, and can go.
		s.Password = false
		if err := t.Foreign(&s); err != nil {
			return err
		}
		t.release()
		t.persistent = nil
		done = true
		return t.evictControl(owner, &rootKey{handle: t.keyHandle(), name: tpm2.TPM2BName{Buffer: s.Name}})
	})
	return done, err
}

// Foreign refuses an object at key_handle that this module has not put there, as
// far as s shows it.
func (t *TPM) Foreign(s *RootState) error {
	const cure = "set key_handle to a free handle; it is not touched"
	switch {
	case s.Name == nil:
		return nil
	case !s.Template:
		return advice.With(fmt.Errorf("the object at 0x%08x, Name %x, is no storage root key of the template that is used here", t.cfg.KeyHandle, s.Name), cure)
	case s.Derived != nil && !s.Ours():
		return advice.With(fmt.Errorf("the key at 0x%08x, Name %x, is not the one that this TPM creates, Name %x", t.cfg.KeyHandle, s.Name, s.Derived), cure)
	case s.Password:
		return advice.With(fmt.Errorf("the key at 0x%08x has a password", t.cfg.KeyHandle), `remove it with "icn-p11 srk evict", then persist it anew`)
	}
	return nil
}

// evictControl makes a transient key persistent at key_handle, or removes the
// one that is there.
func (t *TPM) evictControl(owner []byte, k *rootKey) error {
	err := t.withPassword(owner, func(s tpm2.Session) error {
		_, err := tpm2.EvictControl{
			Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: s},
			ObjectHandle:     tpm2.NamedHandle{Handle: k.handle, Name: k.name},
			PersistentHandle: t.keyHandle(),
		}.Execute(t.link)
		return err
	})
	switch {
	case isWrongAuth(err):
		return ownerError(owner)
	case errors.Is(err, tpm2.TPMRCNVSpace):
		return advice.With(err, "evict another object (tpm2_getcap handles-persistent)")
	case errors.Is(err, tpm2.TPMRCRange), errors.Is(err, tpm2.TPMRCHierarchy):
		return advice.With(fmt.Errorf("the owner may not use 0x%08x: %w", t.cfg.KeyHandle, err), "set key_handle to one between 0x81000000 and 0x817FFFFF")
	}
	return err
}

// errRootPassword: the persistent key cannot be used as a parent.
var errRootPassword = errors.New("the key at key_handle has a password")

// rootError finds out what the failure of a command whose only authorisation
// is the SRK's says about the persistent key.
func (t *TPM) rootError(srk *rootKey, err error) error {
	if err == nil || srk.transient {
		return err
	}
	// Another process may have put another key there: it answers with another
	// Name, refuses the session that was salted to this one, and does not load
	// its children.
	var fmt1 tpm2.TPMFmt1Error
	if now, e := t.readRoot(); errors.As(err, &fmt1) && e == nil && (now == nil || !bytes.Equal(now.name.Buffer, srk.name.Buffer)) {
		return tpm2.TPMRCHandle
	}
	if isWrongAuth(err) {
		return errRootPassword
	}
	return err
}

func (t *TPM) keyHandle() tpm2.TPMHandle { return tpm2.TPMHandle(t.cfg.KeyHandle) }

// permanentOwnerAuth is ownerAuthSet in TPMA_PERMANENT (Part 2, 8.6).
const permanentOwnerAuth = 1 << 0

// Bits of the same: lockoutAuthSet and inLockout.
const (
	permanentLockoutAuth = 1 << 2
	permanentInLockout   = 1 << 9
)

// isWrongAuth recognises the refusal of a password.
func isWrongAuth(err error) bool {
	return errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail)
}
