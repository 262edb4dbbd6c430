package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A file is written whole or not at all, and over no other unless that is meant.
func TestTarget(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	good := func([]byte) error { return nil }
	is := func(what, want string) {
		t.Helper()
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Errorf("%s: the file holds %q, %v", what, got, err)
		}
		if left, err := os.ReadDir(dir); len(left) != 1 || err != nil {
			t.Errorf("%s: %v is there, %v", what, left, err)
		}
	}
	bad := errors.New("bad")
	if err := (target{path: path}).write([]byte("x"), func([]byte) error { return bad }); !errors.Is(err, bad) {
		t.Errorf("what was written is not looked at: %v", err)
	}
	if left, err := os.ReadDir(dir); len(left) > 0 || err != nil {
		t.Errorf("%v is left, %v", left, err)
	}
	var seen string
	err := target{path: path}.write([]byte("first"), func(p []byte) error { seen = string(p); return nil })
	if err != nil || seen != "first" {
		t.Fatalf("%q was read back, %v", seen, err)
	}
	is("new", "first")
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	// It may have come since check.
	for _, err := range []error{(target{path: path}).check(), (target{path: path}).write([]byte("second"), good)} {
		if err == nil || !strings.Contains(err.Error(), "is there already") {
			t.Errorf("over a file: %v", err)
		}
	}
	is("refused", "first")
	over := target{path: path, replace: true}
	if err := over.check(); err != nil {
		t.Error(err)
	}
	if err := over.write([]byte("second"), good); err != nil {
		t.Error(err)
	}
	is("replaced", "second")
	for _, p := range []string{dir, filepath.Join(dir, "missing", "file"), filepath.Join(path, "file")} {
		if err := (target{path: p, replace: true}).check(); err == nil {
			t.Errorf("%s can be written", p)
		}
	}
}

func TestReadInput(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("1234567"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := readInput(path, 7); err != nil || string(data) != "1234567" {
		t.Errorf("%q, %v", data, err)
	}
	for name, limit := range map[string]int64{path: 6, path + "x": 7, filepath.Dir(path): 7, "fd:x": 7, "fd:9999": 7} {
		if data, err := readInput(name, limit); err == nil {
			t.Errorf("%s: %q", name, data)
		}
	}
	if b, err := readSecret(path); err != nil || string(b.Bytes()) != "1234567" {
		t.Error(err)
	}
	if err := os.WriteFile(path, make([]byte, 5000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readSecret(path); err == nil {
		t.Error("a large file is a key")
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readSecret(path); err == nil {
		t.Error("an empty file is a key")
	}
}

// A file of a strict format is read as far as the format allows, and its errors
// name it once.
func TestParseFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	parse := func(p []byte) (int, error) {
		if len(p) == 1 {
			return 0, errors.New("one byte is none")
		}
		return len(p), nil
	}
	for size, want := range map[int]string{1: path + ": one byte is none", 2048: "", 2049: path + ": more than 2 KiB"} {
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		n, err := parseFile(path, 2048, parse)
		if err == nil && (want != "" || n != size) || err != nil && err.Error() != want {
			t.Errorf("%d bytes: %d, %v; want %q", size, n, err, want)
		}
	}
}
