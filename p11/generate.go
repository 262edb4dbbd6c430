package p11

import (
	"errors"
	"fmt"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// GenerateKeyPair is C_GenerateKeyPair (section 5.18.2). The private key is
// made from the TPM's and the operating system's random numbers, and sealed
// before the function returns.
func (m *Module) GenerateKeyPair(h SessionHandle, mech Mechanism, pubTmpl, privTmpl []Attribute) (pubH, privH ObjectHandle, err error) {
	l, sess, err := m.withSession(h)
	if err != nil {
		return 0, 0, err
	}
	defer l.leave(h)
	row, err := mechanismFor(mech.Type, CKF_GENERATE_KEY_PAIR)
	if err != nil {
		return 0, 0, err
	}
	if mech.Param != nil {
		return 0, 0, CKR_MECHANISM_PARAM_INVALID
	}
	pub, err := l.parseGenerate(sess, objectType{CKO_PUBLIC_KEY, row.keyType}, pubTmpl)
	if err != nil {
		return 0, 0, err
	}
	priv, err := l.parseGenerate(sess, objectType{CKO_PRIVATE_KEY, row.keyType}, privTmpl)
	if err != nil {
		return 0, 0, err
	}
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range []attrs{pub, priv} {
		if err := l.mayCreate(sess, a); err != nil {
			return 0, 0, err
		}
	}
	c := pub.curve()
	if other := priv.curve(); other != nil && other != c {
		return 0, 0, CKR_TEMPLATE_INCONSISTENT
	}
	if err := s.guardPrivate(priv); err != nil {
		return 0, 0, err
	}
	priv.born(row)
	pub[CKA_LOCAL], pub[CKA_KEY_GEN_MECHANISM] = priv[CKA_LOCAL], priv[CKA_KEY_GEN_MECHANISM]
	if c.ecdsa != nil {
		privH, err = l.makeInDevice(h, s, c, pub, priv)
	} else {
		privH, err = l.makePrivate(h, s, c, pub, priv)
	}
	if err != nil {
		return 0, 0, err
	}
	if pubH, err = l.add(h, s, &object{}, pub, nil); err != nil {
		// Half a pair is of no use: what was made is taken back.
		return 0, 0, errors.Join(err, l.takeBack(s, privH))
	}
	return pubH, privH, nil
}

// makePrivate makes the private key of a pair, and fills in what follows from
// it on both halves. The caller holds s.mu.
func (l *library) makePrivate(h SessionHandle, s *slot, c *curve, pub, priv attrs) (ObjectHandle, error) {
	secret, err := l.randomSecret(s, pairSecretSize)
	if err != nil {
		return 0, err
	}
	defer secret.Destroy()
	live, err := newLiveKey(c.keyType, secret.Bytes())
	if err != nil {
		return 0, l.fail("making a key", s.serial, err)
	}
	point := live.public(c.keyType)
	pub.setPublic(c, point[:])
	priv.setPublic(c, point[:])
	return l.addKey(h, s, priv, live, secret.Bytes())
}

// makeInDevice is makePrivate for a key that the device makes and keeps.
func (l *library) makeInDevice(h SessionHandle, s *slot, c *curve, pub, priv attrs) (ObjectHandle, error) {
	k, err := s.token.NewKey(priv.bool(CKA_PRIVATE), c.ecdsa.Params().Name)
	if err == nil && !c.valid(k.Public) {
		err = fmt.Errorf("%w: the public key of the TPM is no point of the curve", sealstore.ErrUnavailable)
	}
	if err != nil {
		return 0, l.fail("making a key", s.serial, err)
	}
	pub.setPublic(c, k.Public)
	priv.setPublic(c, k.Public)
	return l.add(h, s, &object{made: k}, priv, nil)
}

// GenerateKey is C_GenerateKey (section 5.18.1), for secret keys.
func (m *Module) GenerateKey(h SessionHandle, mech Mechanism, tmpl []Attribute) (ObjectHandle, error) {
	l, sess, err := m.withSession(h)
	if err != nil {
		return 0, err
	}
	defer l.leave(h)
	row, err := mechanismFor(mech.Type, CKF_GENERATE)
	if err != nil {
		return 0, err
	}
	if mech.Param != nil {
		return 0, CKR_MECHANISM_PARAM_INVALID
	}
	a, err := l.parseGenerate(sess, objectType{CKO_SECRET_KEY, row.keyType}, tmpl)
	if err != nil {
		return 0, err
	}
	size, err := secretSize(a, row.keyType)
	if err != nil {
		return 0, err
	}
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := l.mayCreate(sess, a); err != nil {
		return 0, err
	}
	a.born(row)
	secret, err := l.randomSecret(s, size)
	if err != nil {
		return 0, err
	}
	defer secret.Destroy()
	return l.addSecret(h, s, a, secret.Bytes())
}

// secretSize finds the size of a secret key that is made: CKA_VALUE_LEN, or the
// only one that its type has.
func secretSize(a attrs, keyType uint) (int, error) {
	t := secretTypes[keyType]
	if _, given := a[CKA_VALUE_LEN]; !given {
		if len(t.sizes) == 1 {
			return t.sizes[0], nil
		}
		return 0, CKR_TEMPLATE_INCOMPLETE
	}
	n := a.ulong(CKA_VALUE_LEN)
	if n > maxSecretKey || !t.fits(int(n)) {
		return 0, CKR_ATTRIBUTE_VALUE_INVALID
	}
	return int(n), nil
}

// born marks a key as made in this token by a mechanism.
func (a attrs) born(row *mechanism) {
	gen := row.typ
	if row.generates != 0 {
		gen = row.generates
	}
	a[CKA_LOCAL] = yes
	a[CKA_KEY_GEN_MECHANISM] = ulong(gen)
	a[CKA_ALWAYS_SENSITIVE] = boolBytes(a.bool(CKA_SENSITIVE))
	a[CKA_NEVER_EXTRACTABLE] = boolBytes(!a.bool(CKA_EXTRACTABLE))
}

// randomSecret makes a key of random bytes. The caller destroys it.
func (l *library) randomSecret(s *slot, n int) (*secmem.Buffer, error) {
	secret, err := secmem.New(n)
	if err == nil {
		if err = l.random(secret.Bytes()); err != nil {
			secret.Destroy()
		}
	}
	if err != nil {
		return nil, l.fail("making a key", s.serial, err)
	}
	return secret, nil
}

// addKey stores a private or secret key. It takes live over, which a token
// object does not keep; the secret is sealed for a token object. The caller
// holds s.mu.
func (l *library) addKey(h SessionHandle, s *slot, a attrs, live *liveKey, secret []byte) (ObjectHandle, error) {
	o := &object{}
	if a.bool(CKA_TOKEN) {
		live.destroy()
	} else {
		o.live, secret = live, nil
	}
	handle, err := l.add(h, s, o, a, secret)
	if err != nil {
		o.live.destroy()
	}
	return handle, err
}

// addSecret stores a secret key. The caller holds s.mu.
func (l *library) addSecret(h SessionHandle, s *slot, a attrs, secret []byte) (ObjectHandle, error) {
	if err := a.setSecret(secret); err != nil {
		return 0, err
	}
	live, err := newLiveKey(a.ulong(CKA_KEY_TYPE), secret)
	if err != nil {
		return 0, l.fail("making a key", s.serial, err)
	}
	return l.addKey(h, s, a, live, secret)
}

// takeBack removes a key that was just made. The caller holds s.mu.
func (l *library) takeBack(s *slot, h ObjectHandle) error {
	l.mu.Lock()
	o := s.objs.byHandle[h]
	if o != nil {
		s.objs.remove(o)
	}
	l.mu.Unlock()
	if o == nil {
		return nil
	}
	o.live.destroy()
	if !o.token {
		return nil
	}
	return s.token.DeleteObject(o.id)
}

// parseGenerate reads a template of a key that is made. Class and key type
// follow from the mechanism, and must agree with it where they are given.
func (l *library) parseGenerate(sess *session, of objectType, tmpl []Attribute) (attrs, error) {
	for t, want := range map[AttributeType]uint{CKA_CLASS: of.class, CKA_KEY_TYPE: of.key} {
		if v, ok := given(tmpl, t); ok && len(v) == ulongSize && ulongOf(v) != want {
			return nil, CKR_TEMPLATE_INCONSISTENT
		}
	}
	a, _, err := l.fill(sess, of, private(of.class, tmpl), onGen)
	if err != nil {
		return nil, err
	}
	a[CKA_CLASS], a[CKA_KEY_TYPE] = ulong(of.class), ulong(of.key)
	return a, nil
}
