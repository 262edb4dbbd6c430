package sealstore

import (
	"errors"
	"fmt"
)

// DeviceKey is a key that the device has made, for one token, and not stored
// yet: see Token.NewKey.
type DeviceKey struct {
	Public []byte // the point as X9.62 has it, uncompressed

	private bool
	seal    Blob
	in      instance
}

// NewKey has the device make a key for the token on a curve, "P-256" or
// "P-384". It is not stored: CreateKey does that, or Sign uses it as it is. A
// private key needs the user's login, now and whenever it signs.
func (t *Token) NewKey(private bool, curve string) (*DeviceKey, error) {
	v, k, err := t.beginWith(private)
	if err != nil {
		return nil, err
	}
	defer v.end()
	d := &DeviceKey{private: private, in: v.file.instance()}
	d.seal, d.Public, err = t.store.sealer.NewKey(v.file.Parent, curve, k.auth(), SealOptions{Binding: v.file.Binding})
	if err == nil {
		err = checkBlob(d.seal)
	}
	if err != nil {
		return nil, fmt.Errorf("token %s: making a key: %w", t.serial, err)
	}
	return d, nil
}

// beginWith is begin with the keys for a class of objects.
func (t *Token) beginWith(private bool) (*view, *keyring, error) {
	v, err := t.begin(!private)
	if err != nil {
		return nil, nil, err
	}
	k, err := v.ring(private)
	if err != nil {
		v.end()
		return nil, nil, err
	}
	return v, k, nil
}

// CreateKey stores an object with a key that NewKey made.
func (t *Token) CreateKey(body []byte, d *DeviceKey) (Object, error) {
	if err := checkObject(body, nil, nil); err != nil {
		return Object{}, err
	}
	o, err := t.create(d.private, body, func(f *tokenFile, o *objectFile, _ *keyring) error {
		if f.instance() != d.in {
			return ErrChanged
		}
		o.setSeal(d.seal)
		o.Flags |= flagDevice
		return nil
	})
	if errors.Is(err, errRebound) {
		err = fmt.Errorf("token %s: %w", t.serial, ErrChanged)
	}
	return o, err
}

// Sign signs a digest with the device's key of an object.
func (t *Token) Sign(id ID, digest []byte) ([]byte, error) {
	v, f, err := t.beginSealed(id, true, true)
	if err != nil {
		return nil, err
	}
	defer v.end()
	k, err := v.ring(f.private())
	if err != nil {
		return nil, err
	}
	sig, err := v.sign(f.Seal, k, digest)
	if err != nil {
		return nil, fmt.Errorf("object %s of token %s: signing: %w", idName(id), t.serial, err)
	}
	return sig, nil
}

// SignWith is Sign with a key that is not stored.
func (t *Token) SignWith(d *DeviceKey, digest []byte) ([]byte, error) {
	v, k, err := t.beginWith(d.private)
	if err != nil {
		return nil, err
	}
	defer v.end()
	if v.file.instance() != d.in {
		return nil, fmt.Errorf("token %s: %w", t.serial, ErrChanged)
	}
	sig, err := v.sign(d.seal, k, digest)
	if err != nil {
		return nil, fmt.Errorf("token %s: signing: %w", t.serial, err)
	}
	return sig, nil
}

func (v *view) sign(seal Blob, k *keyring, digest []byte) ([]byte, error) {
	s := v.t.store.sealer
	if seal.Binding = nil; s.Bound(seal) {
		seal.Binding = v.file.Binding
	}
	return s.Sign(v.file.Parent, seal, k.auth(), digest)
}

// Key gives the device's key of an object, for CreateKey to store once more.
func (t *Token) Key(id ID) (*DeviceKey, error) {
	v, err := t.begin(true)
	if err != nil {
		return nil, err
	}
	defer v.end()
	f, err := v.sealed(id, true)
	if err != nil {
		return nil, err
	}
	return &DeviceKey{private: f.private(), seal: f.Seal, in: v.file.instance()}, nil
}
