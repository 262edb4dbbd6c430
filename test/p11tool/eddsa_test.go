package p11tool

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha512"
	"fmt"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"
)

// variant is one of the three schemes of RFC 8032, section 5.1.
type variant struct {
	name    string
	plain   bool // no parameter
	ph      bool
	context []byte
}

var variants = []variant{
	{name: "Ed25519", plain: true},
	{name: "Ed25519ctx", context: []byte("foo")},
	{name: "Ed25519ctx, 255 bytes", context: bytes.Repeat([]byte("c"), 255)},
	{name: "Ed25519ph", ph: true},
	{name: "Ed25519ph with context", ph: true, context: []byte{0, 1, 0xff}},
}

// mechanism is what C_SignInit and C_VerifyInit take.
func (v variant) mechanism() (m []*pkcs11.Mechanism, free func()) {
	if v.plain {
		return mech(ckmEdDSA), func() {}
	}
	p, free := EdDSAParams(v.ph, v.context)
	return mech(ckmEdDSA, p...), free
}

// sign is the signature that the standard library makes.
func (v variant) sign(t *testing.T, key ed25519.PrivateKey, msg []byte) []byte {
	t.Helper()
	o := &ed25519.Options{Context: string(v.context)}
	if v.ph {
		o.Hash = crypto.SHA512
		h := sha512.Sum512(msg)
		msg = h[:]
	}
	sig, err := key.Sign(nil, msg, o)
	ok(t, "crypto/ed25519", err)
	return sig
}

// signParts signs with the module: in one C_Sign where parts is nil, else in
// parts.
func (c *client) signParts(v variant, key pkcs11.ObjectHandle, msg []byte, parts [][]byte) []byte {
	c.t.Helper()
	m, free := v.mechanism()
	defer free()
	ok(c.t, v.name+": C_SignInit", c.SignInit(c.s, m, key))
	var sig []byte
	var err error
	if parts == nil {
		sig, err = c.Sign(c.s, msg)
	} else {
		for _, p := range parts {
			ok(c.t, v.name+": C_SignUpdate", c.SignUpdate(c.s, p))
		}
		sig, err = c.SignFinal(c.s)
	}
	ok(c.t, v.name+": signature", err)
	return sig
}

// verifyParts is signParts for C_Verify.
func (c *client) verifyParts(v variant, key pkcs11.ObjectHandle, msg, sig []byte, parts [][]byte) error {
	c.t.Helper()
	m, free := v.mechanism()
	defer free()
	ok(c.t, v.name+": C_VerifyInit", c.VerifyInit(c.s, m, key))
	if parts == nil {
		return c.Verify(c.s, msg, sig)
	}
	for _, p := range parts {
		ok(c.t, v.name+": C_VerifyUpdate", c.VerifyUpdate(c.s, p))
	}
	return c.VerifyFinal(c.s, sig)
}

// split cuts a message into parts, an empty one among them.
func split(msg []byte) [][]byte {
	a, b := len(msg)/3, len(msg)/2
	return [][]byte{msg[:a], {}, msg[a:b], msg[b:]}
}

