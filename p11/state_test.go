package p11

import (
	"bytes"
	"testing"
)

// TestOperationState saves digests and goes on with them, in this session and
// in another.
func TestOperationState(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	other := open(t, m, 0)
	msg := bytes.Repeat([]byte("0123456789"), 50)
	for typ, row := range mechanisms {
		if row.info.Flags&CKF_DIGEST == 0 {
			continue
		}
		std := row.digest()
		std.Write(msg)
		must(t, m.DigestInit(h, Mechanism{Type: typ}))
		must(t, m.DigestUpdate(h, msg[:333]))
		state := save(t, m, h)
		must(t, m.DigestUpdate(h, []byte("something else")))
		must(t, m.SetOperationState(h, state, 0, 0))
		must(t, m.SetOperationState(other, state, 0, 0))
		for _, s := range []SessionHandle{h, other} {
			out := Output{Buf: make([]byte, std.Size())}
			want(t, CKR_OPERATION_ACTIVE, m.Digest(s, msg, &out))
			must(t, m.DigestUpdate(s, msg[333:]))
			must(t, m.DigestFinal(s, &out))
			if !bytes.Equal(out.Buf, std.Sum(nil)) {
				t.Errorf("mechanism %#x: %x", uint(typ), out.Buf)
			}
		}
	}

	// No bit of it can be changed, and no byte be missing or more.
	must(t, m.DigestInit(h, Mechanism{Type: CKM_SHA256}))
	state := save(t, m, h)
	for i := range state {
		bad := bytes.Clone(state)
		bad[i] ^= 1 << (i % 8)
		want(t, CKR_SAVED_STATE_INVALID, m.SetOperationState(h, bad, 0, 0))
		want(t, CKR_SAVED_STATE_INVALID, m.SetOperationState(h, state[:i], 0, 0))
	}
	want(t, CKR_SAVED_STATE_INVALID, m.SetOperationState(h, append(bytes.Clone(state), 0), 0, 0))
	want(t, CKR_ARGUMENTS_BAD, m.SetOperationState(h, nil, 0, 0))
	want(t, CKR_KEY_NOT_NEEDED, m.SetOperationState(h, state, 1, 0))
	want(t, CKR_KEY_NOT_NEEDED, m.SetOperationState(h, state, 0, 1))
	out := Output{Buf: make([]byte, 32)}
	must(t, m.Digest(h, msg, &out)) // a state that is refused ends nothing

	// Another session state, another token, another library.
	ro, err := m.OpenSession(0, CKF_SERIAL_SESSION)
	must(t, err)
	want(t, CKR_SAVED_STATE_INVALID, m.SetOperationState(ro, state, 0, 0))
	_, err = m.GetSlotList(true, nil, true)
	must(t, err)
	must(t, m.InitToken(1, []byte(soPIN), label("second")))
	want(t, CKR_SAVED_STATE_INVALID, m.SetOperationState(open(t, m, 1), state, 0, 0))
	n, _ := start(t, nil)
	want(t, CKR_SAVED_STATE_INVALID, n.SetOperationState(token(t, n), state, 0, 0))
}

func save(t *testing.T, m *Module, h SessionHandle) []byte {
	t.Helper()
	out := Output{Query: true}
	must(t, m.GetOperationState(h, &out))
	short := Output{Buf: make([]byte, out.Len-1)}
	want(t, CKR_BUFFER_TOO_SMALL, m.GetOperationState(h, &short))
	out = Output{Buf: make([]byte, out.Len+7)}
	must(t, m.GetOperationState(h, &out))
	return out.Buf[:out.Len]
}

// TestStateOfOthers: what is no digest cannot be saved.
func TestStateOfOthers(t *testing.T) {
	m, _ := start(t, nil)
	h, pub, priv, _ := signingPair(t, m)
	query := func() error { return m.GetOperationState(h, &Output{Query: true}) }
	want(t, CKR_OPERATION_NOT_INITIALIZED, query())
	must(t, m.FindObjectsInit(h, nil))
	want(t, CKR_OPERATION_NOT_INITIALIZED, query())
	must(t, m.FindObjectsFinal(h))
	for _, begin := range []func() error{
		func() error { return m.SignInit(h, pure, priv) },
		func() error { return m.VerifyInit(h, pure, pub) },
		func() error { return m.VerifySignatureInit(h, pure, pub, nil) },
		func() error { return m.MessageSignInit(h, pure, priv) },
		func() error { return m.MessageVerifyInit(h, pure, pub) },
	} {
		must(t, begin())
		want(t, CKR_STATE_UNSAVEABLE, query())
		must(t, m.DigestInit(h, Mechanism{Type: CKM_SHA256}))
		want(t, CKR_STATE_UNSAVEABLE, query())
		must(t, m.SessionCancel(h, ^uint(0)))
		want(t, CKR_OPERATION_NOT_INITIALIZED, query())
	}
}

// FuzzState: whatever parses as a saved state encodes to the same bytes.
func FuzzState(f *testing.F) {
	for typ, row := range mechanisms {
		if row.info.Flags&CKF_DIGEST == 0 {
			continue
		}
		for _, n := range []int{0, 1, 300} {
			s := savedState{mech: typ, session: CKS_RW_USER_FUNCTIONS, parts: n > 0, serial: "0123456789abcdef", hash: row.digest()}
			s.hash.Write(make([]byte, n))
			b, err := s.encode()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := decodeState(b)
		if !ok {
			return
		}
		again, err := s.encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x encodes to %x (%v)", b, again, err)
		}
		s.hash.Write([]byte("goes on"))
		s.hash.Sum(nil)
	})
}
