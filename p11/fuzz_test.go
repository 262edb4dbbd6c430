package p11

import (
	"bytes"
	"crypto/elliptic"
	"encoding/asn1"
	"encoding/binary"
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
		kept(t, "created", a, templateOf(create))
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
		kept(t, "changed", changed, slices.Collect(maps.Values(last)))
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

// FuzzMadeTemplate reads templates of what is made by the module: keys that are
// generated, unwrapped and derived. What is accepted is kept as it was given, and
// is a key of the kind that is made, without a value.
func FuzzMadeTemplate(f *testing.F) {
	m, _ := start(f, nil)
	h := token(f, m)
	base, err := m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(CKO_SECRET_KEY)}, {CKA_KEY_TYPE, ulong(CKK_HKDF)}, {CKA_VALUE, fuzzKey}})
	must(f, err)
	hkdf := Mechanism{Type: CKM_HKDF_DATA, Param: &HKDFParams{Expand: true, PRF: CKM_SHA256}}
	l, sess, err := m.withSession(h)
	must(f, err)
	l.leave(h)

	// What C_GenerateKeyPair and C_GenerateKey make; then come the other functions.
	generated := []objectType{}
	for _, t := range []uint{CKK_EC_EDWARDS, CKK_EC_MONTGOMERY, CKK_EC} {
		generated = append(generated, objectType{CKO_PUBLIC_KEY, t}, objectType{CKO_PRIVATE_KEY, t})
	}
	for _, row := range secretMechanisms {
		generated = append(generated, objectType{CKO_SECRET_KEY, row.keyType})
	}
	unwrapped, derived, data := len(generated), len(generated)+1, len(generated)+2
	for how := range data + 1 {
		for _, of := range append([]objectType{{CKO_DATA, 0}, {CKO_SECRET_KEY, CKK_GENERIC_SECRET}, {CKO_SECRET_KEY, CKK_CHACHA20}}, generated...) {
			named := []Attribute{{CKA_CLASS, ulong(of.class)}, {CKA_KEY_TYPE, ulong(of.key)}}
			f.Add(uint8(how), templateBytes(named...))
			f.Add(uint8(how), templateBytes(append(named, Attribute{CKA_EC_PARAMS, p384Name}, Attribute{CKA_LABEL, []byte("l")})...))
			f.Add(uint8(how), templateBytes(append(named, Attribute{CKA_VALUE_LEN, ulong(uint(32))}, Attribute{CKA_EXTRACTABLE, yes}, Attribute{CKA_PRIVATE, no})...))
			f.Add(uint8(how), templateBytes(append(named, Attribute{CKA_VALUE, fuzzKey})...))
		}
		f.Add(uint8(how), templateBytes(Attribute{CKA_EC_PARAMS, edwardsName}, Attribute{CKA_ALWAYS_AUTHENTICATE, yes}, Attribute{CKA_PRIVATE, no}))
		f.Add(uint8(how), templateBytes(Attribute{CKA_VALUE_LEN, ulong(uint(maxSecretKey + 1))}))
		f.Add(uint8(how), templateBytes(Attribute{CKA_LABEL, []byte("l")}, Attribute{CKA_VALUE_LEN, ulong(uint(24))}))
		f.Add(uint8(how), templateBytes())
	}
	codes := append([]RV{CKR_KEY_SIZE_RANGE}, templateCodes...)
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		how, tmpl := int(which)%(data+1), templateOf(b)
		refused := func(err error) bool {
			if rv := RVOf(err); err != nil && !slices.Contains(codes, rv) {
				t.Errorf("%d, %x: %v", how, b, rv)
			}
			return err != nil
		}
		if how == data {
			if v, ok := given(tmpl, CKA_TOKEN); ok && bytes.Equal(v, yes) {
				return // the store is not for so many
			}
			oh, err := m.DeriveKey(h, hkdf, base, tmpl)
			if refused(err) {
				return
			}
			l.mu.RLock()
			o := sess.slot.objs.byHandle[oh]
			l.mu.RUnlock()
			if n, ok := given(tmpl, CKA_VALUE_LEN); o.body.ulong(CKA_CLASS) != CKO_DATA || ok && uint(len(o.body.bytes(CKA_VALUE))) != ulongOf(n) {
				t.Errorf("%x: %v", b, o.body.attrs())
			}
			must(t, m.DestroyObject(h, oh))
			return
		}
		var a attrs
		var err error
		size, sized := 0, false
		var of objectType
		switch {
		case how == unwrapped:
			if a, err = l.parseUnwrap(sess, tmpl); err == nil {
				class, _ := given(tmpl, CKA_CLASS)
				keyType, _ := given(tmpl, CKA_KEY_TYPE)
				of = objectType{ulongOf(class), ulongOf(keyType)}
			}
		case how == derived:
			if a, size, err = l.parseSecret(sess, tmpl, 32); err == nil {
				of, sized = objectType{CKO_SECRET_KEY, a.ulong(CKA_KEY_TYPE)}, true
			}
		default:
			of = generated[how]
			if a, err = l.parseGenerate(sess, of, tmpl); err == nil && of.class == CKO_SECRET_KEY {
				size, err = secretSize(a, of.key)
				sized = true
			}
		}
		if refused(err) {
			return
		}
		if a.ulong(CKA_CLASS) != of.class || a.ulong(CKA_KEY_TYPE) != of.key || a[CKA_VALUE] != nil || a[CKA_EC_POINT] != nil {
			t.Errorf("%d, %x: %v", how, b, a)
		}
		if n, ok := given(tmpl, CKA_VALUE_LEN); sized && (!secretTypes[of.key].fits(size) || ok && uint(size) != ulongOf(n)) {
			t.Errorf("%d, %x: a key of %d bytes", how, b, size)
		}
		if _, ok := given(tmpl, CKA_PRIVATE); !ok && a.bool(CKA_PRIVATE) != (of.class != CKO_PUBLIC_KEY) {
			t.Errorf("%d, %x: private is %v", how, b, a.bool(CKA_PRIVATE))
		}
		if how == unwrapped && of.class == CKO_PRIVATE_KEY && (!a.bool(CKA_SENSITIVE) || a.bool(CKA_TOKEN) && a.bool(CKA_EXTRACTABLE)) {
			t.Errorf("%x: a private key that can be read: %v", b, a)
		}
		kept(t, "made", a, tmpl)
	})
}