// TestEdDSA compares every path with the standard library.
func TestEdDSA(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{5}, 32))
		pub := key.Public().(ed25519.PublicKey)
		public := c.create(publicTemplate(pub, true))
		for _, token := range []bool{true, false} {
			priv := c.create(privateTemplate(key.Seed(), token))
			for _, v := range variants {
				for _, n := range []int{0, 1, 63, 64, 65, 127, 128, 1025, 100_000, 3 << 20} {
					msg := bytes.Repeat([]byte{byte(n), 'm'}, n)[:n]
					w := v.sign(t, key, msg)
					what := fmt.Sprintf("%s, %d bytes, token %v", v.name, n, token)
					// The same key and message give the same signature.
					equal(t, what+", C_Sign", c.signParts(v, priv, msg, nil), w)
					equal(t, what+", in parts", c.signParts(v, priv, nil, split(msg)), w)
					if n == 0 {
						equal(t, what+", C_SignFinal alone", c.signParts(v, priv, nil, [][]byte{}), w)
					}
					want(t, what+", C_Verify", c.verifyParts(v, public, msg, w, nil), pkcs11.CKR_OK)
					want(t, what+", C_VerifyFinal", c.verifyParts(v, public, nil, w, split(msg)), pkcs11.CKR_OK)
					bad := bytes.Clone(w)
					bad[n%64] ^= 1
					want(t, what+", a bad signature", c.verifyParts(v, public, msg, bad, nil), pkcs11.CKR_SIGNATURE_INVALID)
					want(t, what+", a bad signature in parts", c.verifyParts(v, public, nil, bad, split(msg)), pkcs11.CKR_SIGNATURE_INVALID)
					want(t, what+", another message", c.verifyParts(v, public, append(msg, 0), w, nil), pkcs11.CKR_SIGNATURE_INVALID)
				}
				for _, other := range variants {
					if other.name != v.name {
						w := v.sign(t, key, []byte("m"))
						want(t, v.name+" verified as "+other.name, c.verifyParts(other, public, []byte("m"), w, nil), pkcs11.CKR_SIGNATURE_INVALID)
					}
				}
			}
		}
		for _, n := range []int{0, 63, 65, 128} {
			for _, parts := range [][][]byte{nil, {[]byte("m")}} {
				want(t, fmt.Sprintf("a signature of %d bytes", n), c.verifyParts(variants[0], public, []byte("m"), make([]byte, n), parts), pkcs11.CKR_SIGNATURE_LEN_RANGE)
			}
		}
	})
}

