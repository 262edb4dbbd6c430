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
	{typ: CKM_AES_KEY_WRAP, info: aesInfo(CKF_WRAP | CKF_UNWRAP), keyType: CKK_AES, zeroPads: true,
		wrap: keyWrap(keywrap.IVSize, wrapZeros), unwrap: keyWrap(keywrap.IVSize, keywrap.Unwrap)},
	{typ: CKM_AES_KEY_WRAP_KWP, info: aesInfo(CKF_WRAP | CKF_UNWRAP), keyType: CKK_AES,
		wrap: keyWrap(keywrap.PaddedIVSize, keywrap.WrapPadded), unwrap: keyWrap(keywrap.PaddedIVSize, keywrap.UnwrapPadded)},
}

// wrapRun encrypts a key under another, or takes that back.
type wrapRun func(kek, text []byte) ([]byte, error)

// keyWrap reads the parameter of a mode: an initial value of ivSize bytes, or
// none.
func keyWrap(ivSize int, f func(kek, iv, text []byte) ([]byte, error)) func(any) (wrapRun, error) {
	return func(param any) (wrapRun, error) {
		iv, isBytes := param.([]byte)
		if param != nil && (!isBytes || len(iv) != ivSize) {
			return nil, CKR_MECHANISM_PARAM_INVALID
		}
		return func(kek, text []byte) ([]byte, error) {
			out, err := f(kek, iv, text)
			switch {
			case errors.Is(err, keywrap.ErrSize):
				return nil, CKR_WRAPPED_KEY_LEN_RANGE
			case err != nil:
				return nil, CKR_WRAPPED_KEY_INVALID
			}
			return out, nil
		}, nil
	}
}

// semiblock is what the text of key wrap is a multiple of, in bytes.
const semiblock = 8

// wrapZeros is KW of a text that is filled up with zeros, as CKM_AES_KEY_WRAP
// has it (section 6.16.3).
func wrapZeros(kek, iv, text []byte) ([]byte, error) {
	if n := len(text) % semiblock; n != 0 {
		padded := make([]byte, len(text)+semiblock-n)
		defer secmem.Wipe(padded)
		copy(padded, text)
		text = padded
	}
	return keywrap.Wrap(kek, iv, text)
}

func wrapCBC(param any) (wrapRun, error) {
	r, err := newCBC(param, true)
	if err != nil {
		return nil, err
	}
	return func(kek, text []byte) ([]byte, error) { return r.next(kek, false, text, true) }, nil
}

