// Package sealtest is the behavioural suite of sealstore. It runs over every
// Sealer, so that the store means the same with a TPM as in memory.
package sealtest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// Opener opens a Sealer on the device of that name, in this process or in
// another that the suite starts.
type Opener func(device string) (sealstore.Sealer, error)

// Suite runs the behaviour over one kind of Sealer. Its functions are called by
// several goroutines at once.
type Suite struct {
	Open Opener
	// Device makes a device that stands for a machine of its own.
	Device func(t *testing.T) string
	// Extend changes a PCR of a device, as other firmware does.
	Extend func(t *testing.T, device string, pcr int)
	// Kills is the number of processes that get killed while they write.
	Kills int
}

// PINs of the suite.
var (
	SOPIN   = []byte("so-pin-0815")
	UserPIN = []byte("user-pin-4711")
)

// Run runs the suite. The test binary's TestMain must call Main.
func (s Suite) Run(t *testing.T) {
	for _, c := range []struct {
		name string
		f    func(*testing.T, *fixture)
	}{
		{"Lifecycle", lifecycle},
		{"Slots", slots},
		{"PINs", pins},
		{"Lockout", lockout},
		{"Objects", objects},
		{"TwoProcesses", twoStores},
		{"Swapped", swapped},
		{"Damage", damage},
		{"ForeignMachine", foreign},
		{"Reinit", reinit},
		{"RenameDelete", renameDelete},
		{"Creation", creation},
		{"ExportRestore", exportRestore},
		{"RestoreReplaces", restoreReplaces},
		{"NotRecoverable", notRecoverable},
		{"Files", files},
		{"DeviceKeys", deviceKeys},
		{"NoPIN", noPIN},
		{"NoPINBound", noPINBound},
		{"Binding", binding},
		{"BindLater", bindLater},
		{"BindFails", bindFails},
		{"BindBeside", bindBeside},
		{"Goroutines", goroutines},
		{"Processes", processes},
		{"Killed", killed},
		{"KilledReinit", killedReinit},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // over a device, half of the time is its
			c.f(t, s.fixture(t))
		})
	}
}

// fixture is a store with an own device.
type fixture struct {
	suite  Suite
	device string
	dir    string
	store  *sealstore.Store
}

func (s Suite) fixture(t *testing.T) *fixture {
	f := &fixture{suite: s, device: s.Device(t), dir: filepath.Join(t.TempDir(), "store")}
	f.store = f.open(t)
	return f
}

// open opens the store once more, as another process would.
func (f *fixture) open(t *testing.T) *sealstore.Store {
	t.Helper()
	dev, err := f.suite.Open(f.device)
	if err != nil {
		t.Fatal(err)
	}
	st := sealstore.Open(f.dir, dev, nil)
	t.Cleanup(func() {
		st.Close()
		if err := dev.Close(); err != nil {
			t.Error(err)
		}
	})
	return st
}

// token makes a token with both PINs; the user is logged in.
func (f *fixture) token(t *testing.T) *sealstore.Token {
	t.Helper()
	return makeToken(t, f.store, "a token")
}

func makeToken(t *testing.T, st *sealstore.Store, label string) *sealstore.Token {
	t.Helper()
	info, err := st.Create(sealstore.InitParams{Label: label, SOPIN: SOPIN})
	if err != nil {
		t.Fatal(err)
	}
	tok, err := st.Token(info.Serial)
	if err != nil {
		t.Fatal(err)
	}
	ok(t, tok.Login(sealstore.SO, SOPIN))
	ok(t, tok.InitUserPIN(UserPIN))
	tok.Logout()
	ok(t, tok.Login(sealstore.User, UserPIN))
	return tok
}

