package sealstore_test

import (
	"encoding/hex"
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
	o, err := tok.CreateObject(true, []byte("k"), []byte("secret"), nil)
	must(t, err)
	info, err := tok.Info()
	must(t, err)
	must(t, st.Writable())
	chownAll(t, dir, nobody)
	for name, act := range map[string]func() error{
		"CreateObject": func() error { _, err := tok.CreateObject(true, nil, nil, nil); return err },
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
		must(t, os.Chmod(d, 0o750)) // that is for the owner to decide
		_, err = st.Tokens()
		must(t, err)
		if n := j.lines() - before; n != 0 {
			t.Fatalf("%d lines in the log", n)
		}
		must(t, os.Chmod(d, 0o755))
		for range 3 {
			_, err := st.Tokens()
			must(t, err)
		}
		if n := j.lines() - before; n != 1 || !strings.Contains(j.buf.String(), "path="+d+" ") {
			t.Errorf("%s: %d lines in the log", d, n)
		}
	}
}

// TestSharedStore: what the group may read stays readable by it, whatever is
// written, and nobody else gets in.
func TestSharedStore(t *testing.T) {
	dir := t.TempDir()
	st, tok, _, j := newToken(t, dir)
	group := os.Getegid()
	if os.Geteuid() == 0 {
		group = nobody
	}
	share := func(path string, e fs.DirEntry, err error) error {
		must(t, err)
		must(t, os.Lchown(path, -1, group))
		if e.IsDir() {
			return os.Chmod(path, 0o750)
		}
		return os.Chmod(path, 0o640)
	}
	must(t, filepath.WalkDir(dir, share))
	o, err := tok.CreateObject(true, []byte("k"), []byte("secret"), nil)
	must(t, err)
	_, err = tok.UpdateObject(o.ID, o.Stamp, []byte("another"))
	must(t, err)
	must(t, tok.SetPIN(sealstore.User, sealtest.UserPIN, []byte("other pin")))
	other, err := st.Create(sealstore.InitParams{Label: "other", SOPIN: sealtest.SOPIN})
	must(t, err)
	_, err = st.Reinit(other.Serial, "anew", sealtest.SOPIN, nil)
	must(t, err)
	files := 0
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		must(t, err)
		info, err := e.Info()
		must(t, err)
		mode := fs.FileMode(0o640)
		switch {
		case e.IsDir():
			mode = 0o750
		case e.Name() == "lock": // nothing to read
			return nil
		default:
			files++
		}
		if gid := int(info.Sys().(*syscall.Stat_t).Gid); info.Mode().Perm() != mode || gid != group {
			t.Errorf("%s has mode %v and group %d", path, info.Mode(), gid)
		}
		return nil
	}))
	if files != 3 {
		t.Errorf("%d files", files)
	}
	if j.lines() != 0 {
		t.Errorf("%s", j.buf.String())
	}

	// A group that its owner is not in cannot be given the rest.
	if os.Geteuid() != 0 {
		return
	}
	openWay(t, filepath.Dir(dir))
	chownAll(t, dir, nobody)
	must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		must(t, err)
		return os.Lchown(path, -1, 4711)
	}))
	as(t, nobody, func() {
		o, err := tok.CreateObject(true, []byte("k"), nil, nil)
		must(t, err)
		info, err := os.Stat(filepath.Join(tokenPath(t, dir, tok), "objects", hex.EncodeToString(o.ID[:])))
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v", info.Mode())
		}
	})
}

// TestWritable: a token tells beforehand that it cannot be changed.
func TestWritable(t *testing.T) {
	dir := t.TempDir()
	_, tok, _, _ := newToken(t, dir)
	must(t, tok.Writable())
	path := tokenPath(t, dir, tok)
	check := func() {
		t.Helper()
		for _, d := range []string{path, filepath.Join(path, "objects")} {
			must(t, os.Chmod(d, 0o555))
			if err := tok.Writable(); !errors.Is(err, sealstore.ErrReadOnly) || !strings.Contains(err.Error(), d+": ") {
				t.Errorf("%s: %v", d, err)
			}
			must(t, os.Chmod(d, 0o755))
		}
	}
	if os.Geteuid() != 0 {
		check()
		return
	}
	openWay(t, filepath.Dir(dir))
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Chmod(filepath.Dir(path), 0o755))
	chownAll(t, dir, nobody)
	must(t, os.Chmod(path, 0o755))
	if err := tok.Writable(); !errors.Is(err, sealstore.ErrReadOnly) || !strings.Contains(err.Error(), "by root") {
		t.Error(err)
	}
	as(t, nobody, check)
}