// kept checks that attributes are what a template said, in a form that the store
// gives back.
func kept(t *testing.T, what string, a attrs, tmpl []Attribute) {
	t.Helper()
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
	without := a.clone()
	for _, typ := range []AttributeType{CKA_TOKEN, CKA_PRIVATE, CKA_UNIQUE_ID} {
		delete(without, typ)
	}
	if back := b.attrs(); !maps.EqualFunc(back, without, bytes.Equal) {
		t.Errorf("%s: %v is stored, and read as %v", what, without, back)
	}
}

// FuzzECParams reads names of curves, and compares with what encoding/asn1 makes
// of them.
func FuzzECParams(f *testing.F) {
	types := []uint{CKK_EC_EDWARDS, CKK_EC_MONTGOMERY, CKK_EC}
	for i := range types {
		for _, c := range curves {
			for _, v := range append([][]byte{c.oid}, c.also...) {
				f.Add(uint8(i), v)
				f.Add(uint8(i), append(bytes.Clone(v), 0))
			}
		}
		for _, v := range [][]byte{{0x06, 0x04, 0x2b, 0x80, 0x65, 0x70}, {0x06, 0x81, 0x03, 0x2b, 0x65, 0x70}, {0x13, 0x02, 'x', 'y'}, {0x30, 0}, nil} {
			f.Add(uint8(i), v)
		}
	}
	names := map[uint]map[string]*curve{
		CKK_EC_EDWARDS:    {"1.3.101.112": edwards25519, "1.3.6.1.4.1.11591.15.1": edwards25519, "edwards25519": edwards25519},
		CKK_EC_MONTGOMERY: {"1.3.101.110": curve25519, "1.3.6.1.4.1.3029.1.5.1": curve25519, "curve25519": curve25519},
		CKK_EC:            {"1.2.840.10045.3.1.7": p256, "secp256r1": p256, "1.3.132.0.34": p384, "secp384r1": p384},
	}
	f.Fuzz(func(t *testing.T, which uint8, v []byte) {
		keyType := types[int(which)%len(types)]
		name := ""
		var oid asn1.ObjectIdentifier
		var raw asn1.RawValue
		if rest, err := asn1.Unmarshal(v, &oid); err == nil && len(rest) == 0 {
			name = oid.String()
		} else if rest, err := asn1.Unmarshal(v, &raw); err == nil && len(rest) == 0 && v[0] == asn1.TagPrintableString {
			name = string(raw.Bytes)
		}
		want := names[keyType][name]
		if keyType == CKK_EC_MONTGOMERY && bytes.Equal(v, montgomeryLongName) {
			want = curve25519 // the one name that is no DER
		}
		got, err := parseCurve(keyType, v)
		if got != want || (err == nil) != (want != nil) {
			t.Errorf("%x of type %#x: %v", v, keyType, err)
		}
		if err != nil && err != CKR_CURVE_NOT_SUPPORTED && (name != "" || err != CKR_DOMAIN_PARAMS_INVALID) {
			t.Errorf("%x: %v", v, err)
		}
	})
}

