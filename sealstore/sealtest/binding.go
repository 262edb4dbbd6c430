package sealtest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

var spec = &sealstore.BindingSpec{Bank: "sha256", PCRs: []int{7, 0}}

// Extension is what Suite.Extend extends a PCR by.
var Extension = bytes.Repeat([]byte{0xaa}, 32)

// extended is the value that a PCR has after Suite.Extend.
func extended(value []byte) []byte {
	d := sha256.Sum256(append(bytes.Clone(value), Extension...))
	return d[:]
}

// boundToken makes a token that is bound, with a key in it.
func (f *fixture) boundToken(t *testing.T) (*sealstore.Token, sealstore.ID) {
	t.Helper()
	info, err := f.store.Create(sealstore.InitParams{Label: "bound", SOPIN: SOPIN, Binding: spec})
	ok(t, err)
	tok, err := f.store.Token(info.Serial)
	ok(t, err)
	ok(t, tok.Login(sealstore.SO, SOPIN))
	ok(t, tok.InitUserPIN(UserPIN))
	ok(t, tok.Login(sealstore.User, UserPIN))
	id, err := put(tok)
	ok(t, err)
	return tok, id
}

// opens tells whether a key can be used by whoever knows the user PIN, in a
// process that starts now.
func (f *fixture) opens(t *testing.T, ser string, ids ...sealstore.ID) error {
	t.Helper()
	tok, err := f.open(t).Token(ser)
	ok(t, err)
	if err := tok.Login(sealstore.User, UserPIN); err != nil {
		return err
	}
	objects := all(t, tok)
	for _, id := range ids {
		secret, err := unseal(t, tok, id)
		if err != nil {
			return err
		}
		if !bytes.Equal(secret, objects[id].Body) {
			t.Fatalf("object %x opens to something else", id)
		}
	}
	return nil
}

func (f *fixture) extend(t *testing.T, pcr int) {
	t.Helper()
	f.suite.Extend(t, f.device, pcr)
}

func pcrs(t *testing.T, tok *sealstore.Token) (b *sealstore.Binding, now [][]byte) {
	t.Helper()
	b, now, err := tok.Binding()
	ok(t, err)
	return b, now
}

// binding takes a token that was made bound through changes of the platform.
func binding(t *testing.T, f *fixture) {
	tok, id := f.boundToken(t)
	ser := serial(t, tok)
	b, now := pcrs(t, tok)
	if fmt.Sprint(b.PCRs) != "[0 7]" || b.Bank != "sha256" || !b.Open(now) || len(b.Changes(now)) != 0 {
		t.Fatalf("%+v, now %x", b, now)
	}
	ok(t, f.opens(t, ser, id))
	f.extend(t, 3)
	ok(t, f.opens(t, ser, id)) // not one of the PCRs
	f.extend(t, 7)

	// Neither a login nor an unseal of who has logged in before.
	err := f.opens(t, ser, id)
	fails(t, err, sealstore.ErrPCR)
	was, now := now, mustNow(t, tok)
	if want := fmt.Sprintf("PCR 7 (sha256) is %x, sealed to %x", now[1], was[1]); !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "PCR 0 ") {
		t.Errorf("%v: %s is expected", err, want)
	}
	_, err = unseal(t, tok, id)
	fails(t, err, sealstore.ErrPCR)
	sealedNow, err := put(tok) // under a login from before; it opens once the rest does
	ok(t, err)
	_, err = unseal(t, tok, sealedNow)
	fails(t, err, sealstore.ErrPCR)
	fails(t, tok.SetPIN(sealstore.User, UserPIN, []byte("another pin")), sealstore.ErrPCR)
	// The SO still comes in, and may change the SO's PIN.
	ok(t, tok.SetPIN(sealstore.SO, SOPIN, []byte("other so")))
	ok(t, tok.SetPIN(sealstore.SO, []byte("other so"), SOPIN))

	// Rebinding needs the SO's PIN, and that alone.
	fails(t, tok.Rebind([]byte("wrong so pin"), nil), sealstore.ErrAuth)
	fails(t, tok.ConfirmBinding(SOPIN), sealstore.ErrPCR)
	fails(t, f.opens(t, ser, id), sealstore.ErrPCR)
	ok(t, tok.Rebind(SOPIN, nil))
	ok(t, f.opens(t, ser, id, sealedNow))
	_, err = unseal(t, tok, id)
	ok(t, err)
	if b, now := pcrs(t, tok); len(b.Approvals) != 1 || !b.Open(now) {
		t.Fatalf("%+v", b)
	}

	// A change that is known before.
	for _, bad := range []map[int][]byte{{3: now[1]}, {7: now[1][:31]}, {24: now[1]}} {
		if err := tok.Rebind(SOPIN, bad); err == nil {
			t.Errorf("predicted %v", bad)
		}
	}
	ok(t, tok.Rebind(SOPIN, map[int][]byte{7: extended(now[1])}))
	ok(t, f.opens(t, ser, id))
	f.extend(t, 7)
	ok(t, f.opens(t, ser, id))
	if b, _ := pcrs(t, tok); len(b.Approvals) != 2 {
		t.Fatalf("%+v", b)
	}
	ok(t, tok.ConfirmBinding(SOPIN))
	ok(t, f.opens(t, ser, id))
	if b, now := pcrs(t, tok); len(b.Approvals) != 1 || !b.Open(now) {
		t.Fatalf("%+v", b)
	}
	ok(t, tok.SetPIN(sealstore.User, UserPIN, []byte("another pin")))
	ok(t, tok.SetPIN(sealstore.User, []byte("another pin"), UserPIN))
	ok(t, tok.Login(sealstore.User, UserPIN))
	second, err := put(tok)
	ok(t, err)
	ok(t, f.opens(t, ser, id, second))
	f.extend(t, 0)
	fails(t, f.opens(t, ser, id, second), sealstore.ErrPCR)

	// Unbinding in an approved state only; the user's PIN is needed.
	fails(t, tok.Unbind(UserPIN, SOPIN, nil), sealstore.ErrPCR)
	ok(t, tok.Rebind(SOPIN, nil))
	fails(t, tok.Unbind([]byte("wrong pin"), SOPIN, nil), sealstore.ErrAuth)
	ok(t, f.opens(t, ser, id, second))
	wantUnbound(t, tok, 0)
	ok(t, tok.Unbind(UserPIN, SOPIN, nil))
	f.extend(t, 0)
	ok(t, f.opens(t, ser, id, second))
	fails(t, tok.Rebind(SOPIN, nil), sealstore.ErrUnbound)
	fails(t, tok.Unbind(UserPIN, SOPIN, nil), sealstore.ErrUnbound)
	if b, _ := pcrs(t, tok); b != nil {
		t.Fatalf("%+v", b)
	}
}

