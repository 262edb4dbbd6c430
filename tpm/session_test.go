package tpm

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// knownSession is a session of which the test knows all.
func knownSession(t *testing.T, auth string) (s *hmacSession, key []byte) {
	s, err := newSession(inOut)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.destroy)
	s.handle = 0x02000000
	rand.Read(s.secret.value[:sha256.Size])
	s.secret.auth = copy(s.secret.value[sha256.Size:], auth)
	rand.Read(s.nonceCaller[:])
	rand.Read(s.nonceTPM[:])
	return s, bytes.Clone(s.secret.key())
}

func hmacOf(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func hashOf(parts ...[]byte) []byte {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// What a session computes is what crypto/hmac, crypto/cipher and go-tpm's
// derivation of keys do, also where the key is longer than a block of the hash.
func TestSessionComputes(t *testing.T) {
	const cc = tpm2.TPMCCUnseal
	for _, auth := range []string{"", "0123456789abcdef0123456789abcdef", string(bytes.Repeat([]byte("x"), maxPassword))} {
		s, key := knownSession(t, auth)
		names := []tpm2.TPM2BName{{Buffer: []byte("a name")}, {Buffer: []byte("another")}}
		params := []byte("parameters")
		cmd, err := s.Authorize(cc, params, nil, names, 0)
		if err != nil {
			t.Fatal(err)
		}
		cp := hashOf(be32(uint32(cc)), names[0].Buffer, names[1].Buffer, params)
		want := hmacOf(key, cp, s.nonceCaller[:], s.nonceTPM[:], []byte{continueSession | decrypt | encrypt})
		if !bytes.Equal(cmd.Authorization.Buffer, want) || !bytes.Equal(cmd.Nonce.Buffer, s.nonceCaller[:]) || cmd.Handle != s.handle {
			t.Errorf("%d bytes of authorisation: HMAC %x, want %x", len(auth), cmd.Authorization.Buffer, want)
		}
		for n := range 70 {
			text := bytes.Repeat([]byte{0x5a}, n)
			keyIV := tpm2.KDFa(crypto.SHA256, key, "CFB", s.nonceCaller[:], s.nonceTPM[:], 256)
			block, err := aes.NewCipher(keyIV[:16])
			if err != nil {
				t.Fatal(err)
			}
			want := make([]byte, n)
			//lint:ignore SA1019 the TPM's mode
			cipher.NewCFBEncrypter(block, keyIV[16:]).XORKeyStream(want, text)
			got := bytes.Clone(text)
			if err := s.Encrypt(got); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes are encrypted to %x, want %x (%v)", n, got, want, err)
			}
			// What the TPM sends is encrypted with the nonces the other way round.
			s.nonceCaller, s.nonceTPM = s.nonceTPM, s.nonceCaller
			if err := s.Decrypt(got); err != nil || !bytes.Equal(got, text) {
				t.Fatalf("%d bytes are decrypted to %x (%v)", n, got, err)
			}
			s.nonceCaller, s.nonceTPM = s.nonceTPM, s.nonceCaller
		}
	}
}

// Of an answer that is authentic, no bit can be changed.
func TestSessionValidates(t *testing.T) {
	const cc = tpm2.TPMCCUnseal
	s, key := knownSession(t, "0123456789abcdef0123456789abcdef")
	params, nonce := []byte("the answer"), bytes.Repeat([]byte{7}, nonceSize)
	rp := hashOf(be32(0), be32(uint32(cc)), params)
	mac := hmacOf(key, rp, nonce, s.nonceCaller[:], []byte{continueSession | encrypt})
	area := append(append([]byte{0, nonceSize}, nonce...), continueSession|encrypt)
	area = append(append(area, 0, sha256.Size), mac...)
	if _, err := s.Authorize(cc, nil, nil, nil, 0); err != nil {
		t.Fatal(err)
	}
	validate := func(params, area []byte) error {
		auth, err := parseAuth(area)
		if err != nil {
			return err
		}
		return s.Validate(tpm2.TPMRCSuccess, cc, params, nil, 0, auth)
	}
	for i := range 8 * (len(params) + len(area)) {
		p, a := bytes.Clone(params), bytes.Clone(area)
		if at := i / 8; at < len(p) {
			p[at] ^= 1 << (i % 8)
		} else {
			a[at-len(p)] ^= 1 << (i % 8)
		}
		if validate(p, a) == nil {
			t.Errorf("bit %d of the answer is changed, and it is valid", i)
		}
	}
	if _, err := s.Authorize(cc, nil, nil, nil, 0); err != errUseless {
		t.Errorf("authorised after an answer that was not authentic: %v", err)
	}
	if err := validate(params, area); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.NonceTPM().Buffer, nonce) {
		t.Errorf("the nonce is %x", s.NonceTPM().Buffer)
	}
	// One by which the TPM ends the session, which nobody has asked for.
	mac = hmacOf(key, rp, nonce, s.nonceCaller[:], []byte{encrypt})
	area = append(append([]byte{0, nonceSize}, nonce...), encrypt)
	if err := validate(params, append(append(area, 0, sha256.Size), mac...)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Authorize(cc, nil, nil, nil, 0); err != errUseless {
		t.Errorf("authorised by a session that has ended: %v", err)
	}
}
