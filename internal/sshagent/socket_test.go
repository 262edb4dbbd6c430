package sshagent

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestListen(t *testing.T) {
	dir, err := os.MkdirTemp("", "agent") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	mode := func(path string) os.FileMode {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	path := filepath.Join(dir, "run", "s")
	for open, want := range map[bool]os.FileMode{false: 0o600, true: 0o666} {
		l, err := Listen(path, open)
		if err != nil {
			t.Fatal(err)
		}
		if m := mode(path); m != want {
			t.Errorf("mode %o", m)
		}
		if m := mode(filepath.Dir(path)); m != 0o700 {
			t.Errorf("the directory's mode is %o", m)
		}
		if _, err := Listen(path, false); err == nil || !strings.Contains(err.Error(), "another agent listens") {
			t.Errorf("in the place of one that is alive: %v", err)
		}
		l.Close()
	}
	// One that was killed leaves its socket.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if l, err = Listen(path, false); err != nil {
		t.Fatal(err)
	}
	l.Close()

	file := filepath.Join(dir, "file")
	open := filepath.Join(dir, "open")
	sticky := filepath.Join(dir, "sticky")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for d, m := range map[string]os.FileMode{open: 0o777, sticky: os.ModeSticky | 0o777} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, m); err != nil {
			t.Fatal(err)
		}
	}
	for what, path := range map[string]string{
		"a file in its place":    file,
		"a file as directory":    filepath.Join(file, "s"),
		"no directory":           filepath.Join(dir, "a", "b", "s"),
		"an open directory":      filepath.Join(open, "s"),
		"a path that is long":    filepath.Join(dir, strings.Repeat("x", 108)),
		"a directory's own path": dir,
	} {
		if l, err := Listen(path, false); err == nil {
			l.Close()
			t.Errorf("%s: accepted", what)
		}
	}
	if l, err = Listen(filepath.Join(sticky, "s"), false); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if os.Geteuid() == 0 {
		other := filepath.Join(dir, "other")
		if err := os.Mkdir(other, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(other, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(filepath.Join(other, "s"), false); err == nil || !strings.Contains(err.Error(), "another user's") {
			t.Errorf("in another user's directory: %v", err)
		}
	}
}

func TestDefaultSocket(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/1")
	if path, err := DefaultSocket(); err != nil || path != "/run/user/1/icn-p11/agent.sock" {
		t.Errorf("%s, %v", path, err)
	}
	t.Setenv("XDG_RUNTIME_DIR", "relative")
	if path, err := DefaultSocket(); (err == nil) != (os.Geteuid() == 0) || err == nil && path != "/run/icn-p11/agent.sock" {
		t.Errorf("%s, %v", path, err)
	}
}
