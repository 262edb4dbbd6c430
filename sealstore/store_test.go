package sealstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
	"github.com/InterCooperative-Network/icn-p11/sealstore/sealtest"
)

// journal collects log lines.
type journal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(p)
}

func (j *journal) lines() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.buf.String(), "\n")
}

func (j *journal) has(text string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Contains(j.buf.String(), text)
}

// newToken makes a token with both PINs in dir and logs the user in.
func newToken(t testing.TB, dir string) (*sealstore.Store, *sealstore.Token, *memseal.Sealer, *journal) {
	t.Helper()
	must(t, os.Chmod(dir, 0o700))
	dev, j := memseal.New(), new(journal)
	st := sealstore.Open(dir, dev, slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelWarn})))
	t.Cleanup(st.Close)
	info, err := st.Create(sealstore.InitParams{Label: "t", SOPIN: sealtest.SOPIN})
	must(t, err)
	tok, err := st.Token(info.Serial)
	must(t, err)
	must(t, tok.Login(sealstore.SO, sealtest.SOPIN))
	must(t, tok.InitUserPIN(sealtest.UserPIN))
	must(t, tok.Login(sealstore.User, sealtest.UserPIN))
	return st, tok, dev, j
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func tokenPath(t *testing.T, dir string, tok *sealstore.Token) string {
	t.Helper()
	info, err := tok.Info()
	must(t, err)
	return filepath.Join(dir, "tokens", info.Serial)
}

// TestInfo: the token file is read again when it is another one, and not before.
func TestInfo(t *testing.T) {
	st, tok, _, _ := newToken(t, t.TempDir())
	info, err := tok.Info()
	must(t, err)
	measure := func(tok *sealstore.Token) float64 {
		return testing.AllocsPerRun(100, func() {
			if again, err := tok.Info(); err != nil || again.Label != "t" {
				t.Errorf("%+v, %v", again, err)
			}
		})
	}
	anew := measure(tok) // too young for its times to tell anything
	sealstore.Settle(tok)
	if kept := measure(tok); kept > anew/2 {
		t.Errorf("%v allocations, and %v when the file is read", kept, anew)
	}
	other, err := st.Token(info.Serial)
	must(t, err)
	must(t, other.Rename(sealtest.SOPIN, "another"))
	if info, err := tok.Info(); err != nil || info.Label != "another" {
		t.Errorf("after a change: %+v, %v", info, err)
	}
	must(t, st.Delete(info.Serial, sealtest.SOPIN))
	if info, err := tok.Info(); !errors.Is(err, sealstore.ErrNotFound) {
		t.Errorf("after the end: %+v, %v", info, err)
	}
}

// TestTraffic: nothing is asked of the TPM that need not be.
func TestTraffic(t *testing.T) {
	dir := t.TempDir()
	st, tok, dev, _ := newToken(t, dir)
	o, err := tok.CreateObject(true, []byte("k"), []byte("secret"), nil)
	must(t, err)
	_, err = tok.Objects()
	must(t, err)
	dst, err := secmem.New(64)
	must(t, err)
	defer dst.Destroy()

	before := dev.Commands()
	for range 10 {
		if _, err := tok.Objects(); err != nil {
			t.Fatal(err)
		}
		if _, err := st.Tokens(); err != nil {
			t.Fatal(err)
		}
		if _, err := tok.Info(); err != nil {
			t.Fatal(err)
		}
	}
	if n := dev.Commands() - before; n != 0 {
		t.Errorf("listing costs %d commands", n)
	}
	before = dev.Commands()
	_, err = tok.Unseal(o.ID, dst.Bytes())
	must(t, err)
	if n := dev.Commands() - before; n != 1 {
		t.Errorf("unsealing costs %d commands", n)
	}
	before = dev.Commands()
	_, err = tok.CreateObject(true, []byte("k"), nil, nil)
	must(t, err)
	if n := dev.Commands() - before; n != 0 {
		t.Errorf("an object without a secret costs %d commands", n)
	}

	// Without a TPM the tokens still show, and whatever needs none works.
	dev.Fail(func(memseal.Op) error { return fmt.Errorf("gone: %w", sealstore.ErrUnavailable) })
	if list, err := st.Tokens(); err != nil || len(list) != 1 {
		t.Error(list, err)
	}
	if list, err := tok.Objects(); err != nil || len(list) != 2 {
		t.Error(list, err)
	}
	_, err = tok.Unseal(o.ID, dst.Bytes())
	if !errors.Is(err, sealstore.ErrUnavailable) {
		t.Error(err)
	}
	if err := tok.Login(sealstore.User, sealtest.UserPIN); !errors.Is(err, sealstore.ErrUnavailable) {
		t.Error(err)
	}
	if err := tok.SetPIN(sealstore.User, sealtest.UserPIN, []byte("other")); !errors.Is(err, sealstore.ErrUnavailable) {
		t.Error(err)
	}
	if _, err := st.Create(sealstore.InitParams{SOPIN: sealtest.SOPIN}); !errors.Is(err, sealstore.ErrUnavailable) {
		t.Error(err)
	}
	dev.Fail(nil)
	must(t, tok.Login(sealstore.User, sealtest.UserPIN))
	dev.ReplaceParent()
	_, err = tok.Unseal(o.ID, dst.Bytes())
	if !errors.Is(err, sealstore.ErrParent) {
		t.Error(err)
	}
}