func serial(t *testing.T, tok *sealstore.Token) string {
	t.Helper()
	info, err := tok.Info()
	ok(t, err)
	return info.Serial
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func fails(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
}

func all(t *testing.T, tok *sealstore.Token) map[sealstore.ID]sealstore.Object {
	t.Helper()
	list, err := tok.Objects()
	ok(t, err)
	m := map[sealstore.ID]sealstore.Object{}
	for _, o := range list {
		m[o.ID] = o
	}
	return m
}

func unseal(t *testing.T, tok *sealstore.Token, id sealstore.ID) ([]byte, error) {
	t.Helper()
	b, err := secmem.New(sealstore.MaxSecret)
	ok(t, err)
	defer b.Destroy()
	n, err := tok.Unseal(id, b.Bytes())
	return bytes.Clone(b.Bytes()[:n]), err
}

func seed() []byte {
	p := make([]byte, 32)
	rand.Read(p)
	return p
}

func lifecycle(t *testing.T, f *fixture) {
	if list, err := f.store.Tokens(); err != nil || len(list) != 0 {
		t.Fatal(list, err)
	}
	if _, err := os.Lstat(f.dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("listing made the store's directory", err)
	}
	info, err := f.store.Create(sealstore.InitParams{Label: "Zoë's token  ", SOPIN: SOPIN})
	ok(t, err)
	if info.Label != "Zoë's token" || info.Slot != 0 || info.UserPIN || len(info.Serial) != 16 ||
		time.Since(info.Created) > time.Hour {
		t.Fatalf("%+v", info)
	}
	tok, err := f.store.Token(info.Serial)
	ok(t, err)
	if again, _ := f.store.Token(info.Serial); again != tok {
		t.Fatal("another Token for the same serial number")
	}
	fails(t, tok.Login(sealstore.User, UserPIN), sealstore.ErrNoPIN)
	fails(t, tok.InitUserPIN(UserPIN), sealstore.ErrLocked)
	ok(t, tok.Login(sealstore.SO, SOPIN))
	ok(t, tok.InitUserPIN(UserPIN))
	_, err = tok.CreateObject(true, []byte("x"), nil, nil)
	fails(t, err, sealstore.ErrLocked)
	tok.Logout()
	ok(t, tok.Login(sealstore.User, UserPIN))
	secret := seed()
	o, err := tok.CreateObject(true, []byte("a key"), secret, nil)
	ok(t, err)
	tok.Logout()
	tok.Logout()
	_, err = unseal(t, tok, o.ID)
	fails(t, err, sealstore.ErrLocked)

	// As after a reboot.
	st := f.open(t)
	list, err := st.Tokens()
	ok(t, err)
	if len(list) != 1 || !list[0].UserPIN || list[0].Serial != info.Serial {
		t.Fatalf("%+v", list)
	}
	tok, err = st.Token(info.Serial)
	ok(t, err)
	if got := all(t, tok); len(got) != 0 {
		t.Fatal("private objects without login:", got)
	}
	ok(t, tok.Login(sealstore.User, UserPIN))
	got := all(t, tok)
	if g := got[o.ID]; len(got) != 1 || string(g.Body) != "a key" || !g.Private || !g.Sealed {
		t.Fatalf("%+v", got)
	}
	plain, err := unseal(t, tok, o.ID)
	ok(t, err)
	if !bytes.Equal(plain, secret) {
		t.Fatal("another secret came back")
	}
	modes(t, f.dir)
	_, err = st.Token("0000000000000000")
	fails(t, err, sealstore.ErrNotFound)
	_, err = st.Token("../../../../etc")
	fails(t, err, sealstore.ErrNotFound)
}

// modes checks that nobody else can look into the store.
func modes(t *testing.T, dir string) {
	t.Helper()
	ok(t, filepath.Walk(dir, func(path string, st os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		want := os.FileMode(0o600)
		if st.IsDir() {
			want = 0o700
		}
		if st.Mode().Perm() != want {
			t.Errorf("%s has mode %v", path, st.Mode())
		}
		return nil
	}))
}

func slots(t *testing.T, f *fixture) {
	for want := uint32(0); want < 3; want++ {
		n, err := f.store.FreeSlot()
		ok(t, err)
		if n != want {
			t.Fatalf("free slot %d, want %d", n, want)
		}
		info, err := f.store.Create(sealstore.InitParams{Label: "t", SOPIN: SOPIN, Slot: &n})
		ok(t, err)
		if info.Slot != n {
			t.Fatalf("slot %d, want %d", info.Slot, n)
		}
		_, err = f.store.Create(sealstore.InitParams{Label: "t", SOPIN: SOPIN, Slot: &n})
		fails(t, err, sealstore.ErrSlotTaken)
	}
	for _, pin := range []string{"", "123", string(make([]byte, 256))} {
		_, err := f.store.Create(sealstore.InitParams{Label: "t", SOPIN: []byte(pin)})
		fails(t, err, sealstore.ErrPINLength)
	}
	_, err := f.store.Create(sealstore.InitParams{Label: "a label of more than thirty-two bytes", SOPIN: SOPIN})
	fails(t, err, sealstore.ErrTooLarge)
	list, err := f.store.Tokens()
	ok(t, err)
	if len(list) != 3 {
		t.Fatalf("%+v", list)
	}
	for i, info := range list {
		if info.Slot != uint32(i) {
			t.Fatalf("%+v", list)
		}
	}
}

func pins(t *testing.T, f *fixture) {
	tok := f.token(t)
	secret := seed()
	o, err := tok.CreateObject(true, []byte("k"), secret, nil)
	ok(t, err)
	newPIN, newSO := []byte("another PIN of the user"), bytes.Repeat([]byte("S"), sealstore.MaxPIN)
	fails(t, tok.SetPIN(sealstore.User, UserPIN, []byte("abc")), sealstore.ErrPINLength)
	fails(t, tok.SetPIN(sealstore.User, []byte("wrong"), newPIN), sealstore.ErrAuth)
	ok(t, tok.SetPIN(sealstore.User, UserPIN, newPIN))
	plain, err := unseal(t, tok, o.ID) // the login goes on
	if err != nil || !bytes.Equal(plain, secret) {
		t.Fatal(plain, err)
	}
	tok.Logout()
	fails(t, tok.Login(sealstore.User, UserPIN), sealstore.ErrAuth)
	ok(t, tok.Login(sealstore.User, newPIN))
	tok.Logout()
	ok(t, tok.SetPIN(sealstore.User, newPIN, UserPIN)) // without a login
	ok(t, tok.SetPIN(sealstore.SO, SOPIN, newSO))
	ok(t, tok.Login(sealstore.SO, newSO))
	ok(t, tok.InitUserPIN(newPIN)) // unblock
	tok.Logout()
	ok(t, tok.Login(sealstore.User, newPIN))
	plain, err = unseal(t, tok, o.ID)
	if err != nil || !bytes.Equal(plain, secret) {
		t.Fatal(plain, err)
	}
	// A PIN that cannot have been set costs no try.
	before, err := f.store.Sealer().Lockout()
	ok(t, err)
	for _, pin := range [][]byte{nil, []byte("abc"), make([]byte, 256)} {
		fails(t, tok.Login(sealstore.User, pin), sealstore.ErrAuth)
	}
	after, err := f.store.Sealer().Lockout()
	ok(t, err)
	if after.Counter != before.Counter {
		t.Fatalf("%+v, then %+v", before, after)
	}
}

func lockout(t *testing.T, f *fixture) {
	tok := f.token(t)
	secret := seed()
	o, err := tok.CreateObject(true, []byte("k"), secret, nil)
	ok(t, err)
	state, err := f.store.Sealer().Lockout()
	ok(t, err)
	if state.Max == 0 || state.InLockout {
		t.Fatalf("%+v", state)
	}
	other := f.open(t)
	again, err := other.Token(serial(t, tok))
	ok(t, err)
	for i := state.Counter; i < state.Max; i++ {
		err := again.Login(sealstore.User, []byte("wrong PIN"))
		if !errors.Is(err, sealstore.ErrAuth) && !errors.Is(err, sealstore.ErrLockout) {
			t.Fatal(err)
		}
	}
	fails(t, again.Login(sealstore.User, UserPIN), sealstore.ErrLockout)
	state, err = other.Sealer().Lockout()
	ok(t, err)
	if !state.InLockout {
		t.Fatalf("%+v", state)
	}
	// The key of somebody who is logged in does not suffer from it.
	plain, err := unseal(t, tok, o.ID)
	if err != nil || !bytes.Equal(plain, secret) {
		t.Fatal(plain, err)
	}
}

func objects(t *testing.T, f *fixture) {
	tok := f.token(t)
	public, err := tok.CreateObject(false, []byte("for all"), nil, nil)
	ok(t, err)
	private, err := tok.CreateObject(true, []byte{}, nil, nil)
	ok(t, err)
	sealedPublic, err := tok.CreateObject(false, []byte("s"), []byte("S"), nil)
	ok(t, err)
	big := bytes.Repeat([]byte("b"), sealstore.MaxBody)
	large, err := tok.CreateObject(true, big, bytes.Repeat([]byte("s"), sealstore.MaxSecret), nil)
	ok(t, err)
	_, err = tok.CreateObject(true, append(big, 0), nil, nil)
	fails(t, err, sealstore.ErrTooLarge)
	_, err = tok.CreateObject(true, nil, []byte{}, nil)
	fails(t, err, sealstore.ErrTooLarge)

	first := all(t, tok)
	if len(first) != 4 || !bytes.Equal(first[large.ID].Body, big) || len(first[private.ID].Body) != 0 {
		t.Fatal("objects are missing")
	}
	for id, o := range all(t, tok) {
		if o.Stamp != first[id].Stamp {
			t.Error("the stamp of an unchanged object changed")
		}
	}
	if _, err := unseal(t, tok, public.ID); !errors.Is(err, sealstore.ErrNotFound) {
		t.Fatal(err)
	}
	tok.Logout()
	if got := all(t, tok); len(got) != 2 || string(got[public.ID].Body) != "for all" {
		t.Fatalf("%+v", got)
	}
	if p, err := unseal(t, tok, sealedPublic.ID); err != nil || string(p) != "S" {
		t.Fatal(p, err)
	}
	_, err = tok.UpdateObject(private.ID, private.Stamp, nil)
	fails(t, err, sealstore.ErrLocked)
	fails(t, tok.DeleteObject(private.ID), sealstore.ErrLocked)
	ok(t, tok.Login(sealstore.User, UserPIN))
	got := all(t, tok)
	if got[large.ID].Stamp != first[large.ID].Stamp || !bytes.Equal(got[large.ID].Body, big) {
		t.Error("a login changed an object")
	}
	changed, err := tok.UpdateObject(large.ID, large.Stamp, []byte("small"))
	ok(t, err)
	if changed.Stamp == large.Stamp || !changed.Sealed || string(changed.Body) != "small" {
		t.Fatalf("%+v", changed)
	}
	if p, err := unseal(t, tok, large.ID); err != nil || len(p) != sealstore.MaxSecret {
		t.Fatal(p, err)
	}
	_, err = tok.UpdateObject(large.ID, large.Stamp, nil)
	fails(t, err, sealstore.ErrChanged)
	if g := all(t, tok)[large.ID]; string(g.Body) != "small" || g.Stamp != changed.Stamp {
		t.Fatalf("%+v", g)
	}
	ok(t, tok.DeleteObject(large.ID))
	fails(t, tok.DeleteObject(large.ID), sealstore.ErrNotFound)
	_, err = tok.UpdateObject(large.ID, changed.Stamp, nil)
	fails(t, err, sealstore.ErrNotFound)
	if got := all(t, tok); len(got) != 3 {
		t.Fatalf("%+v", got)
	}
}

func twoStores(t *testing.T, f *fixture) {
	a := f.token(t)
	b, err := f.open(t).Token(serial(t, a))
	ok(t, err)
	ok(t, b.Login(sealstore.User, UserPIN))
	o, err := a.CreateObject(true, []byte("1"), []byte("secret"), nil)
	ok(t, err)
	seen := all(t, b)[o.ID]
	if string(seen.Body) != "1" {
		t.Fatalf("%+v", seen)
	}
	// Same size, within one tick of the clock.
	for i := range 20 {
		body := []byte{byte('a' + i)}
		o, err = a.UpdateObject(o.ID, o.Stamp, body)
		ok(t, err)
		now := all(t, b)[o.ID]
		if !bytes.Equal(now.Body, body) || now.Stamp == seen.Stamp {
			t.Fatalf("%q, want %q; stamps %d, %d", now.Body, body, seen.Stamp, now.Stamp)
		}
		seen = now
	}
	if _, err = a.UpdateObject(o.ID, o.Stamp, []byte("from a")); err != nil {
		t.Fatal(err)
	}
	_, err = b.UpdateObject(o.ID, seen.Stamp, []byte("from b"))
	fails(t, err, sealstore.ErrChanged)
	ok(t, b.DeleteObject(o.ID))
	_, err = a.UpdateObject(o.ID, o.Stamp, []byte("x"))
	fails(t, err, sealstore.ErrNotFound)
	if got := all(t, a); len(got) != 0 {
		t.Fatalf("%+v", got)
	}
	// A PIN changed elsewhere holds at once, and a login there goes on.
	ok(t, a.SetPIN(sealstore.User, UserPIN, []byte("changed by a")))
	_, err = b.CreateObject(true, []byte("2"), []byte("secret"), nil)
	ok(t, err)
	b.Logout()
	ok(t, b.Login(sealstore.User, []byte("changed by a")))
	// The token's directory goes away.
	ok(t, os.RemoveAll(filepath.Join(f.dir, "tokens", serial(t, a))))
	_, err = b.Objects()
	fails(t, err, sealstore.ErrNotFound)
	_, err = b.CreateObject(true, nil, nil, nil)
	fails(t, err, sealstore.ErrNotFound)
	_, err = b.Info()
	fails(t, err, sealstore.ErrNotFound)
}

// swapped puts files that are each in order into wrong places.
func swapped(t *testing.T, f *fixture) {
	tok := f.token(t)
	dir := filepath.Join(f.dir, "tokens", serial(t, tok), "objects")
	path := func(o sealstore.Object) string { return filepath.Join(dir, fmt.Sprintf("%x", o.ID[:])) }
	var o [4]sealstore.Object
	for i := range o {
		var err error
		o[i], err = tok.CreateObject(i%2 == 0, []byte{byte(i)}, []byte("secret"), nil)
		ok(t, err)
	}
	expect := func(what string, missing ...sealstore.Object) {
		t.Helper()
		got := all(t, tok)
		for _, m := range missing {
			if _, there := got[m.ID]; there {
				t.Errorf("%s: accepted", what)
			}
			_, err := unseal(t, tok, m.ID)
			fails(t, err, sealstore.ErrIntegrity)
			_, err = tok.UpdateObject(m.ID, m.Stamp, nil)
			fails(t, err, sealstore.ErrIntegrity)
		}
		if len(got) != len(o)-len(missing) {
			t.Errorf("%s: %d objects are left", what, len(got))
		}
		if _, err := unseal(t, tok, o[3].ID); err != nil {
			t.Errorf("%s: another object suffers: %v", what, err)
		}
	}
	expect("nothing")
	exchange(t, path(o[0]), path(o[2]))
	expect("two private objects exchanged", o[0], o[2])
	exchange(t, path(o[0]), path(o[2]))
	expect("and back")
	exchange(t, path(o[0]), path(o[1]))
	expect("a private and a public object exchanged", o[0], o[1])
	exchange(t, path(o[0]), path(o[1]))

	other := makeToken(t, f.store, "another")
	their, err := other.CreateObject(true, []byte("theirs"), nil, nil)
	ok(t, err)
	data, err := os.ReadFile(filepath.Join(f.dir, "tokens", serial(t, other), "objects", fmt.Sprintf("%x", their.ID[:])))
	ok(t, err)
	copied := filepath.Join(dir, fmt.Sprintf("%x", their.ID[:]))
	ok(t, os.WriteFile(copied, data, 0o600))
	expect("an object of another token")
	ok(t, os.Remove(copied))

	ok(t, os.Rename(path(o[0]), filepath.Join(dir, "00000000000000000000000000000000")))
	got := all(t, tok)
	if len(got) != 3 {
		t.Errorf("renamed: %d objects", len(got))
	}
}

func exchange(t *testing.T, a, b string) {
	t.Helper()
	ok(t, os.Rename(a, a+".x"))
	ok(t, os.Rename(b, a))
	ok(t, os.Rename(a+".x", b))
}

// foreign carries a store to another machine.
func foreign(t *testing.T, f *fixture) {
	tok := f.token(t)
	dev, err := f.suite.Open(f.suite.Device(t))
	ok(t, err)
	defer dev.Close()
	there := sealstore.Open(f.dir, dev, nil)
	list, err := there.Tokens()
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	stolen, err := there.Token(serial(t, tok))
	ok(t, err)
	fails(t, stolen.Login(sealstore.User, UserPIN), sealstore.ErrParent)
	_, err = stolen.Objects()
	fails(t, err, sealstore.ErrParent)
	found, err := stolen.Check()
	if fails(t, err, sealstore.ErrParent); len(found) != 0 {
		t.Error("of another machine, and not damaged:", found)
	}
	fails(t, stolen.SetPIN(sealstore.SO, SOPIN, UserPIN), sealstore.ErrParent)
}

func reinit(t *testing.T, f *fixture) {
	tok := f.token(t)
	before, err := tok.Info()
	ok(t, err)
	o, err := tok.CreateObject(true, []byte("lost"), []byte("secret"), nil)
	ok(t, err)
	_, err = tok.CreateObject(false, []byte("lost too"), nil, nil)
	ok(t, err)
	elsewhere, err := f.open(t).Token(before.Serial)
	ok(t, err)
	ok(t, elsewhere.Login(sealstore.User, UserPIN))
	if got := all(t, elsewhere); len(got) != 2 {
		t.Fatalf("%+v", got)
	}
	_, err = f.store.Reinit(before.Serial, "x", UserPIN, nil)
	fails(t, err, sealstore.ErrAuth)
	if got := all(t, tok); len(got) != 2 {
		t.Fatal("a wrong SO PIN destroyed objects")
	}
	info, err := f.store.Reinit(before.Serial, "new", SOPIN, nil)
	ok(t, err)
	if info.Serial != before.Serial || info.Slot != before.Slot || info.Label != "new" || info.UserPIN {
		t.Fatalf("%+v", info)
	}
	for _, x := range []*sealstore.Token{tok, elsewhere} {
		if got := all(t, x); len(got) != 0 {
			t.Fatalf("%+v", got)
		}
		_, err = x.CreateObject(true, nil, nil, nil)
		fails(t, err, sealstore.ErrLocked)
		if _, err := unseal(t, x, o.ID); err == nil {
			t.Fatal("unsealed an object of the old token")
		}
		fails(t, x.Login(sealstore.User, UserPIN), sealstore.ErrNoPIN)
	}
	ok(t, elsewhere.Login(sealstore.SO, SOPIN))
	ok(t, elsewhere.InitUserPIN(UserPIN))
	ok(t, tok.Login(sealstore.User, UserPIN))
	_, err = tok.CreateObject(true, []byte("kept"), []byte("secret"), nil)
	ok(t, err)
	if left, _ := filepath.Glob(filepath.Join(f.dir, "tokens", ".tmp-*")); len(left) != 0 {
		t.Error("left behind:", left)
	}
	_, err = f.store.Reinit("0123456789abcdef", "x", SOPIN, nil)
	fails(t, err, sealstore.ErrNotFound)
}

// goroutines has everything happen at once in one process.
func goroutines(t *testing.T, f *fixture) {
	tok := f.token(t)
	const writers, each = 4, 4
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := tok.Objects(); err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	var writing sync.WaitGroup
	for range writers {
		writing.Add(1)
		go func() {
			defer writing.Done()
			for range each {
				secret := seed()
				o, err := tok.CreateObject(true, []byte("new"), secret, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if o, err = tok.UpdateObject(o.ID, o.Stamp, []byte("changed")); err != nil {
					t.Error(err)
					return
				}
				if p, err := unseal(t, tok, o.ID); err != nil || !bytes.Equal(p, secret) {
					t.Error(err)
				}
			}
		}()
	}
	// Logging out and in beside the readers must not disturb them.
	other := f.open(t)
	second, err := other.Token(serial(t, tok))
	ok(t, err)
	for range 3 {
		if err := second.Login(sealstore.User, UserPIN); err != nil {
			t.Error(err)
		}
		if _, err := second.Objects(); err != nil {
			t.Error(err)
		}
		second.Logout()
	}
	writing.Wait()
	close(stop)
	wg.Wait()
	got := all(t, tok)
	if len(got) != writers*each {
		t.Fatalf("%d objects, want %d", len(got), writers*each)
	}
	for _, o := range got {
		if string(o.Body) != "changed" {
			t.Errorf("%+v", o)
		}
	}
}

func renameDelete(t *testing.T, f *fixture) {
	tok := f.token(t)
	ser := serial(t, tok)
	id, err := put(tok)
	ok(t, err)
	other, err := f.store.Create(sealstore.InitParams{Label: "other", SOPIN: SOPIN})
	ok(t, err)

	fails(t, tok.Rename([]byte("not the so pin"), "new"), sealstore.ErrAuth)
	if err := tok.Rename(SOPIN, "a label of more than thirty-two bytes"); err == nil {
		t.Error("a long label was taken")
	}
	ok(t, tok.Rename(SOPIN, "new name"))
	info, err := tok.Info()
	ok(t, err)
	if info.Label != "new name" || info.Serial != ser {
		t.Errorf("%+v", info)
	}
	ok(t, f.opens(t, ser, id))

	fails(t, f.store.Delete(ser, []byte("not the so pin")), sealstore.ErrAuth)
	fails(t, f.store.Delete("0123456789abcdef", SOPIN), sealstore.ErrNotFound)
	ok(t, f.opens(t, ser, id))
	ok(t, f.store.Delete(ser, SOPIN))
	list, err := f.store.Tokens()
	ok(t, err)
	if len(list) != 1 || list[0].Serial != other.Serial {
		t.Errorf("left: %+v", list)
	}
	_, err = unseal(t, tok, id)
	if err == nil {
		t.Error("a key of a deleted token opens")
	}
	left, _ := os.ReadDir(filepath.Join(f.dir, "tokens"))
	if len(left) != 1 {
		t.Errorf("files are left: %v", left)
	}
}