// FuzzECPoint reads public keys: one encoding of each, raw or in an OCTET
// STRING, and only of points on the curve.
func FuzzECPoint(f *testing.F) {
	add := func(c *curve, v []byte) {
		f.Add(uint8(slices.Index(curves, c)), v)
		f.Add(uint8(slices.Index(curves, c)), append(c.octets(), v...))
	}
	k, err := eddsa.NewKey(make([]byte, pairSecretSize))
	must(f, err)
	point := k.Public()
	k.Destroy()
	for _, c := range []*curve{edwards25519, curve25519} {
		add(c, point[:])
		for y := range byte(3) { // on edwards25519, 1 is the neutral element, 2 no point
			add(c, append([]byte{y}, make([]byte, 31)...))
			add(c, append(append([]byte{0xed + y}, bytes.Repeat([]byte{0xff}, 30)...), 0x7f)) // the same again, not reduced
		}
	}
	for _, c := range []*curve{p256, p384} {
		n, e := c.size/2, c.ecdsa.Params()
		uncompressed := func(x, y *big.Int) []byte {
			return slices.Concat([]byte{4}, x.FillBytes(make([]byte, n)), y.FillBytes(make([]byte, n)))
		}
		good := uncompressed(e.Gx, e.Gy)
		add(c, good)
		add(c, append([]byte{2 + good[c.size-1]&1}, good[1:1+n]...)) // compressed
		add(c, append([]byte{6 + good[c.size-1]&1}, good[1:]...))    // hybrid
		add(c, []byte{0})                                            // the point at infinity
		add(c, uncompressed(e.Gx, e.Gx))
		x, y := big.NewInt(0), new(big.Int)
		for y.ModSqrt(weierstrassRight(e, x), e.P) == nil {
			x.Add(x, big.NewInt(1))
		}
		add(c, uncompressed(x, y))
		add(c, uncompressed(x.Add(x, e.P), y)) // the same again, not reduced
	}
	f.Fuzz(func(t *testing.T, which uint8, v []byte) {
		c := curves[int(which)%len(curves)]
		got, err := value(&spec{typ: CKA_EC_POINT}, c, v)
		raw := v
		if len(v) == c.size+2 && v[0] == 4 && int(v[1]) == c.size {
			raw = v[2:]
		}
		right := len(raw) == c.size
		switch {
		case right && c == edwards25519:
			right = onEdwards(raw)
		case right && c.keyType == CKK_EC: // on curve25519 any number is a point (RFC 7748, section 5)
			right = onWeierstrass(c.ecdsa.Params(), raw)
		}
		if (err == nil) != right || err == nil && !bytes.Equal(got, raw) {
			t.Errorf("%x: %x, %v", v, got, err)
		}
	})
}

// onEdwards is RFC 8032, section 5.1.3, in other words.
func onEdwards(raw []byte) bool {
	p := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	d := new(big.Int).Mul(big.NewInt(-121665), new(big.Int).ModInverse(big.NewInt(121666), p))
	le := slices.Clone(raw)
	sign := le[31] >> 7
	le[31] &= 0x7f
	slices.Reverse(le)
	y := new(big.Int).SetBytes(le)
	y2 := new(big.Int).Mul(y, y)
	v := new(big.Int).Add(new(big.Int).Mul(d, y2), big.NewInt(1))
	x2 := new(big.Int).Mul(new(big.Int).Sub(y2, big.NewInt(1)), new(big.Int).ModInverse(v.Mod(v, p), p))
	x2.Mod(x2, p)
	return y.Cmp(p) < 0 && (x2.Sign() == 0 && sign == 0 || x2.Sign() != 0 && big.Jacobi(x2, p) == 1)
}

// onWeierstrass is SEC 1, section 2.3.4, of uncompressed points, in other words.
func onWeierstrass(e *elliptic.CurveParams, raw []byte) bool {
	n := len(raw) / 2
	x, y := new(big.Int).SetBytes(raw[1:1+n]), new(big.Int).SetBytes(raw[1+n:])
	y2 := new(big.Int).Mul(y, y)
	return raw[0] == 4 && x.Cmp(e.P) < 0 && y.Cmp(e.P) < 0 && y2.Mod(y2, e.P).Cmp(weierstrassRight(e, x)) == 0
}

// weierstrassRight is x³ - 3x + b.
func weierstrassRight(e *elliptic.CurveParams, x *big.Int) *big.Int {
	r := new(big.Int).Mul(x, x)
	r.Mul(r.Sub(r, big.NewInt(3)), x)
	return r.Mod(r.Add(r, e.B), e.P)
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
