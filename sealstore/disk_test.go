package sealstore

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRenameNew(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	for _, p := range []string{a, b} {
		if err := os.WriteFile(p, []byte(p), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := renameNew(a, b); !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	if err := writeFile(dir, "b", []byte("other"), false); !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	if p, _ := os.ReadFile(b); string(p) != b {
		t.Fatalf("overwritten with %q", p)
	}
	if err := writeFile(dir, "b", []byte("other"), true); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, tempPrefix+"*")); len(left) != 0 {
		t.Fatal("left behind:", left)
	}
}

// TestLockExchanged: a lock whose file was replaced during the wait is not held.
func TestLockExchanged(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "lock")
	first, err := lock(path)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan *fileLock)
	go func() {
		l, err := lock(path)
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	first.unlock()
	second := <-got
	defer second.unlock()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Fatal("the lock in place is free:", err)
	}
}

func TestReadRefusesOddFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "large"), make([]byte, 11), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := openDir(unix.AT_FDCWD, dir, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, n := range []string{"link", "fifo", "large"} {
		if _, _, err := readAt(d, n, 10); !errors.Is(err, ErrIntegrity) {
			t.Errorf("%s: %v", n, err)
		}
	}
}

// TestReadLeavesNoTrace: that a file was read is not written down, and one of
// which only the owner may ask for that is read all the same.
func TestReadLeavesNoTrace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	// Earlier than the last change: what a file system writes down even if it
	// is mounted with relatime.
	early := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, early, time.Time{}); err != nil {
		t.Fatal(err)
	}
	d, err := openDir(unix.AT_FDCWD, dir, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	read := func() (accessed time.Time) {
		t.Helper()
		if p, _, err := readAt(d, "file", 10); err != nil || string(p) != "content" {
			t.Fatalf("%q, %v", p, err)
		}
		var st unix.Stat_t
		if err := unix.Fstatat(int(d.Fd()), "file", &st, 0); err != nil {
			t.Fatal(err)
		}
		return time.Unix(st.Atim.Unix())
	}
	if at := read(); !at.Equal(early) {
		t.Errorf("the file was accessed at %v, not %v", at, early)
	}

	if os.Geteuid() != 0 {
		t.Skip("only root can act as another user")
	}
	defer othersFiles.Store(false)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, err := unix.SetfsuidRetUid(65534); err != nil {
		t.Fatal(err)
	}
	defer unix.SetfsuidRetUid(0)
	read()
	if !othersFiles.Load() {
		t.Error("another user's file was opened as one's own")
	}
	read()
}
