package p11

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"math/big"
	"slices"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
)

// templateOf makes a template of bytes: the type in 4, the length in 1, and the
// value, for each attribute.
func templateOf(b []byte) (tmpl []Attribute) {
	for len(b) >= 5 {
		a := Attribute{Type: AttributeType(binary.BigEndian.Uint32(b)), Value: b[5:min(len(b), 5+int(b[4]))]}
		tmpl, b = append(tmpl, a), b[5+len(a.Value):]
	}
	return tmpl
}

func templateBytes(tmpl ...Attribute) (b []byte) {
	for _, a := range tmpl {
		b = binary.BigEndian.AppendUint32(b, uint32(a.Type))
		b = append(append(b, byte(len(a.Value))), a.Value...)
	}
	return b
}

// templateCodes are what a template can be refused with.
var templateCodes = []RV{
	CKR_TEMPLATE_INCOMPLETE, CKR_TEMPLATE_INCONSISTENT, CKR_ATTRIBUTE_VALUE_INVALID, CKR_ATTRIBUTE_TYPE_INVALID,
	CKR_ATTRIBUTE_READ_ONLY, CKR_CURVE_NOT_SUPPORTED, CKR_DOMAIN_PARAMS_INVALID,
}

// FuzzTemplate reads templates of new objects, and of changes to them. What is
// accepted is kept as it was given, in a form that the store gives back.
func FuzzTemplate(f *testing.F) {
	m, _ := start(f, nil)
	h := token(f, m)
	l, sess, err := m.withSession(h)
	must(f, err)
	f.Cleanup(func() { l.leave(h) })

	seed := bytes.Repeat([]byte{7}, pairSecretSize)
	k, err := eddsa.NewKey(seed)
	must(f, err)
	point := k.Public()
	k.Destroy()
	edwards := ulong(CKK_EC_EDWARDS)
	none := []byte{}
	f.Add(templateBytes(Attribute{CKA_CLASS, ulong(CKO_DATA)}, Attribute{CKA_TOKEN, yes}, Attribute{CKA_VALUE, []byte("v")}), none)
	f.Add(templateBytes(Attribute{CKA_CLASS, ulong(CKO_CERTIFICATE)}, Attribute{CKA_CERTIFICATE_TYPE, ulong(CKC_X_509)},
		Attribute{CKA_SUBJECT, []byte("s")}, Attribute{CKA_VALUE, []byte("v")}, Attribute{CKA_START_DATE, []byte("20260102")}),
		templateBytes(Attribute{CKA_ID, []byte{1}}))
	f.Add(templateBytes(Attribute{CKA_CLASS, ulong(CKO_PUBLIC_KEY)}, Attribute{CKA_KEY_TYPE, edwards}, Attribute{CKA_EC_PARAMS, edwardsName},
		Attribute{CKA_EC_POINT, append(bytes.Clone(edwards25519.octets()), point[:]...)}), templateBytes(Attribute{CKA_LABEL, []byte("l")}, Attribute{CKA_COPYABLE, no}))
	f.Add(templateBytes(Attribute{CKA_CLASS, ulong(CKO_SECRET_KEY)}, Attribute{CKA_KEY_TYPE, ulong(CKK_AES)}, Attribute{CKA_VALUE, seed}), none)
	f.Add(templateBytes(Attribute{CKA_CLASS, ulong(CKO_PUBLIC_KEY)}, Attribute{CKA_KEY_TYPE, ulong(CKK_EC)}, Attribute{CKA_EC_PARAMS, p256OID},
		Attribute{CKA_EC_POINT, append([]byte{4, 65, 4}, make([]byte, 64)...)}), none)
	f.Add(templateBytes(Attribute{CKA_CLASS, ulong(CKO_PRIVATE_KEY)}, Attribute{CKA_KEY_TYPE, edwards}, Attribute{CKA_EC_PARAMS, edwardsOID},
		Attribute{CKA_VALUE, seed}, Attribute{CKA_ALLOWED_MECHANISMS, ulong(CKM_EDDSA)}), templateBytes(Attribute{CKA_SENSITIVE, yes}))

	f.Fuzz(func(t *testing.T, create, change []byte) {
		refused := func(err error) {
			if rv := RVOf(err); !slices.Contains(templateCodes, rv) {
				t.Errorf("%x, %x: %v", create, change, rv)
			}
		}
		kept := func(what string, a attrs, tmpl []Attribute) {
			for _, g := range tmpl {
				// What follows from the token, or from a secret that comes later.
				sensitive := g.Type == CKA_SENSITIVE || g.Type == CKA_EXTRACTABLE || g.Type == CKA_CHECK_VALUE || g.Type == CKA_VALUE && a.encode().hasSecret()
				o := &object{body: a.encode(), token: a.bool(CKA_TOKEN), private: a.bool(CKA_PRIVATE)}
				if !sensitive && !o.matches([]Attribute{g}) {
					t.Errorf("%s: %#x was %x, and is %x", what, g.Type, g.Value, a[g.Type])
				}
			}
			b, ok := parseBody(a.encode())
			if !ok {
				t.Fatalf("%s: the store does not give back %v", what, a)
			}
			back := b.attrs()
			without := a.clone()
			for _, typ := range []AttributeType{CKA_TOKEN, CKA_PRIVATE, CKA_UNIQUE_ID} {
				delete(without, typ)
			}
			if !maps.EqualFunc(back, without, bytes.Equal) {
				t.Errorf("%s: %v is stored, and read as %v", what, without, back)
			}
		}
		before := bytes.Clone(create)
		a, secret, err := l.parseCreate(sess, templateOf(create))
		if !bytes.Equal(create, before) {
			t.Error("the template was changed")
		}
		if err != nil {
			refused(err)
			return
		}
		if (secret != nil) != a.encode().hasSecret() || a.ulong(CKA_CLASS) == CKO_PRIVATE_KEY && len(secret) != pairSecretSize || len(secret) > maxSecretKey {
			t.Errorf("%x: a secret of %d bytes", create, len(secret))
		}
		kept("created", a, templateOf(create))
		changed, err := l.applyTemplate(sess, a, templateOf(change), onSet)
		if err != nil {
			refused(err)
			return
		}
		// Of an attribute that is given twice the last one holds.
		last := map[AttributeType]Attribute{}
		for _, g := range templateOf(change) {
			last[g.Type] = g
		}
		kept("changed", changed, slices.Collect(maps.Values(last)))
		again, err := l.applyTemplate(sess, changed, slices.Collect(maps.Values(last)), onSet)
		if err != nil || !maps.EqualFunc(again, changed, bytes.Equal) {
			t.Errorf("%x: another result the second time: %v", change, err)
		}
		for typ := range a {
			// "once true it stays true", and the like (section 4.1.2)
			if sp := a.specs()[typ]; sp.rule&onSet == 0 && !bytes.Equal(a[typ], changed[typ]) ||
				sp.rule&onlyUp != 0 && a.bool(typ) && !changed.bool(typ) || sp.rule&onlyDown != 0 && !a.bool(typ) && changed.bool(typ) {
				t.Errorf("%#x went from %x to %x", typ, a[typ], changed[typ])
			}
		}
	})
}

