package pinsource

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzParse: what is read is written back the same, and an error never tells
// what may have been the PIN itself.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"prompt", "file:/run/pin", "env:PIN", "fd:3", "credential:p11.pin", "1234", "fd:03", "env:A=b", "credential:../x", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		src, err := Parse(s)
		if err == nil {
			if src.String() != s || src.Prompt() != (s == "prompt") {
				t.Errorf("%q is written %q", s, src)
			}
			return
		}
		// Words of the message itself aside.
		if _, arg, _ := strings.Cut(s, ":"); len(arg) > 12 && strings.Contains(err.Error(), arg) || len(s) > 12 && strings.Contains(err.Error(), s) {
			t.Errorf("the error repeats %q: %v", s, err)
		}
	})
}

// FuzzRead reads PINs from a file, and from a descriptor line by line.
func FuzzRead(f *testing.F) {
	for _, s := range []string{"1234", "1234\n", "1234\n5678\n", "\n", "", strings.Repeat("x", MaxPIN+1), "12\x00\r\n"} {
		f.Add([]byte(s))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content []byte) {
		name := filepath.Join(dir, "pin")
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
		dst := make([]byte, room)
		n, err := readFile(name, dst)
		want := bytes.TrimSuffix(content, []byte("\n"))
		if len(content) >= room {
			want = content[:room] // too long, with or without its end
		}
		if err != nil || !bytes.Equal(dst[:n], want) {
			t.Errorf("%q: %q, %v", content, dst[:n], err)
		}

		file, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		for rest := content; ; {
			line, after, _ := bytes.Cut(rest, []byte("\n"))
			n, err := readLine(int(file.Fd()), dst)
			if len(rest) == 0 {
				if err == nil {
					t.Errorf("%q: a line behind the last", content)
				}
				return
			}
			if len(line) >= room {
				if err != nil || n != room {
					t.Errorf("%q: %d bytes, %v", content, n, err)
				}
				return
			}
			if err != nil || !bytes.Equal(dst[:n], line) {
				t.Errorf("%q: %q, %v", content, dst[:n], err)
				return
			}
			rest = after
		}
	})
}