// TestFailingStep has each command of the TPM fail in turn: what was there
// before stays and works.
func TestFailingStep(t *testing.T) {
	dir := t.TempDir()
	st, tok, dev, _ := newToken(t, dir)
	info, err := tok.Info()
	must(t, err)
	kept, err := tok.CreateObject(true, []byte("k"), []byte("secret"), nil)
	must(t, err)
	fault := errors.New("injected")
	for _, c := range []struct {
		name string
		act  func() error
	}{
		{"SetPIN", func() error { return tok.SetPIN(sealstore.User, sealtest.UserPIN, sealtest.UserPIN) }},
		{"Create", func() error {
			_, err := st.Create(sealstore.InitParams{Label: "x", SOPIN: sealtest.SOPIN})
			return err
		}},
		{"CreateObject", func() error { _, err := tok.CreateObject(true, nil, []byte("s"), nil); return err }},
		{"Reinit", func() error {
			_, err := st.Reinit(info.Serial, "x", sealtest.SOPIN, nil)
			return err
		}},
	} {
		for step := 1; ; step++ {
			n := 0
			dev.Fail(func(op memseal.Op) error {
				if op == memseal.OpDevice {
					return nil // may fail
				}
				if n++; n == step {
					return fault
				}
				return nil
			})
			err := c.act()
			dev.Fail(nil)
			if n < step {
				must(t, err) // no command is left to fail
				break
			}
			if !errors.Is(err, fault) {
				t.Fatalf("%s, step %d: %v", c.name, step, err)
			}
			tok.Logout()
			must(t, tok.Login(sealstore.User, sealtest.UserPIN))
			list, err := tok.Objects()
			must(t, err)
			if !hasObject(list, kept.ID) {
				t.Fatalf("%s, step %d: %+v", c.name, step, list)
			}
		}
	}
}

func hasObject(list []sealstore.Object, id sealstore.ID) bool {
	for _, o := range list {
		if o.ID == id {
			return true
		}
	}
	return false
}

// TestDamagedObject flips every bit position's byte and cuts the file at many
// lengths: that object is gone, the log says so once, all others stay.
func TestDamagedObject(t *testing.T) {
	dir := t.TempDir()
	_, tok, _, j := newToken(t, dir)
	for _, private := range []bool{true, false} {
		o, err := tok.CreateObject(private, []byte("victim"), []byte("secret"), nil)
		must(t, err)
		other, err := tok.CreateObject(private, []byte("bystander"), []byte("secret"), nil)
		must(t, err)
		path := filepath.Join(tokenPath(t, dir, tok), "objects", fmt.Sprintf("%x", o.ID[:]))
		good, err := os.ReadFile(path)
		must(t, err)
		try := func(what string, data []byte) {
			t.Helper()
			must(t, os.WriteFile(path, data, 0o600))
			before := j.lines()
			for range 2 {
				list, err := tok.Objects()
				must(t, err)
				if hasObject(list, o.ID) || !hasObject(list, other.ID) {
					t.Fatalf("%s: %+v", what, list)
				}
			}
			if n := j.lines() - before; n != 1 {
				t.Errorf("%s: %d lines in the log", what, n)
			}
			dst, err := secmem.New(64)
			must(t, err)
			defer dst.Destroy()
			if _, err := tok.Unseal(o.ID, dst.Bytes()); !errors.Is(err, sealstore.ErrIntegrity) {
				t.Fatalf("%s: %v", what, err)
			}
		}
		for i := range good {
			data := bytes.Clone(good)
			data[i] ^= 1 << (i % 8)
			try(fmt.Sprint("byte ", i), data)
		}
		for n := 0; n < len(good); n += 7 {
			try(fmt.Sprint("cut to ", n), good[:n])
		}
		try("longer", append(bytes.Clone(good), 0))
		must(t, os.WriteFile(path, good, 0o600))
		list, err := tok.Objects()
		must(t, err)
		if !hasObject(list, o.ID) {
			t.Fatal("the restored file is not accepted")
		}
	}
}

