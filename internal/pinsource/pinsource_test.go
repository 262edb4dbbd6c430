package pinsource

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func read(t *testing.T, src string) (string, error) {
	t.Helper()
	s, err := Parse(src)
	if err != nil {
		t.Fatal(err)
	}
	if s.String() != src {
		t.Errorf("%q is written %q", src, s)
	}
	pin, err := s.Read("user PIN", false)
	if err != nil {
		return "", err
	}
	defer pin.Destroy()
	return string(pin.Bytes()), nil
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pin")
	long := strings.Repeat("x", MaxPIN)
	for content, want := range map[string]string{
		"1234": "1234", "1234\n": "1234", "1234\n\n": "1234\n", " 12 \r\n": " 12 \r", "a:b=c": "a:b=c",
		long: long, long + "\n": long,
		"": "", "\n": "", "123\n": "", long + "y": "", long + "y\n": "", long + long: "",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := read(t, "file:"+path)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v, want %q", content, got, err, want)
		}
		if err != nil && !strings.Contains(err.Error(), "user PIN from file:"+path) {
			t.Errorf("the error does not name the source: %v", err)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("A_PIN", "1234\n")
	if got, err := read(t, "env:A_PIN"); got != "1234\n" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	t.Setenv("A_PIN", strings.Repeat("x", 1000))
	if got, err := read(t, "env:A_PIN"); err == nil {
		t.Errorf("%q", got)
	}
	if got, err := read(t, "env:A_PIN_NOT_SET"); err == nil {
		t.Errorf("%q", got)
	}
}

func TestCredential(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "p11.pin"), []byte("1234\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	if got, err := read(t, "credential:p11.pin"); got != "1234" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	if got, err := read(t, "credential:p11.pin"); err == nil || !strings.Contains(err.Error(), "LoadCredential") {
		t.Errorf("%q, %v", got, err)
	}
}

// One descriptor gives one PIN a line.
func TestDescriptor(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.WriteString("first\nsecond\n123\nlast")
	w.Close()
	src := "fd:" + strconv.Itoa(int(r.Fd()))
	for _, want := range []string{"first", "second", "", "last", ""} {
		if got, err := read(t, src); got != want || (err == nil) != (want != "") {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	if _, err := read(t, src); err == nil || !strings.Contains(err.Error(), "the input has ended before the PIN") {
		t.Error(err)
	}
	if _, err := read(t, "fd:9999"); err == nil || !strings.Contains(err.Error(), "not open") {
		t.Error(err)
	}
}

// A new PIN is one that can be typed; the present one is what it is.
func TestControlCharacters(t *testing.T) {
	for _, pin := range []string{"1234\r", "12\t34", "1234\x7f", "\x1b1234", "1234\n"} {
		t.Setenv("A_PIN", pin)
		if got, err := read(t, "env:A_PIN"); got != pin || err != nil {
			t.Errorf("%q: %q, %v", pin, got, err)
		}
		s, _ := Parse("env:A_PIN")
		if _, err := s.Read("user PIN", true); err == nil || !strings.Contains(err.Error(), "no control characters") {
			t.Errorf("%q: %v", pin, err)
		}
	}
	t.Setenv("A_PIN", "ägäß 12")
	s, _ := Parse("env:A_PIN")
	b, err := s.Read("user PIN", true)
	if err != nil {
		t.Fatal(err)
	}
	b.Destroy()
}

func TestRefused(t *testing.T) {
	for _, s := range []string{"", "secret-1234", "file:", "env:", "env:PIN=secret-1234", "fd:", "fd:-1", "fd:x", "fd:01", "fd:99999",
		"credential:", "credential:../secret-1234", "credential:..", "prompt:", "pass:secret-1234", "FILE:/secret-1234"} {
		_, err := Parse(s)
		if err == nil {
			t.Errorf("%q is accepted", s)
		} else if strings.Contains(err.Error(), "1234") {
			t.Errorf("%q: the error repeats what may be a PIN: %v", s, err)
		}
	}
	if s, err := Parse("prompt"); err != nil || s != (Source{}) || !s.Prompt() {
		t.Errorf("%v, %v", s, err)
	}
}
