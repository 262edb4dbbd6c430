package p11

import (
	"bytes"
	"crypto/sha256"
	"testing"
)

// TestDual runs two operations at a time: what they give is what each gives by
// itself, and neither moves without the other.
func TestDual(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	aes := createSecret(t, m, h, CKK_AES, bytes.Repeat([]byte{1}, 16))
	mac := createSecret(t, m, h, CKK_GENERIC_SECRET, []byte("a key"))
	hmac := Mechanism{Type: CKM_SHA256_HMAC}
	ctr := Mechanism{Type: CKM_AES_CTR, Param: append(ulong(uint(128)), make([]byte, 16)...)}
	cbc := Mechanism{Type: CKM_AES_CBC, Param: make([]byte, 16)}
	sha := Mechanism{Type: CKM_SHA256}
	msg := bytes.Repeat([]byte("0123456789abcdef"), 20)
	code := sign(t, m, h, hmac, mac, msg)
	must(t, m.EncryptInit(h, ctr, aes))
	cipher := Output{Buf: make([]byte, len(msg))}
	must(t, m.Encrypt(h, msg, &cipher))
	sum := sha256.Sum256(msg)

	room := func(n int) *Output { return &Output{Buf: make([]byte, n)} }
	// run gives the parts to f; each first without room, and once with none but
	// a question for the length.
	run := func(in []byte, f func([]byte, *Output) error) (all []byte) {
		t.Helper()
		for _, n := range []int{16, 0, 1, 40, len(in) - 57} {
			part := in[:n]
			in = in[n:]
			if n > 0 {
				want(t, CKR_BUFFER_TOO_SMALL, f(part, room(n-1)))
			}
			q := &Output{Query: true}
			must(t, f(part, q))
			if q.Len != uint(n) {
				t.Errorf("%d bytes for %d", q.Len, n)
			}
			// The output where the input is.
			out := &Output{Buf: bytes.Clone(part)}
			must(t, f(out.Buf, out))
			all = append(all, out.Buf[:out.Len]...)
		}
		return all
	}
	same := func(got, want []byte) {
		t.Helper()
		if !bytes.Equal(got, want) {
			t.Errorf("%x, not %x", got, want)
		}
	}
	last := func(f func(SessionHandle, *Output) error, n int) []byte {
		t.Helper()
		out := room(n)
		must(t, f(h, out))
		return out.Buf[:out.Len]
	}

	must(t, m.DigestInit(h, sha))
	must(t, m.EncryptInit(h, ctr, aes))
	same(run(msg, func(p []byte, o *Output) error { return m.DigestEncryptUpdate(h, p, o) }), cipher.Buf)
	last(m.EncryptFinal, 0)
	same(last(m.DigestFinal, 32), sum[:])

	must(t, m.DigestInit(h, sha))
	must(t, m.DecryptInit(h, ctr, aes))
	same(run(cipher.Buf, func(p []byte, o *Output) error { return m.DecryptDigestUpdate(h, p, o) }), msg)
	last(m.DecryptFinal, 0)
	same(last(m.DigestFinal, 32), sum[:])

	must(t, m.SignInit(h, hmac, mac))
	must(t, m.EncryptInit(h, ctr, aes))
	same(run(msg, func(p []byte, o *Output) error { return m.SignEncryptUpdate(h, p, o) }), cipher.Buf)
	last(m.EncryptFinal, 0)
	same(last(m.SignFinal, 32), code)

	must(t, m.VerifyInit(h, hmac, mac))
	must(t, m.DecryptInit(h, ctr, aes))
	same(run(cipher.Buf, func(p []byte, o *Output) error { return m.DecryptVerifyUpdate(h, p, o) }), msg)
	last(m.DecryptFinal, 0)
	must(t, m.VerifyFinal(h, code))

	// Either operation may be missing.
	for _, begin := range []func() error{
		func() error { return m.DigestInit(h, sha) }, func() error { return m.EncryptInit(h, ctr, aes) },
	} {
		must(t, begin())
		want(t, CKR_OPERATION_NOT_INITIALIZED, m.DigestEncryptUpdate(h, msg, room(len(msg))))
		must(t, m.SessionCancel(h, ^uint(0)))
	}
	// An error ends both.
	must(t, m.SignInit(h, pure, importKey(t, m, h, no, "known")))
	must(t, m.EncryptInit(h, ctr, aes))
	want(t, CKR_DATA_LEN_RANGE, m.SignEncryptUpdate(h, make([]byte, maxMessage+1), room(maxMessage+1)))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.SignUpdate(h, msg))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.EncryptUpdate(h, msg, room(len(msg))))
	// Half a block stays inside; the digest has it all the same.
	must(t, m.DigestInit(h, sha))
	must(t, m.EncryptInit(h, cbc, aes))
	out := room(16)
	must(t, m.DigestEncryptUpdate(h, msg[:20], out))
	if out.Len != 16 {
		t.Errorf("%d bytes", out.Len)
	}
	must(t, m.DigestEncryptUpdate(h, msg[20:], room(len(msg))))
	last(m.EncryptFinal, 0)
	same(last(m.DigestFinal, 32), sum[:])
	// What is under way cannot be saved with the digest.
	must(t, m.DigestInit(h, sha))
	must(t, m.EncryptInit(h, cbc, aes))
	want(t, CKR_STATE_UNSAVEABLE, m.GetOperationState(h, room(1000)))
}