// TestDamagedToken alters the token file: no login succeeds with it, another
// token is not affected, and a login that exists ends.
func TestDamagedToken(t *testing.T) {
	dir := t.TempDir()
	st, tok, dev, _ := newToken(t, dir)
	_, err := st.Create(sealstore.InitParams{Label: "bystander", SOPIN: sealtest.SOPIN})
	must(t, err)
	path := filepath.Join(tokenPath(t, dir, tok), "token")
	good, err := os.ReadFile(path)
	must(t, err)
	// A step that shares no factor with the sizes of the fields.
	for i := 0; i < len(good); i += 5 {
		data := bytes.Clone(good)
		data[i] ^= 1 << (i % 8)
		must(t, os.WriteFile(path, data, 0o600))
		if err := tok.Login(sealstore.User, sealtest.UserPIN); err == nil {
			t.Fatalf("byte %d: the login succeeds", i)
		}
		dev.ResetLockout()
		list, err := st.Tokens()
		must(t, err)
		if len(list) == 0 || len(list) > 2 {
			t.Fatalf("byte %d: %+v", i, list)
		}
		if n, err := st.FreeSlot(); err != nil || n < 2 {
			t.Fatalf("byte %d: free slot %d, %v", i, n, err)
		}
	}
	must(t, os.WriteFile(path, good, 0o600))
	must(t, tok.Login(sealstore.User, sealtest.UserPIN))

	// The label is not confidential, but its change ends the login.
	data := bytes.Clone(good)
	data[7+1+8+4+8+1] = 'X'
	must(t, os.WriteFile(path, data, 0o600))
	if _, err := tok.Objects(); !errors.Is(err, sealstore.ErrIntegrity) {
		t.Fatal(err)
	}
	if _, err := tok.CreateObject(true, nil, nil, nil); !errors.Is(err, sealstore.ErrLocked) {
		t.Fatal(err)
	}
	if err := tok.SetPIN(sealstore.User, sealtest.UserPIN, []byte("other")); !errors.Is(err, sealstore.ErrIntegrity) {
		t.Fatal(err)
	}
}

// TestSameSlot: a copied token that claims a slot in use does not hide its owner.
func TestSameSlot(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	st, _, _, j := newToken(t, a)
	_, other, _, _ := newToken(t, b)
	from := tokenPath(t, b, other)
	must(t, os.CopyFS(filepath.Join(a, "tokens", filepath.Base(from)), os.DirFS(from)))
	for _, d := range []string{"", "objects"} { // which CopyFS opens to all
		must(t, os.Chmod(filepath.Join(a, "tokens", filepath.Base(from), d), 0o700))
	}
	list, err := st.Tokens()
	must(t, err)
	if len(list) != 1 {
		t.Fatalf("%+v", list)
	}
	if j.lines() != 1 {
		t.Errorf("%d lines in the log", j.lines())
	}
	left, err := st.LeftOut()
	must(t, err)
	if len(left) != 1 || left[0].Serial == list[0].Serial || !errors.Is(left[0].Err, sealstore.ErrSlotTaken) || errors.Is(left[0].Err, sealstore.ErrIntegrity) {
		t.Errorf("%+v", left)
	}
}

// TestWithoutRenameat2: the store also works where directories cannot be
// exchanged.
func TestWithoutRenameat2(t *testing.T) {
	sealstore.WithoutRenameat2(t)
	dir := t.TempDir()
	st, tok, _, _ := newToken(t, dir)
	_, err := tok.CreateObject(true, []byte("k"), []byte("secret"), nil)
	must(t, err)
	info, err := tok.Info()
	must(t, err)
	again, err := st.Reinit(info.Serial, "again", sealtest.SOPIN, nil)
	must(t, err)
	if again.Slot != info.Slot || again.UserPIN {
		t.Errorf("%+v", again)
	}
	if list, err := tok.Objects(); err != nil || len(list) != 0 {
		t.Error(list, err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "tokens", info.Serial, "objects", "*"))
	more, _ := filepath.Glob(filepath.Join(dir, "tokens", ".tmp-*"))
	if len(left)+len(more) != 0 {
		t.Error("left behind:", left, more)
	}
	must(t, tok.Login(sealstore.SO, sealtest.SOPIN))
	must(t, tok.InitUserPIN(sealtest.UserPIN))
	must(t, tok.Login(sealstore.User, sealtest.UserPIN))
	_, err = tok.CreateObject(true, []byte("k"), []byte("secret"), nil)
	must(t, err)
}