// TestSignOperation is the life of a signature operation: size queries and
// short buffers keep it (section 5.2), all else ends it.
func TestSignOperation(t *testing.T) {
	isolated(t, setup{proxy: true, exclusive: true}, func(t *testing.T, p *place) {
		c := newToken(t)
		r := raw(t)
		pub, priv := c.generate("key", true)
		key, err := point(c.Ctx, c.s, pub)
		ok(t, "public key", err)
		s := uint(c.s)
		sig, short := make([]byte, 64), make([]byte, 63)
		check := func(what string, n, rv, wantN, wantRV uint) {
			t.Helper()
			if rv != wantRV || rv != pkcs11.CKR_OPERATION_NOT_INITIALIZED && n != wantN {
				t.Errorf("%s: %d bytes, rv %#x; want %d, %#x", what, n, rv, wantN, wantRV)
			}
		}
		_, err = sign(c.Ctx, c.s, priv, []byte("warm up"))
		ok(t, "sign", err)

		// One-shot. The data of the query is not what gets signed.
		ok(t, "C_SignInit", c.SignInit(c.s, mech(ckmEdDSA), priv))
		want(t, "C_SignInit twice", c.SignInit(c.s, mech(ckmEdDSA), priv), pkcs11.CKR_OPERATION_ACTIVE)
		p.proxy.take()
		for range 3 {
			n, rv := r.Sign(s, []byte("query"), nil)
			check("size query", n, rv, 64, pkcs11.CKR_OK)
			n, rv = r.Sign(s, []byte("short"), short)
			check("short buffer", n, rv, 64, pkcs11.CKR_BUFFER_TOO_SMALL)
			n, rv = r.Sign(s, []byte("none"), []byte{})
			check("empty buffer", n, rv, 64, pkcs11.CKR_BUFFER_TOO_SMALL)
		}
		if !bytes.Equal(short, make([]byte, 63)) {
			t.Errorf("C_Sign wrote into a buffer that was too small: %x", short)
		}
		if sent := p.proxy.take(); len(sent) != 0 {
			t.Errorf("size queries sent TPM commands %v", sent)
		}
		n, rv := r.Sign(s, []byte("message"), sig)
		check("C_Sign", n, rv, 64, pkcs11.CKR_OK)
		if !ed25519.Verify(key, []byte("message"), sig) {
			t.Error("the signature is not of the data of the last call")
		}
		n, rv = r.Sign(s, []byte("message"), make([]byte, 64))
		check("C_Sign when it is over", n, rv, 0, pkcs11.CKR_OPERATION_NOT_INITIALIZED)

		// More room than needed.
		ok(t, "C_SignInit", c.SignInit(c.s, mech(ckmEdDSA), priv))
		big := make([]byte, 100)
		n, rv = r.Sign(s, []byte("message"), big)
		check("C_Sign with room for 100", n, rv, 64, pkcs11.CKR_OK)
		equal(t, "the same signature", big[:64], sig)
		equal(t, "what stands behind it", big[64:], make([]byte, 36))

		// A NULL message of no length is the empty message.
		ok(t, "C_SignInit", c.SignInit(c.s, mech(ckmEdDSA), priv))
		n, rv = r.Sign(s, nil, sig)
		check("C_Sign of nothing", n, rv, 64, pkcs11.CKR_OK)
		if !ed25519.Verify(key, nil, sig) {
			t.Error("the signature of the empty message is wrong")
		}

		// In parts.
		ok(t, "C_SignInit", c.SignInit(c.s, mech(ckmEdDSA), priv))
		ok(t, "C_SignUpdate", c.SignUpdate(c.s, []byte("mess")))
		for range 3 {
			n, rv = r.SignFinal(s, nil)
			check("size query", n, rv, 64, pkcs11.CKR_OK)
			n, rv = r.SignFinal(s, short)
			check("short buffer", n, rv, 64, pkcs11.CKR_BUFFER_TOO_SMALL)
		}
		ok(t, "C_SignUpdate after a size query", c.SignUpdate(c.s, []byte("age")))
		n, rv = r.SignFinal(s, sig)
		check("C_SignFinal", n, rv, 64, pkcs11.CKR_OK)
		if !ed25519.Verify(key, []byte("message"), sig) {
			t.Error("the signature in parts is wrong")
		}
		n, rv = r.SignFinal(s, sig)
		check("C_SignFinal when it is over", n, rv, 0, pkcs11.CKR_OPERATION_NOT_INITIALIZED)
		want(t, "C_SignUpdate when it is over", c.SignUpdate(c.s, []byte("x")), pkcs11.CKR_OPERATION_NOT_INITIALIZED)

		// Sessions do not share operations; a session may digest beside.
		other := c.open(openRO)
		ok(t, "C_SignInit", c.SignInit(c.s, mech(ckmEdDSA), priv))
		ok(t, "C_SignInit in another session", c.SignInit(other, mech(ckmEdDSA), priv))
		ok(t, "C_DigestInit beside", c.DigestInit(c.s, mech(pkcs11.CKM_SHA256)))
		ok(t, "C_CloseSession", c.CloseSession(other))
		_, err = c.Digest(c.s, []byte("x"))
		ok(t, "C_Digest beside", err)
		_, err = c.Sign(c.s, []byte("x"))
		ok(t, "C_Sign", err)

		// What C_SignInit and C_VerifyInit refuse.
		want(t, "C_SignInit with a public key", c.SignInit(c.s, mech(ckmEdDSA), pub), pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED)
		want(t, "C_SignInit with no key", c.SignInit(c.s, mech(ckmEdDSA), 4711), pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID)
		want(t, "C_SignInit with ECDSA", c.SignInit(c.s, mech(pkcs11.CKM_ECDSA), priv), pkcs11.CKR_KEY_TYPE_INCONSISTENT)
		want(t, "C_SignInit with RSA", c.SignInit(c.s, mech(pkcs11.CKM_RSA_PKCS), priv), pkcs11.CKR_MECHANISM_INVALID)
		want(t, "C_SignInit with a digest", c.SignInit(c.s, mech(pkcs11.CKM_SHA256), priv), pkcs11.CKR_MECHANISM_INVALID)
		want(t, "C_SignInit with a short parameter", c.SignInit(c.s, mech(ckmEdDSA, make([]byte, 23)...), priv), pkcs11.CKR_MECHANISM_PARAM_INVALID)
		long, free := EdDSAParams(false, make([]byte, 256))
		want(t, "C_SignInit with a context of 256 bytes", c.SignInit(c.s, mech(ckmEdDSA, long...), priv), pkcs11.CKR_MECHANISM_PARAM_INVALID)
		free()
		want(t, "C_VerifyInit with a private key", c.VerifyInit(c.s, mech(ckmEdDSA), priv), pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED)
		template := privateTemplate(bytes.Repeat([]byte{1}, 32), false)
		for _, a := range template {
			if a.Type == pkcs11.CKA_SIGN {
				a.Value = []byte{0}
			}
		}
		want(t, "C_SignInit with a key that may not sign", c.SignInit(c.s, mech(ckmEdDSA), c.create(template)), pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED)
		_, err = c.Sign(c.s, []byte("x"))
		want(t, "C_Sign after refusals", err, pkcs11.CKR_OPERATION_NOT_INITIALIZED)
		want(t, "C_Verify without an operation", c.Verify(c.s, []byte("x"), sig), pkcs11.CKR_OPERATION_NOT_INITIALIZED)

		// The context lies in the caller's memory only during the call.
		v := variant{name: "freed context", context: []byte("short lived")}
		m, free := v.mechanism()
		ok(t, "C_SignInit", c.SignInit(c.s, m, priv))
		free()
		got, err := c.Sign(c.s, []byte("m"))
		ok(t, "C_Sign", err)
		if err := ed25519.VerifyWithOptions(ed25519.PublicKey(key), []byte("m"), got, &ed25519.Options{Context: "short lived"}); err != nil {
			t.Errorf("a signature whose context was freed after C_SignInit: %v", err)
		}
	})
}

