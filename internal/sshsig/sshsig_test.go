package sshsig

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha512"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func newKey(t testing.TB) (ed25519.PublicKey, ed25519.PrivateKey) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return public, private
}

func signer(k ed25519.PrivateKey) func([]byte) ([]byte, error) {
	return func(m []byte) ([]byte, error) { return ed25519.Sign(k, m), nil }
}

func TestRoundTrip(t *testing.T) {
	public, private := newKey(t)
	data := []byte("what is signed")
	sig, err := Sign(data, "file", public, signer(private))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Verify(data, sig, "file"); err != nil || !got.Equal(public) {
		t.Errorf("%x, %v", got, err)
	}
	for what, f := range map[string]func() error{
		"other data":      func() error { _, err := Verify([]byte("other"), sig, "file"); return err },
		"other namespace": func() error { _, err := Verify(data, sig, "git"); return err },
		"no signature":    func() error { _, err := Verify(data, []byte("x"), "file"); return err },
		"with more behind": func() error {
			_, err := Verify(data, append(bytes.Clone(sig), "more"...), "file")
			return err
		},
		"empty namespace": func() error { _, err := Sign(data, "", public, signer(private)); return err },
	} {
		if f() == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	// Any byte of it changed.
	b, _ := pem.Decode(sig)
	for i := range b.Bytes {
		c := pem.Block{Type: b.Type, Bytes: bytes.Clone(b.Bytes)}
		c.Bytes[i] ^= 1
		if got, err := Verify(data, pem.EncodeToMemory(&c), "file"); err == nil && got.Equal(public) {
			t.Errorf("accepted with byte %d changed", i)
		}
	}
}

// OpenSSH takes what Sign makes, and Verify takes what OpenSSH makes.
func TestOpenSSH(t *testing.T) {
	dir := t.TempDir()
	run := func(stdin string, args ...string) string {
		t.Helper()
		cmd := exec.Command("ssh-keygen", args...)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("ssh-keygen %v (Debian package openssh-client): %v: %s", args, err, out)
		}
		return string(out)
	}
	write := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	public, private := newKey(t)
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	write("allowed", append([]byte("me "), ssh.MarshalAuthorizedKey(key)...))
	sig, err := Sign([]byte("data"), "file", public, signer(private))
	if err != nil {
		t.Fatal(err)
	}
	write("sig", sig)
	run("data", "-Y", "verify", "-f", "allowed", "-I", "me", "-n", "file", "-s", "sig")

	run("", "-q", "-t", "ed25519", "-N", "", "-f", "theirs")
	write("message", []byte("their data"))
	for _, hash := range []string{"sha256", "sha512"} {
		os.Remove(filepath.Join(dir, "message.sig"))
		run("", "-Y", "sign", "-f", "theirs", "-n", "file", "-O", "hashalg="+hash, "message")
		sig, err := os.ReadFile(filepath.Join(dir, "message.sig"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := Verify([]byte("their data"), sig, "file")
		if err != nil {
			t.Errorf("%s: %v", hash, err)
			continue
		}
		line, err := os.ReadFile(filepath.Join(dir, "theirs.pub"))
		if err != nil {
			t.Fatal(err)
		}
		k, _ := ssh.NewPublicKey(got)
		if !strings.HasPrefix(string(line), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k)))) {
			t.Errorf("%s: another key: %x", hash, got)
		}
	}
}

func TestNamespace(t *testing.T) {
	for _, hash := range []string{"sha256", "sha512"} {
		m, err := message("git", hash, []byte("data"))
		if err != nil {
			t.Fatal(err)
		}
		if ns, ok := Namespace(m); ns != "git" || !ok {
			t.Errorf("%s: %q, %v", hash, ns, ok)
		}
		for i := range m {
			if _, ok := Namespace(m[:i]); ok {
				t.Errorf("%s: recognised in its first %d bytes", hash, i)
			}
		}
		if _, ok := Namespace(append(m, 0)); ok {
			t.Errorf("%s: recognised with a byte behind it", hash)
		}
	}
	digest := make([]byte, sha512.Size)
	for what, s := range map[string]signed{
		"no namespace":     {"", "", "sha512", digest},
		"reserved":         {"git", "x", "sha512", digest},
		"another hash":     {"git", "", "sha1", digest[:20]},
		"digest too short": {"git", "", "sha512", digest[:32]},
	} {
		if _, ok := Namespace(append([]byte(magic), ssh.Marshal(s)...)); ok {
			t.Errorf("%s: recognised", what)
		}
	}
}

// Every message of an SSH signature reads back as one.
func FuzzNamespace(f *testing.F) {
	for _, hash := range []string{"sha256", "sha512"} {
		m, err := message("git", hash, []byte("data"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, m []byte) {
		ns, ok := Namespace(m)
		if !ok {
			return
		}
		var s signed
		if err := ssh.Unmarshal(m[len(magic):], &s); err != nil || s.Namespace != ns {
			t.Fatalf("%q: %v", ns, err)
		}
		if again := append([]byte(magic), ssh.Marshal(s)...); !bytes.Equal(again, m) {
			t.Errorf("%x is written %x", m, again)
		}
	})
}

func FuzzVerify(f *testing.F) {
	public, private := newKey(f)
	sig, err := Sign([]byte("data"), "file", public, signer(private))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sig)
	good, _ := pem.Decode(sig)
	f.Fuzz(func(t *testing.T, sig []byte) {
		key, err := Verify([]byte("data"), sig, "file")
		if err != nil || !key.Equal(public) {
			return
		}
		// The armour may be laid out in another way, and the specification has the
		// reserved field ignored.
		b, _ := pem.Decode(sig)
		var e envelope
		if err := ssh.Unmarshal(b.Bytes[len(magic):], &e); err != nil {
			t.Fatal(err)
		}
		e.Reserved = ""
		if !bytes.Equal(append([]byte(magic), ssh.Marshal(e)...), good.Bytes) {
			t.Errorf("another signature of the same data by the same key: %q", sig)
		}
	})
}
