package p11tool

import (
	"bytes"
	"crypto"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"fmt"
	"testing"

	"github.com/miekg/pkcs11"
)

func TestDigest(t *testing.T) {
	isolated(t, setup{proxy: true}, func(t *testing.T, p *place) {
		c := newToken(t)
		p.proxy.take()
		r := raw(t)
		c.s = c.open(openRO)
		for m, h := range map[uint]crypto.Hash{pkcs11.CKM_SHA224: crypto.SHA224, pkcs11.CKM_SHA256: crypto.SHA256,
			pkcs11.CKM_SHA384: crypto.SHA384, pkcs11.CKM_SHA512: crypto.SHA512} {
			for _, n := range []int{0, 1, 55, 56, 111, 112, 128, 4096, 1 << 20} {
				data := bytes.Repeat([]byte{byte(n + 1)}, n)
				std := h.New()
				std.Write(data)
				w := std.Sum(nil)
				what := fmt.Sprintf("%v of %d bytes", h, n)
				ok(t, "C_DigestInit", c.DigestInit(c.s, mech(m)))
				got, err := c.Digest(c.s, data)
				ok(t, "C_Digest", err)
				equal(t, what, got, w)

				ok(t, "C_DigestInit", c.DigestInit(c.s, mech(m)))
				for _, part := range split(data) {
					ok(t, "C_DigestUpdate", c.DigestUpdate(c.s, part))
				}
				got, err = c.DigestFinal(c.s)
				ok(t, "C_DigestFinal", err)
				equal(t, what+" in parts", got, w)

				ok(t, "C_DigestInit", c.DigestInit(c.s, mech(m)))
				size := uint(h.Size())
				if k, rv := r.Digest(uint(c.s), data, make([]byte, size-1)); k != size || rv != pkcs11.CKR_BUFFER_TOO_SMALL {
					t.Errorf("%s into a short buffer: %d bytes, rv %#x", what, k, rv)
				}
				ok(t, "C_DigestUpdate", c.DigestUpdate(c.s, data))
				if k, rv := r.DigestFinal(uint(c.s), nil); k != size || rv != pkcs11.CKR_OK {
					t.Errorf("%s, size query: %d bytes, rv %#x", what, k, rv)
				}
				if k, rv := r.DigestFinal(uint(c.s), make([]byte, size-1)); k != size || rv != pkcs11.CKR_BUFFER_TOO_SMALL {
					t.Errorf("%s into a short buffer: %d bytes, rv %#x", what, k, rv)
				}
				out := make([]byte, size)
				if k, rv := r.DigestFinal(uint(c.s), out); k != size || rv != pkcs11.CKR_OK || !bytes.Equal(out, w) {
					t.Errorf("%s after a size query: %d bytes, rv %#x, %x", what, k, rv, out)
				}
				_, err = c.DigestFinal(c.s)
				want(t, "C_DigestFinal when it is over", err, pkcs11.CKR_OPERATION_NOT_INITIALIZED)
			}
		}
		want(t, "C_DigestInit with EdDSA", c.DigestInit(c.s, mech(ckmEdDSA)), pkcs11.CKR_MECHANISM_INVALID)
		ok(t, "C_DigestInit", c.DigestInit(c.s, mech(pkcs11.CKM_SHA256)))
		want(t, "C_DigestInit twice", c.DigestInit(c.s, mech(pkcs11.CKM_SHA256)), pkcs11.CKR_OPERATION_ACTIVE)
		if sent := p.proxy.take(); len(sent) != 0 {
			t.Errorf("digests sent TPM commands %v", sent)
		}
	})
}

func TestRandom(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		seen := map[string]bool{}
		for _, n := range []int{1, 16, 32, 33, 64, 65, 1000, 100_000} {
			for range 3 {
				b, err := c.GenerateRandom(c.s, n)
				ok(t, "C_GenerateRandom", err)
				if len(b) != n || n >= 16 && (seen[string(b)] || bytes.Equal(b, make([]byte, n))) {
					t.Errorf("%d random bytes: %x", n, b)
				}
				seen[string(b)] = true
			}
		}
		_, err := c.GenerateRandom(c.s, 0)
		want(t, "C_GenerateRandom of nothing", err, pkcs11.CKR_OK, pkcs11.CKR_ARGUMENTS_BAD)
		// 100,000 bytes hold each value; a part that was not filled would show.
		b, err := c.GenerateRandom(c.s, 100_000)
		ok(t, "C_GenerateRandom", err)
		if bytes.Contains(b, make([]byte, 8)) {
			t.Error("100,000 random bytes hold eight zeros in a row")
		}
		ok(t, "C_SeedRandom", c.SeedRandom(c.s, []byte("some entropy of the caller's")))
		ro, err := c.OpenSession(c.slot, openRO)
		ok(t, "C_OpenSession", err)
		ok(t, "C_Logout", c.Logout(c.s))
		_, err = c.GenerateRandom(ro, 32)
		ok(t, "C_GenerateRandom without a login", err)
	})
}