// TestAlwaysAuthenticate signs with a key that wants the PIN each time.
func TestAlwaysAuthenticate(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{6}, 32))
		priv, err := c.CreateObject(c.s, privateTemplate(key.Seed(), true, attr(pkcs11.CKA_ALWAYS_AUTHENTICATE, true)))
		ok(t, "C_CreateObject with CKA_ALWAYS_AUTHENTICATE", err)
		equal(t, "CKA_ALWAYS_AUTHENTICATE", c.get(priv, pkcs11.CKA_ALWAYS_AUTHENTICATE), []byte{1})
		for range 2 {
			ok(t, "C_SignInit", c.SignInit(c.s, mech(ckmEdDSA), priv))
			ok(t, "C_Login CKU_CONTEXT_SPECIFIC", c.Login(c.s, pkcs11.CKU_CONTEXT_SPECIFIC, userPIN))
			sig, err := c.Sign(c.s, []byte("m"))
			ok(t, "C_Sign", err)
			equal(t, "signature", sig, ed25519.Sign(key, []byte("m")))
		}
		ok(t, "C_SignInit", c.SignInit(c.s, mech(ckmEdDSA), priv))
		_, err = c.Sign(c.s, []byte("m"))
		want(t, "C_Sign without the PIN", err, pkcs11.CKR_USER_NOT_LOGGED_IN)
	})
}

// TestChangingMessage: whatever another thread makes of a message while it is
// signed, no two signatures have the same first half and different second
// ones. A message that is read twice, once for each half, gives such a pair,
// and that gives the key away.
func TestChangingMessage(t *testing.T) {
	isolated(t, setup{autoLock: 60}, func(t *testing.T, p *place) {
		c := newToken(t)
		_, priv := c.generate("key", true)
		for _, size := range []int{256, 4096} {
			msg := make([]byte, size)
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				for n := byte(0); ; n++ {
					select {
					case <-stop:
						return
					default:
						msg[size-1] = n & 1
					}
				}
			})
			second := map[[32]byte][]byte{}
			for range 3000 {
				sig, err := sign(c.Ctx, c.s, priv, msg)
				ok(t, "signing", err)
				r := [32]byte(sig)
				if s := second[r]; s != nil && !bytes.Equal(s, sig[32:]) {
					t.Fatalf("%d bytes: two signatures that give the key away", size)
				}
				second[r] = sig[32:]
			}
			close(stop)
			wg.Wait()
			if len(second) != 2 {
				t.Errorf("%d bytes: %d different messages were signed, not 2", size, len(second))
			}
		}
	})
}