func mustNow(t *testing.T, tok *sealstore.Token) [][]byte {
	t.Helper()
	_, now := pcrs(t, tok)
	return now
}

func wantUnbound(t *testing.T, tok *sealstore.Token, want int) {
	t.Helper()
	n, err := tok.Unbound()
	ok(t, err)
	if n != want {
		t.Errorf("%d seals are unbound, not %d", n, want)
	}
}

// bindLater binds a token that was made without.
func bindLater(t *testing.T, f *fixture) {
	tok := f.token(t)
	ser := serial(t, tok)
	var ids []sealstore.ID
	for range 3 {
		id, err := put(tok)
		ok(t, err)
		ids = append(ids, id)
	}
	for _, bad := range []sealstore.BindingSpec{{Bank: "sha256"}, {Bank: "md5", PCRs: []int{7}}, {Bank: "sha256", PCRs: []int{7, 7}}, {Bank: "sha256", PCRs: []int{24}}} {
		if err := tok.Bind(UserPIN, SOPIN, bad, nil); err == nil {
			t.Errorf("bound to %+v", bad)
		}
	}
	fails(t, tok.Bind([]byte("wrong pin"), SOPIN, *spec, nil), sealstore.ErrAuth)
	fails(t, tok.Bind(UserPIN, []byte("wrong pin"), *spec, nil), sealstore.ErrAuth)
	wantUnbound(t, tok, 3)
	f.extend(t, 7)
	ok(t, f.opens(t, ser, ids...))
	var steps []string
	ok(t, tok.Bind(UserPIN, SOPIN, *spec, func(done, total int) { steps = append(steps, fmt.Sprintf("%d of %d", done, total)) }))
	if got := strings.Join(steps, ", "); got != "1 of 3, 2 of 3, 3 of 3" {
		t.Errorf("the steps were %s", got)
	}
	wantUnbound(t, tok, 0)
	ok(t, f.opens(t, ser, ids...))
	f.extend(t, 7)
	fails(t, f.opens(t, ser), sealstore.ErrPCR)
	for _, id := range ids {
		_, err := unseal(t, tok, id) // by the login from before
		fails(t, err, sealstore.ErrPCR)
	}
	ok(t, tok.Rebind(SOPIN, nil))
	ok(t, f.opens(t, ser, ids...))

	// Bound to other PCRs, without unbinding first.
	ok(t, tok.Bind(UserPIN, SOPIN, sealstore.BindingSpec{Bank: "sha256", PCRs: []int{3}}, nil))
	f.extend(t, 7)
	ok(t, f.opens(t, ser, ids...))
	f.extend(t, 3)
	fails(t, f.opens(t, ser, ids...), sealstore.ErrPCR)

	// Made anew: bound or not, as is asked.
	_, err := f.store.Reinit(ser, "again", SOPIN, nil)
	ok(t, err)
	if b, _ := pcrs(t, tok); b != nil {
		t.Errorf("still bound: %+v", b)
	}
	_, err = f.store.Reinit(ser, "again", SOPIN, spec)
	ok(t, err)
	if b, now := pcrs(t, tok); b == nil || !b.Open(now) {
		t.Errorf("not bound: %+v", b)
	}
}