// mount gives a file system of its own, which only root can.
func mount(t *testing.T, options string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system needs root")
	}
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, options))
	t.Cleanup(func() {
		for range 50 {
			if err := unix.Unmount(dir, 0); err == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Error("cannot unmount", dir)
	})
	return dir
}

// TestReadOnly: from a read-only store everything can be read and used.
func TestReadOnly(t *testing.T) {
	dir := mount(t, "size=8m,mode=0700")
	st, tok, _, _ := newToken(t, dir)
	o, err := tok.CreateObject(true, []byte("k"), []byte("secret"), nil)
	must(t, err)
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	tok.Logout()
	must(t, tok.Login(sealstore.User, sealtest.UserPIN))
	if list, err := tok.Objects(); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	dst, err := secmem.New(64)
	must(t, err)
	defer dst.Destroy()
	_, err = tok.Unseal(o.ID, dst.Bytes())
	must(t, err)
	info, err := tok.Info()
	must(t, err)
	for name, act := range map[string]func() error{
		"CreateObject": func() error { _, err := tok.CreateObject(true, nil, nil, nil); return err },
		"UpdateObject": func() error { _, err := tok.UpdateObject(o.ID, o.Stamp, nil); return err },
		"DeleteObject": func() error { return tok.DeleteObject(o.ID) },
		"SetPIN":       func() error { return tok.SetPIN(sealstore.User, sealtest.UserPIN, []byte("other")) },
		"Create":       func() error { _, err := st.Create(sealstore.InitParams{SOPIN: sealtest.SOPIN}); return err },
		"Reinit":       func() error { _, err := st.Reinit(info.Serial, "", sealtest.SOPIN, nil); return err },
	} {
		if err := act(); !errors.Is(err, sealstore.ErrReadOnly) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestForbidden: directories that may not be written, for ordinary users.
func TestForbidden(t *testing.T) {
	dir := asOrdinaryUser(t)
	_, tok, _, _ := newToken(t, dir)
	objects := filepath.Join(tokenPath(t, dir, tok), "objects")
	must(t, os.Chmod(objects, 0o500))
	defer os.Chmod(objects, 0o700)
	if _, err := tok.CreateObject(true, nil, nil, nil); !errors.Is(err, sealstore.ErrReadOnly) {
		t.Error(err)
	}
}

// asOrdinaryUser has the rest of the test run as nobody if it runs as root, who
// may write everywhere, and gives a directory of that user's. The thread alone
// changes its user.
func asOrdinaryUser(t *testing.T) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ordinary")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	if os.Geteuid() != 0 {
		return dir
	}
	const nobody, same = 65534, ^uintptr(0)
	must(t, os.Chown(dir, nobody, nobody))
	become := func(uid uintptr) {
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, same, uid, same); e != 0 {
			t.Fatal(e)
		}
	}
	runtime.LockOSThread()
	become(nobody)
	t.Cleanup(func() {
		become(0)
		runtime.UnlockOSThread()
	})
	return dir
}

// TestFull: when the disk is full, nothing that was stored is lost, and nothing
// is reported stored that is not.
func TestFull(t *testing.T) {
	dir := mount(t, "size=256k,mode=0700")
	st, tok, _, _ := newToken(t, dir)
	body := bytes.Repeat([]byte("x"), 9000)
	stored := map[sealstore.ID]bool{}
	var last sealstore.Object
	var err error
	for {
		var o sealstore.Object
		if o, err = tok.CreateObject(true, body, nil, nil); err != nil {
			break
		}
		last, stored[o.ID] = o, true
	}
	if !errors.Is(err, sealstore.ErrFull) || len(stored) == 0 {
		t.Fatal(len(stored), err)
	}
	// Fill what is left, so that even a token file has no room.
	f, err := os.Create(filepath.Join(dir, "filler"))
	must(t, err)
	for {
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			break
		}
	}
	f.Close()
	info, err := tok.Info()
	must(t, err)
	for name, act := range map[string]func() error{
		"UpdateObject": func() error { _, err := tok.UpdateObject(last.ID, last.Stamp, body); return err },
		"SetPIN":       func() error { return tok.SetPIN(sealstore.User, sealtest.UserPIN, []byte("other")) },
		"Create":       func() error { _, err := st.Create(sealstore.InitParams{SOPIN: sealtest.SOPIN}); return err },
		"Reinit":       func() error { _, err := st.Reinit(info.Serial, "", sealtest.SOPIN, nil); return err },
	} {
		if err := act(); !errors.Is(err, sealstore.ErrFull) {
			t.Errorf("%s: %v", name, err)
		}
		// At once, and not only by the next writer: the disk is full.
		if left, _ := filepath.Glob(filepath.Join(dir, "tokens", ".tmp-*")); len(left) != 0 {
			t.Errorf("%s leaves %v behind", name, left)
		}
	}
	tok.Logout()
	must(t, tok.Login(sealstore.User, sealtest.UserPIN))
	list, err := tok.Objects()
	must(t, err)
	if len(list) != len(stored) {
		t.Fatalf("%d objects, %d were stored", len(list), len(stored))
	}
	for _, o := range list {
		if !stored[o.ID] || !bytes.Equal(o.Body, body) {
			t.Errorf("object %x", o.ID)
		}
	}
	must(t, tok.DeleteObject(last.ID))
	_, err = tok.CreateObject(true, body[:4000], nil, nil)
	must(t, err)
	left, _ := filepath.Glob(filepath.Join(dir, "tokens", "*", "objects", ".tmp-*"))
	if len(left) != 0 {
		t.Error("left behind:", left)
	}
}