// FuzzECParams reads names of curves.
func FuzzECParams(f *testing.F) {
	for _, v := range [][]byte{edwardsOID, edwardsOldOID, edwardsName, {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}, {0x13, 0x02, 'x', 'y'}, {0x30, 0}, nil} {
		f.Add(v, uint16(9))
	}
	f.Fuzz(func(t *testing.T, v []byte, bit uint16) {
		switch _, err := parseCurve(CKK_EC_EDWARDS, v); {
		case errors.Is(err, CKR_CURVE_NOT_SUPPORTED), errors.Is(err, CKR_DOMAIN_PARAMS_INVALID):
			return
		case err != nil:
			t.Fatalf("%x: %v", v, err)
		}
		v = bytes.Clone(v)
		v[int(bit)/8%len(v)] ^= 1 << (bit % 8)
		if _, err := parseCurve(CKK_EC_EDWARDS, v); err == nil {
			t.Errorf("%x names the curve as well", v)
		}
		if _, err := parseCurve(CKK_EC_EDWARDS, append(v, 0)); err == nil {
			t.Errorf("%x with a byte behind it", v)
		}
	})
}

// FuzzECPoint reads public keys: one encoding of each, raw or in an OCTET
// STRING, and only of points on the curve.
func FuzzECPoint(f *testing.F) {
	k, err := eddsa.NewKey(make([]byte, pairSecretSize))
	must(f, err)
	point := k.Public()
	k.Destroy()
	f.Add(point[:])
	f.Add(append(bytes.Clone(edwards25519.octets()), point[:]...))
	for y := range byte(3) { // 1 is the neutral element, 2 no point
		f.Add(append([]byte{y}, make([]byte, 31)...))
		f.Add(append(append([]byte{0xed + y}, bytes.Repeat([]byte{0xff}, 30)...), 0x7f)) // the same again, not reduced
	}
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	d := new(big.Int).Mul(big.NewInt(-121665), new(big.Int).ModInverse(big.NewInt(121666), p))
	f.Fuzz(func(t *testing.T, v []byte) {
		got, err := value(&spec{typ: CKA_EC_POINT}, edwards25519, v)
		raw := v
		if len(v) == 34 && v[0] == 4 && v[1] == 32 {
			raw = v[2:]
		}
		// RFC 8032, section 5.1.3, in other words.
		right := len(raw) == 32
		if right {
			le := slices.Clone(raw)
			sign := le[31] >> 7
			le[31] &= 0x7f
			slices.Reverse(le)
			y := new(big.Int).SetBytes(le)
			y2 := new(big.Int).Mul(y, y)
			v := new(big.Int).Add(new(big.Int).Mul(d, y2), big.NewInt(1))
			x2 := new(big.Int).Mul(new(big.Int).Sub(y2, big.NewInt(1)), new(big.Int).ModInverse(v.Mod(v, p), p))
			x2.Mod(x2, p)
			right = y.Cmp(p) < 0 && (x2.Sign() == 0 && sign == 0 || x2.Sign() != 0 && big.Jacobi(x2, p) == 1)
		}
		if (err == nil) != right || err == nil && !bytes.Equal(got, raw) {
			t.Errorf("%x: %x, %v", v, got, err)
		}
	})
}