// bindFails has binding and unbinding stop after each number of seals: every
// key stays usable, and doing it again finishes the work.
func bindFails(t *testing.T, f *fixture) {
	tok := f.token(t)
	ser := serial(t, tok)
	var ids []sealstore.ID
	for range 3 {
		id, err := put(tok)
		ok(t, err)
		ids = append(ids, id)
	}
	stop := errors.New("stopped")
	for _, unbind := range []bool{false, true} {
		change := func(st *sealstore.Token) error {
			if unbind {
				return st.Unbind(UserPIN, SOPIN, nil)
			}
			return st.Bind(UserPIN, SOPIN, *spec, nil)
		}
		for left := 0; ; left++ {
			dev, err := f.suite.Open(f.device)
			ok(t, err)
			counted := &stopping{Sealer: dev, left: left, err: stop}
			victim, err := sealstore.Open(f.dir, counted, nil).Token(ser)
			ok(t, err)
			err = change(victim)
			ok(t, dev.Close())
			ok(t, f.opens(t, ser, ids...))
			if err == nil {
				if left < 4 {
					t.Errorf("only %d seals were made", left)
				}
				break
			}
			fails(t, err, stop)
			if b, _ := pcrs(t, tok); b != nil {
				f.extend(t, 7)
				fails(t, f.opens(t, ser), sealstore.ErrPCR)
				ok(t, tok.Rebind(SOPIN, nil))
				ok(t, f.opens(t, ser, ids...))
			}
		}
		if unbind {
			wantUnbound(t, tok, len(ids))
		} else {
			wantUnbound(t, tok, 0)
		}
	}
}

// stopping is a Sealer that seals so many times, and no more.
type stopping struct {
	sealstore.Sealer
	left int
	err  error
}

func (s *stopping) Seal(parent []byte, secret, auth []byte, o sealstore.SealOptions) (sealstore.Blob, error) {
	if s.left == 0 {
		return sealstore.Blob{}, s.err
	}
	s.left--
	return s.Sealer.Seal(parent, secret, auth, o)
}

// bindBeside binds and unbinds a token while another process makes a key: the
// key is bound as the token is.
func bindBeside(t *testing.T, f *fixture) {
	ser := serial(t, f.token(t))
	dev, err := f.suite.Open(f.device)
	ok(t, err)
	defer dev.Close()
	hooked := &hooked{Sealer: dev}
	maker, err := sealstore.Open(f.dir, hooked, nil).Token(ser)
	ok(t, err)
	ok(t, maker.Login(sealstore.User, UserPIN))
	other, err := f.open(t).Token(ser)
	ok(t, err)
	for n, change := range []func() error{
		func() error { return other.Bind(UserPIN, SOPIN, *spec, nil) },
		func() error { return other.Rebind(SOPIN, nil) },
		func() error { return other.Unbind(UserPIN, SOPIN, nil) },
	} {
		hooked.during = func() { ok(t, change()) }
		id, err := put(maker)
		ok(t, err)
		if hooked.during != nil {
			t.Fatal("nothing was sealed")
		}
		wantUnbound(t, other, []int{0, 0, 3}[n])
		ok(t, f.opens(t, ser, id))
	}
}

// hooked is a Sealer that runs a function before it hands a new seal out.
type hooked struct {
	sealstore.Sealer
	during func()
}

func (s *hooked) Seal(parent []byte, secret, auth []byte, o sealstore.SealOptions) (sealstore.Blob, error) {
	b, err := s.Sealer.Seal(parent, secret, auth, o)
	if f := s.during; f != nil {
		s.during = nil
		f()
	}
	return b, err
}
