package p11

import (
	"bytes"
	"errors"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/InterCooperative-Network/icn-p11/internal/keywrap"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// keyWrapMechanisms is AES key wrap (RFC 3394, RFC 5649; section 6.16).
var keyWrapMechanisms = []mechanism{
	{typ: CKM_AES_KEY_WRAP, info: aesInfo(CKF_WRAP | CKF_UNWRAP), keyType: CKK_AES, wrap: wrapper(keywrap.Wrap), unwrap: wrapper(keywrap.Unwrap)},
	{typ: CKM_AES_KEY_WRAP_KWP, info: aesInfo(CKF_WRAP | CKF_UNWRAP), keyType: CKK_AES, wrap: wrapper(keywrap.WrapPadded), unwrap: wrapper(keywrap.UnwrapPadded)},
}

// wrapper makes a mode without a parameter serve C_WrapKey and C_UnwrapKey.
func wrapper(f func(kek, text []byte) ([]byte, error)) func(any, []byte, []byte) ([]byte, error) {
	return func(param any, kek, text []byte) ([]byte, error) {
		if param != nil {
			return nil, CKR_MECHANISM_PARAM_INVALID
		}
		out, err := f(kek, text)
		switch {
		case errors.Is(err, keywrap.ErrSize):
			return nil, CKR_WRAPPED_KEY_LEN_RANGE
		case err != nil:
			return nil, CKR_WRAPPED_KEY_INVALID
		}
		return out, nil
	}
}

func wrapCBC(param any, kek, text []byte) ([]byte, error) {
	r, err := newCBC(param, true)
	if err != nil {
		return nil, err
	}
	return r.next(kek, false, text, true)
}

func unwrapCBC(param any, kek, text []byte) ([]byte, error) {
	r, err := newCBC(param, true)
	if err != nil {
		return nil, err
	}
	out, err := r.next(kek, true, text, true)
	switch err {
	case CKR_ENCRYPTED_DATA_LEN_RANGE:
		err = CKR_WRAPPED_KEY_LEN_RANGE
	case CKR_ENCRYPTED_DATA_INVALID:
		err = CKR_WRAPPED_KEY_INVALID
	}
	return out, err
}

// wrappingKey is opKey, with the codes that C_WrapKey and C_UnwrapKey have for it.
func (l *library) wrappingKey(sess *session, h ObjectHandle, row *mechanism, usage AttributeType, handle, kind RV) (*object, error) {
	o, err := l.opKey(sess, h, CKO_SECRET_KEY, row, usage)
	switch err {
	case CKR_KEY_HANDLE_INVALID:
		err = handle
	case CKR_KEY_TYPE_INCONSISTENT:
		err = kind
	}
	return o, err
}

// WrapKey is C_WrapKey (section 5.18.3): the bytes of a secret key, or a
// private key as PKCS #8, encrypted under a key of the token.
func (m *Module) WrapKey(h SessionHandle, mech Mechanism, wrapping, key ObjectHandle, out *Output) error {
	l, sess, err := m.withSession(h)
	if err != nil {
		return err
	}
	defer l.leave()
	row, err := mechanismFor(mech.Type, CKF_WRAP)
	if err != nil {
		return err
	}
	w, err := l.wrappingKey(sess, wrapping, row, CKA_WRAP, CKR_WRAPPING_KEY_HANDLE_INVALID, CKR_WRAPPING_KEY_TYPE_INCONSISTENT)
	if err != nil {
		return err
	}
	o, err := l.object(sess, key)
	switch {
	case err != nil || !o.attrs.hasSecret():
		return CKR_KEY_HANDLE_INVALID
	case !o.bool(CKA_EXTRACTABLE):
		return CKR_KEY_UNEXTRACTABLE
	case o.bool(CKA_ALWAYS_AUTHENTICATE):
		return CKR_USER_NOT_LOGGED_IN // as for C_DeriveKey
	case o.bool(CKA_WRAP_WITH_TRUSTED) && !w.bool(CKA_TRUSTED):
		return CKR_KEY_NOT_WRAPPABLE
	}
	s := sess.slot
	text, err := secmem.New(maxWrapped)
	if err != nil {
		return l.fail("wrapping a key", s.serial, err)
	}
	defer text.Destroy()
	n, err := l.wrapText(s, o, text.Bytes())
	if err != nil {
		return err
	}
	var wrapped []byte
	err = l.withKey(s, w, func(kek []byte) (err error) {
		secmem.Do(func() { wrapped, err = row.wrap(mech.Param, kek, text.Bytes()[:n]) })
		return err
	})
	switch {
	case err == CKR_WRAPPED_KEY_LEN_RANGE:
		return CKR_KEY_SIZE_RANGE // the mode takes no key of this length
	case err != nil:
		return l.fail("wrapping a key", s.serial, err)
	}
	if done, err := checkOutput(out, len(wrapped)); done {
		return err
	}
	copy(out.Buf, wrapped)
	return nil
}

// maxWrapped is the size of the longest text that is wrapped or unwrapped.
const maxWrapped = 512

// wrapText writes what is wrapped of a key to dst, which is secret memory.
func (l *library) wrapText(s *slot, o *object, dst []byte) (int, error) {
	if o.attrs.ulong(CKA_CLASS) == CKO_SECRET_KEY {
		return l.secretOf(s, o, dst)
	}
	head := pkcs8Head(o.attrs.curve())
	n, err := l.secretOf(s, o, dst[len(head):])
	copy(dst, head)
	return len(head) + n, err
}

// pkcs8Head is a PrivateKeyInfo of RFC 8410, section 7, up to the 32 bytes of
// the key.
func pkcs8Head(c *curve) []byte {
	head := []byte{0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05}
	head = append(head, c.oid...)
	return append(head, 0x04, 0x22, 0x04, 0x20)
}

// UnwrapKey is C_UnwrapKey (section 5.18.4).
func (m *Module) UnwrapKey(h SessionHandle, mech Mechanism, unwrapping ObjectHandle, wrapped []byte, tmpl []Attribute) (ObjectHandle, error) {
	l, sess, err := m.withSession(h)
	if err != nil {
		return 0, err
	}
	defer l.leave()
	row, err := mechanismFor(mech.Type, CKF_UNWRAP)
	if err != nil {
		return 0, err
	}
	w, err := l.wrappingKey(sess, unwrapping, row, CKA_UNWRAP, CKR_UNWRAPPING_KEY_HANDLE_INVALID, CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT)
	if err != nil {
		return 0, err
	}
	class, ok := given(tmpl, CKA_CLASS)
	if !ok {
		return 0, CKR_TEMPLATE_INCOMPLETE
	}
	if len(wrapped) > maxWrapped {
		return 0, CKR_WRAPPED_KEY_LEN_RANGE
	}
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	secret, err := secmem.New(maxWrapped)
	if err != nil {
		return 0, l.fail("unwrapping a key", s.serial, err)
	}
	defer secret.Destroy()
	n := 0
	err = l.withKey(s, w, func(kek []byte) (err error) {
		secmem.Do(func() {
			var text []byte
			text, err = row.unwrap(mech.Param, kek, wrapped)
			n = copy(secret.Bytes(), text)
			secmem.Wipe(text)
		})
		return err
	})
	if err != nil {
		return 0, l.fail("unwrapping a key", s.serial, err)
	}
	text := secret.Bytes()[:n]
	switch ulongOf(class) {
	case CKO_SECRET_KEY:
		return l.unwrapSecret(h, sess, text, tmpl)
	case CKO_PRIVATE_KEY:
		return l.unwrapPrivate(h, sess, text, tmpl)
	}
	return 0, CKR_TEMPLATE_INCONSISTENT
}

// unwrapSecret stores an unwrapped secret key. The caller holds the slot's mu.
func (l *library) unwrapSecret(h SessionHandle, sess *session, text []byte, tmpl []Attribute) (ObjectHandle, error) {
	if _, ok := given(tmpl, CKA_KEY_TYPE); !ok {
		return 0, CKR_TEMPLATE_INCOMPLETE
	}
	a, _, err := l.parseSecret(sess, tmpl, len(text))
	if err != nil {
		return 0, err
	}
	_, lengthGiven := given(tmpl, CKA_VALUE_LEN)
	if !secretTypes[a.ulong(CKA_KEY_TYPE)].fits(len(text)) || lengthGiven && a.ulong(CKA_VALUE_LEN) != uint(len(text)) {
		return 0, CKR_WRAPPED_KEY_LEN_RANGE
	}
	if err := l.mayCreate(sess, a); err != nil {
		return 0, err
	}
	a[CKA_ALWAYS_SENSITIVE], a[CKA_NEVER_EXTRACTABLE] = no, no
	return l.addSecret(h, sess.slot, a, text)
}

// unwrapPrivate stores an unwrapped private key. The caller holds the slot's mu.
func (l *library) unwrapPrivate(h SessionHandle, sess *session, text []byte, tmpl []Attribute) (ObjectHandle, error) {
	v, ok := given(tmpl, CKA_KEY_TYPE)
	if !ok {
		return 0, CKR_TEMPLATE_INCOMPLETE
	}
	c := map[uint]*curve{CKK_EC_EDWARDS: edwards25519, CKK_EC_MONTGOMERY: curve25519}[ulongOf(v)]
	if c == nil {
		return 0, CKR_TEMPLATE_INCONSISTENT
	}
	key := parsePKCS8(c, text)
	if key == nil {
		return 0, CKR_WRAPPED_KEY_INVALID
	}
	a, err := l.parseGenerate(sess, objectType{CKO_PRIVATE_KEY, ulongOf(v)}, tmpl)
	if err != nil {
		return 0, err
	}
	if err := sess.slot.guardPrivate(a); err != nil {
		return 0, err
	}
	if err := l.mayCreate(sess, a); err != nil {
		return 0, err
	}
	a[CKA_ALWAYS_SENSITIVE], a[CKA_NEVER_EXTRACTABLE] = no, no
	return l.addPrivate(h, sess.slot, c, a, key)
}

// parsePKCS8 finds the key in a OneAsymmetricKey of RFC 8410, section 7, nil if
// it is none of the curve. Attributes and public key may follow.
func parsePKCS8(c *curve, text []byte) []byte {
	in := cryptobyte.String(text)
	var info, algorithm, octets, key cryptobyte.String
	version := 0
	if !in.ReadASN1(&info, asn1.SEQUENCE) || !in.Empty() ||
		!info.ReadASN1Integer(&version) || version < 0 || version > 1 ||
		!info.ReadASN1(&algorithm, asn1.SEQUENCE) || !bytes.Equal(algorithm, c.oid) ||
		!info.ReadASN1(&octets, asn1.OCTET_STRING) || !octets.ReadASN1(&key, asn1.OCTET_STRING) || !octets.Empty() {
		return nil
	}
	for _, tag := range []asn1.Tag{asn1.Tag(0).ContextSpecific().Constructed(), asn1.Tag(1).ContextSpecific()} {
		if !info.SkipOptionalASN1(tag) {
			return nil
		}
	}
	if !info.Empty() || len(key) != pairSecretSize {
		return nil
	}
	return key
}