func unwrapCBC(param any) (wrapRun, error) {
	r, err := newCBC(param, true)
	if err != nil {
		return nil, err
	}
	return func(kek, text []byte) ([]byte, error) {
		out, err := r.next(kek, true, text, true)
		switch err {
		case CKR_ENCRYPTED_DATA_LEN_RANGE:
			err = CKR_WRAPPED_KEY_LEN_RANGE
		case CKR_ENCRYPTED_DATA_INVALID:
			err = CKR_WRAPPED_KEY_INVALID
		}
		return out, err
	}, nil
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
	defer l.leave(h)
	row, err := mechanismFor(mech.Type, CKF_WRAP)
	if err != nil {
		return err
	}
	run, err := row.wrap(mech.Param)
	if err != nil {
		return err
	}
	w, err := l.wrappingKey(sess, wrapping, row, CKA_WRAP, CKR_WRAPPING_KEY_HANDLE_INVALID, CKR_WRAPPING_KEY_TYPE_INCONSISTENT)
	if err != nil {
		return err
	}
	o, err := l.object(sess, key)
	switch {
	case err != nil || !o.body.hasSecret():
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
	err = l.withKey(sess, w, func(kek []byte) (err error) {
		secmem.Compute(func() { wrapped, err = run(kek, text.Bytes()[:n]) })
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
	if o.body.ulong(CKA_CLASS) == CKO_SECRET_KEY {
		return l.secretOf(s, o, dst)
	}
	head := pkcs8Head(o.body.curve())
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
	defer l.leave(h)
	row, err := mechanismFor(mech.Type, CKF_UNWRAP)
	if err != nil {
		return 0, err
	}
	run, err := row.unwrap(mech.Param)
	if err != nil {
		return 0, err
	}
	w, err := l.wrappingKey(sess, unwrapping, row, CKA_UNWRAP, CKR_UNWRAPPING_KEY_HANDLE_INVALID, CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT)
	if err != nil {
		return 0, err
	}
	a, err := l.parseUnwrap(sess, tmpl)
	if err != nil {
		return 0, err
	}
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := l.mayCreate(sess, a); err != nil {
		return 0, err
	}
	if len(wrapped) > maxWrapped {
		return 0, CKR_WRAPPED_KEY_LEN_RANGE
	}
	secret, err := secmem.New(maxWrapped)
	if err != nil {
		return 0, l.fail("unwrapping a key", s.serial, err)
	}
	defer secret.Destroy()
	n := 0
	err = l.withKey(sess, w, func(kek []byte) (err error) {
		secmem.Compute(func() {
			var text []byte
			text, err = run(kek, wrapped)
			n = copy(secret.Bytes(), text)
			secmem.Wipe(text)
		})
		return err
	})
	if err != nil {
		return 0, l.fail("unwrapping a key", s.serial, err)
	}
	text := secret.Bytes()[:n]
	a[CKA_ALWAYS_SENSITIVE], a[CKA_NEVER_EXTRACTABLE] = no, no
	if a.ulong(CKA_CLASS) == CKO_PRIVATE_KEY {
		c := pkcs8Curves[a.ulong(CKA_KEY_TYPE)]
		key := parsePKCS8(c, text, row.zeroPads)
		if key == nil {
			return 0, CKR_WRAPPED_KEY_INVALID
		}
		return l.addPrivate(h, s, c, a, key)
	}
	if text, err = a.cutSecret(text, row.zeroPads); err != nil {
		return 0, err
	}
	return l.addSecret(h, s, a, text)
}

// pkcs8Curves are the curves of private keys that are wrapped, by type of key.
var pkcs8Curves = map[uint]*curve{CKK_EC_EDWARDS: edwards25519, CKK_EC_MONTGOMERY: curve25519}

// parseUnwrap reads the template of a key that is unwrapped: class and type must
// be there, and it is extractable unless the template says otherwise (section
// 5.18.4).
func (l *library) parseUnwrap(sess *session, tmpl []Attribute) (attrs, error) {
	var of objectType
	for _, need := range []struct {
		typ AttributeType
		to  *uint
	}{{CKA_CLASS, &of.class}, {CKA_KEY_TYPE, &of.key}} {
		v, ok := given(tmpl, need.typ)
		switch {
		case !ok:
			return nil, CKR_TEMPLATE_INCOMPLETE
		case len(v) != ulongSize:
			return nil, CKR_ATTRIBUTE_VALUE_INVALID
		}
		*need.to = ulongOf(v)
	}
	_, secret := secretTypes[of.key]
	if !(of.class == CKO_SECRET_KEY && secret) && !(of.class == CKO_PRIVATE_KEY && pkcs8Curves[of.key] != nil) {
		return nil, CKR_TEMPLATE_INCONSISTENT
	}
	if _, ok := given(tmpl, CKA_EXTRACTABLE); !ok {
		tmpl = append([]Attribute{{CKA_EXTRACTABLE, yes}}, tmpl...)
	}
	a, err := l.parseGenerate(sess, of, tmpl)
	if err == nil {
		err = sess.slot.guardPrivate(a)
	}
	return a, err
}

// cutSecret gives the key of an unwrapped text, which has the length that its
// type has and CKA_VALUE_LEN says. Where the mode fills up with zeros, the text is
// up to a semiblock longer.
func (a attrs) cutSecret(text []byte, zeroPads bool) ([]byte, error) {
	size := len(text)
	if _, given := a[CKA_VALUE_LEN]; given {
		size = int(min(a.ulong(CKA_VALUE_LEN), maxWrapped+1))
	}
	if size != len(text) && !(zeroPads && size < len(text) && size > len(text)-semiblock) || !secretTypes[a.ulong(CKA_KEY_TYPE)].fits(size) {
		return nil, CKR_WRAPPED_KEY_LEN_RANGE
	}
	return text[:size], nil
}

// parsePKCS8 finds the key in a OneAsymmetricKey of RFC 8410, section 7, nil if
// it is none of the curve. Attributes and public key may follow; after it there
// is nothing, or padding of zeros.
func parsePKCS8(c *curve, text []byte, zeroPads bool) []byte {
	padding := 0
	if zeroPads {
		padding = semiblock - 1
	}
	in := cryptobyte.String(text)
	var info, algorithm, octets, key cryptobyte.String
	version := 0
	if !in.ReadASN1(&info, asn1.SEQUENCE) || len(in) > padding || len(bytes.Trim(in, "\x00")) != 0 ||
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
