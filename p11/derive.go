package p11

import (
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// deriver makes a key of another.
type deriver interface {
	class() uint // of the key that it takes
	most() int   // bytes that it can make
	usual() int  // bytes that it makes where no length is given
	// second is the handle of another secret key that it takes; 0: none.
	second() ObjectHandle
	// derive fills dst, in secret memory, with at most as many bytes. second is
	// nil where there is no such key.
	derive(dst, key, second []byte) error
}

// DeriveKey is C_DeriveKey (section 5.18.5). It makes secret keys, and with
// CKM_HKDF_DATA a data object.
func (m *Module) DeriveKey(h SessionHandle, mech Mechanism, base ObjectHandle, tmpl []Attribute) (ObjectHandle, error) {
	l, sess, err := m.withSession(h)
	if err != nil {
		return 0, err
	}
	defer l.leave(h)
	row, err := mechanismFor(mech.Type, CKF_DERIVE)
	if err != nil {
		return 0, err
	}
	d, err := row.derive(mech.Param)
	if err != nil {
		return 0, err
	}
	o, err := l.opKey(sess, base, d.class(), row, CKA_DERIVE)
	if err != nil {
		return 0, err
	}
	if o.bool(CKA_ALWAYS_AUTHENTICATE) {
		return 0, CKR_USER_NOT_LOGGED_IN // there is no operation that a PIN could be given for
	}
	keys := []*object{o}
	if second := d.second(); second != 0 {
		o, err := l.opKey(sess, second, CKO_SECRET_KEY, row, CKA_DERIVE)
		if err != nil {
			return 0, err
		}
		keys = append(keys, o)
	}
	if row.typ == CKM_HKDF_DATA {
		return l.deriveData(h, sess, d, keys, tmpl)
	}
	a, size, err := l.parseSecret(sess, tmpl, d.usual())
	if err != nil {
		return 0, err
	}
	if size > d.most() {
		return 0, CKR_KEY_SIZE_RANGE
	}
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := l.mayCreate(sess, a); err != nil {
		return 0, err
	}
	secret, err := l.derived(sess, d, keys, size)
	if err != nil {
		return 0, err
	}
	defer secret.Destroy()
	// What is known of the base key passes on (sections 6.3.17 and 6.62.3).
	a[CKA_ALWAYS_SENSITIVE] = boolBytes(a.bool(CKA_SENSITIVE) && o.bool(CKA_ALWAYS_SENSITIVE))
	a[CKA_NEVER_EXTRACTABLE] = boolBytes(!a.bool(CKA_EXTRACTABLE) && o.bool(CKA_NEVER_EXTRACTABLE))
	return l.addSecret(h, s, a, secret.Bytes())
}

// derived makes the bytes of one or two keys. The caller destroys them.
func (l *library) derived(sess *session, d deriver, keys []*object, size int) (*secmem.Buffer, error) {
	s := sess.slot
	var second []byte
	if len(keys) > 1 {
		// A copy: two keys in use at a time may be one.
		buf, err := l.readSecret(s, keys[1])
		if err != nil {
			return nil, err
		}
		defer buf.Destroy()
		second = buf.Bytes()
	}
	secret, err := secmem.New(size)
	if err != nil {
		return nil, l.fail("deriving a key", s.serial, err)
	}
	if err := l.withKey(sess, keys[0], func(key []byte) error { return d.derive(secret.Bytes(), key, second) }); err != nil {
		secret.Destroy()
		return nil, l.fail("deriving a key", s.serial, err)
	}
	return secret, nil
}

// deriveData is for CKM_HKDF_DATA: what is derived is no key but data, for
// everybody to read who may see the object. Its length is CKA_VALUE_LEN.
func (l *library) deriveData(h SessionHandle, sess *session, d deriver, keys []*object, tmpl []Attribute) (ObjectHandle, error) {
	size, rest := d.usual(), tmpl[:0:0]
	for _, t := range tmpl {
		if t.Type != CKA_VALUE_LEN {
			rest = append(rest, t)
			continue
		}
		if len(t.Value) != ulongSize {
			return 0, CKR_ATTRIBUTE_VALUE_INVALID
		}
		if n := ulongOf(t.Value); n >= 1 && n <= uint(d.most()) {
			size = int(n)
		} else {
			return 0, CKR_KEY_SIZE_RANGE
		}
	}
	if v, ok := given(rest, CKA_CLASS); ok && ulongOf(v) != CKO_DATA {
		return 0, CKR_TEMPLATE_INCONSISTENT
	} else if !ok {
		rest = append(rest, Attribute{CKA_CLASS, ulong(CKO_DATA)})
	}
	if _, ok := given(rest, CKA_VALUE); ok {
		return 0, CKR_TEMPLATE_INCONSISTENT
	}
	a, _, err := l.fill(sess, objectType{class: CKO_DATA}, rest, onCreate)
	if err != nil {
		return 0, err
	}
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := l.mayCreate(sess, a); err != nil {
		return 0, err
	}
	secret, err := l.derived(sess, d, keys, size)
	if err != nil {
		return 0, err
	}
	defer secret.Destroy()
	a[CKA_VALUE] = append([]byte{}, secret.Bytes()...)
	return l.add(h, s, &object{}, a, nil)
}

// parseSecret reads the template of a secret key that is derived, and finds its
// size: CKA_VALUE_LEN, the only one of its type, or usual.
func (l *library) parseSecret(sess *session, tmpl []Attribute, usual int) (attrs, int, error) {
	if v, ok := given(tmpl, CKA_CLASS); ok && ulongOf(v) != CKO_SECRET_KEY {
		return nil, 0, CKR_TEMPLATE_INCONSISTENT
	}
	keyType := CKK_GENERIC_SECRET
	if v, ok := given(tmpl, CKA_KEY_TYPE); ok {
		if len(v) != ulongSize {
			return nil, 0, CKR_ATTRIBUTE_VALUE_INVALID
		}
		keyType = ulongOf(v)
	}
	t, known := secretTypes[keyType]
	if !known {
		return nil, 0, CKR_TEMPLATE_INCONSISTENT
	}
	a, err := l.parseGenerate(sess, objectType{CKO_SECRET_KEY, keyType}, tmpl)
	if err != nil {
		return nil, 0, err
	}
	size := usual
	switch _, given := a[CKA_VALUE_LEN]; {
	case given:
		size, err = secretSize(a, keyType)
	case len(t.sizes) == 1:
		size = t.sizes[0]
	case !t.fits(size):
		err = CKR_TEMPLATE_INCOMPLETE
	}
	return a, size, err
}