// FuzzEdDSAParams reads the parameter of CKM_EDDSA as the C half hands it over.
func FuzzEdDSAParams(f *testing.F) {
	f.Add(false, []byte{}, []byte("raw"))
	f.Add(true, []byte("context"), []byte{})
	f.Add(false, bytes.Repeat([]byte{1}, 255), []byte{0})
	f.Add(true, bytes.Repeat([]byte{1}, 256), []byte{0})
	k, err := eddsa.NewKey(make([]byte, pairSecretSize))
	must(f, err)
	point := k.Public()
	f.Cleanup(k.Destroy)
	f.Fuzz(func(t *testing.T, ph bool, context, raw []byte) {
		// What had another size than the structure.
		if _, err := parseEdDSAParams(raw); err != CKR_MECHANISM_PARAM_INVALID {
			t.Errorf("%x: %v", raw, err)
		}
		context = bytes.Clone(context) // the fuzzer's own must not change
		p, err := parseEdDSAParams(&EdDSAParams{Ph: ph, Context: context})
		if right := len(context) <= 255 && (ph || len(context) > 0); (err == nil) != right {
			t.Fatalf("phFlag %v, %d bytes of context: %v", ph, len(context), err)
		}
		if err != nil {
			return
		}
		sig := make([]byte, eddsa.SignatureSize)
		if err := k.Sign(sig, p, raw); err != nil {
			t.Fatalf("accepted, but signs nothing: %v", err)
		}
		// Each parameter has signatures of its own.
		others := []eddsa.Params{{}}
		if o, err := parseEdDSAParams(&EdDSAParams{Ph: !ph, Context: context}); err == nil {
			others = append(others, o)
		}
		if o, err := parseEdDSAParams(&EdDSAParams{Ph: ph, Context: append(bytes.Clone(context), 0)}); err == nil {
			others = append(others, o)
		}
		if len(context) > 0 {
			context[0]++ // the caller's memory is free again
		}
		if !eddsa.Verify(point[:], raw, sig, p) {
			t.Error("the context was not copied")
		}
		for _, o := range others {
			if eddsa.Verify(point[:], raw, sig, o) {
				t.Errorf("%+v: the signature is good for %+v as well", p, o)
			}
		}
	})
}
