package sealstore_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
	"github.com/InterCooperative-Network/icn-p11/sealstore/sealtest"
)

// nobody is a user who is neither root nor the one that runs the tests.
const nobody = 65534

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("changing users needs root")
	}
}

// as runs f with the rights of another user.
func as(t *testing.T, uid int, f func()) {
	t.Helper()
	must(t, syscall.Seteuid(uid))
	defer func() { must(t, syscall.Seteuid(0)) }()
	f()
}

func chownAll(t *testing.T, dir string, uid int) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		must(t, err)
		return os.Lchown(path, uid, uid)
	}))
}

// openWay lets other users reach a directory below t.TempDir.
func openWay(t *testing.T, dir string) {
	t.Helper()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		must(t, os.Chmod(d, 0o711))
	}
}

// TestRootInAnothersStore: what root wrote there its owner could not read, so
// root does not; reading and signing go on.
func TestRootInAnothersStore(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	st, tok, _, _ := newToken(t, dir)
	o, err := tok.CreateObject(true, []byte("k"), []byte("secret"))
	must(t, err)
	info, err := tok.Info()
	must(t, err)
	must(t, st.Writable())
	chownAll(t, dir, nobody)
	for name, act := range map[string]func() error{
		"CreateObject": func() error { _, err := tok.CreateObject(true, nil, nil); return err },
		"UpdateObject": func() error { _, err := tok.UpdateObject(o.ID, o.Stamp, nil); return err },
		"DeleteObject": func() error { return tok.DeleteObject(o.ID) },
		"SetPIN":       func() error { return tok.SetPIN(sealstore.User, sealtest.UserPIN, []byte("other")) },
		"Create":       func() error { _, err := st.Create(sealstore.InitParams{SOPIN: sealtest.SOPIN}); return err },
		"Reinit":       func() error { _, err := st.Reinit(info.Serial, "", sealtest.SOPIN, nil); return err },
		"Writable":     st.Writable,
	} {
		if err := act(); !errors.Is(err, sealstore.ErrReadOnly) || !strings.Contains(err.Error(), "by root: it belongs to nobody") ||
			!strings.HasSuffix(err.Error(), ": run this as nobody, or set sealed_blob_dir") {
			t.Errorf("%s: %v", name, err)
		}
	}
	dst, err := secmem.New(64)
	must(t, err)
	defer dst.Destroy()
	if _, err := tok.Unseal(o.ID, dst.Bytes()); err != nil {
		t.Error(err)
	}
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		must(t, err)
		if st, err := e.Info(); err != nil || st.Sys().(*syscall.Stat_t).Uid != nobody {
			t.Error(path, err)
		}
		return nil
	}))
}

// TestAnothersStore: who may not look into a store is told whose it is.
func TestAnothersStore(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "store")
	must(t, os.Mkdir(dir, 0o700))
	openWay(t, filepath.Dir(dir))
	st, _, _, _ := newToken(t, dir)
	as(t, nobody, func() {
		_, err := st.Tokens()
		if !errors.Is(err, fs.ErrPermission) || errors.Is(err, sealstore.ErrIntegrity) || !strings.HasSuffix(err.Error(), ": run this as root, or set sealed_blob_dir") {
			t.Error(err)
		}
		if err := st.Writable(); err == nil || !strings.HasSuffix(err.Error(), ": run this as root, or set sealed_blob_dir") {
			t.Error(err)
		}
		// Beside it there is no room either.
		beside := sealstore.Open(dir+"-of-mine", memseal.New(), nil)
		if err := beside.Writable(); !errors.Is(err, sealstore.ErrReadOnly) || !strings.Contains(err.Error(), filepath.Dir(dir)+": ") {
			t.Error(err)
		}
	})
}

// TestStoreIsAFile: the message names the file and not what would be below it.
func TestStoreIsAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for _, dir := range []string{file, filepath.Join(file, "a", "b")} {
		st := sealstore.Open(dir, memseal.New(), nil)
		want := file + ": not a directory: set sealed_blob_dir to a directory"
		_, err := st.Tokens()
		if err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		if err := st.Writable(); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		if _, err := st.Create(sealstore.InitParams{SOPIN: sealtest.SOPIN}); err == nil || err.Error() != "creating a token: "+want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestOpenStore: the log names each directory that is open to others, once.
func TestOpenStore(t *testing.T) {
	dir := t.TempDir()
	st, tok, _, j := newToken(t, dir)
	path := tokenPath(t, dir, tok)
	for _, d := range []string{dir, filepath.Dir(path), path, filepath.Join(path, "objects")} {
		before := j.lines()
		_, err := st.Tokens()
		must(t, err)
		if n := j.lines() - before; n != 0 {
			t.Fatalf("%d lines in the log", n)
		}
		must(t, os.Chmod(d, 0o750))
		for range 3 {
			_, err := st.Tokens()
			must(t, err)
		}
		if n := j.lines() - before; n != 1 || !strings.Contains(j.buf.String(), "path="+d+" ") {
			t.Errorf("%s: %d lines in the log", d, n)
		}
	}
}