// TestDamagedBesideKeys: whether the keys of a token are bound does not hang on
// an object that is no key.
func TestDamagedBesideKeys(t *testing.T) {
	dir := t.TempDir()
	_, tok, _, _ := newToken(t, dir)
	_, err := tok.CreateObject(true, []byte("key"), []byte("secret"), nil)
	must(t, err)
	o, err := tok.CreateObject(false, []byte("certificate"), nil, nil)
	must(t, err)
	path := filepath.Join(tokenPath(t, dir, tok), "objects", fmt.Sprintf("%x", o.ID))
	data, err := os.ReadFile(path)
	must(t, err)
	data[len(data)-1] ^= 1
	must(t, os.WriteFile(path, data, 0o600))
	spec := sealstore.BindingSpec{Bank: "sha256", PCRs: []int{7}}
	must(t, tok.Bind(sealtest.UserPIN, sealtest.SOPIN, spec, nil))
	must(t, tok.Unbind(sealtest.UserPIN, sealtest.SOPIN, nil))
	if b, _, err := tok.Binding(); err != nil || b != nil {
		t.Errorf("%+v, %v", b, err)
	}
}

// TestObjectsSince: a list that still holds is not made again, whoever may have
// changed it.
func TestObjectsSince(t *testing.T) {
	dir := t.TempDir()
	_, tok, dev, _ := newToken(t, dir)
	first, err := tok.CreateObject(false, []byte("public"), nil, nil)
	must(t, err)
	_, err = tok.CreateObject(true, []byte("private"), nil, nil)
	must(t, err)
	var version sealstore.Version
	since := func(what string, changed bool, n int) {
		t.Helper()
		list, now, err := tok.ObjectsSince(version)
		must(t, err)
		if (now != version) != changed || changed && len(list) != n || !changed && list != nil {
			t.Errorf("%s: %d objects, changed: %v", what, len(list), now != version)
		}
		version = now
	}
	since("the first time", true, 2)
	since("once more", false, 0)
	time.Sleep(2500 * time.Millisecond) // now the directory's times can be trusted
	since("later", false, 0)
	since("later still", false, 0)

	info, err := tok.Info()
	must(t, err)
	other := sealstore.Open(dir, dev, nil)
	defer other.Close()
	theirs, err := other.Token(info.Serial)
	must(t, err)
	must(t, theirs.Login(sealstore.User, sealtest.UserPIN))
	_, err = theirs.CreateObject(false, []byte("another's"), nil, nil)
	must(t, err)
	since("after another process has made one", true, 3)
	must(t, theirs.DeleteObject(first.ID))
	since("after it has removed one", true, 2)

	tok.Logout()
	since("logged out", true, 1)
	must(t, tok.Login(sealstore.User, sealtest.UserPIN))
	since("logged in", true, 2)

	// A program that is not ours changes a file in its place, which the
	// directory does not show.
	time.Sleep(2500 * time.Millisecond)
	since("at rest", false, 0)
	files, err := filepath.Glob(filepath.Join(tokenPath(t, dir, tok), "objects", "*"))
	must(t, err)
	f, err := os.OpenFile(files[0], os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte{0xff}, 0)
	must(t, errors.Join(err, f.Close()))
	time.Sleep(1100 * time.Millisecond)
	since("a second after the damage", true, 1)
}
