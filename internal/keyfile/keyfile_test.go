package keyfile

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/ssh"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func none() ([]byte, error) { return nil, errors.New("no passphrase was expected to be asked for") }

// The example of RFC 8410, section 10.3, with and without the public key.
const (
	rfc8410 = `-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
`
	rfc8410Long = `-----BEGIN PRIVATE KEY-----
MHICAQEwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
oB8wHQYKKoZIhvcNAQkJFDEPDA1DdXJkbGUgQ2hhaXJzgSEAGb9ECWmEzf6FQbrB
Z9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PRIVATE KEY-----
`
)

func TestFormats(t *testing.T) {
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed)
	der, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(seed))
	check(t, err)
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	rfc := []byte{0xd4, 0xee, 0x72, 0xdb, 0xf9, 0x13, 0x58, 0x4a, 0xd5, 0xb6, 0xd8, 0xf1, 0xf7, 0x69, 0xf8, 0xad,
		0x3a, 0xfe, 0x7c, 0x28, 0xcb, 0xf1, 0xd4, 0xfb, 0xe0, 0x97, 0xa8, 0x8f, 0x44, 0x75, 0x58, 0x42}
	for what, c := range map[string]struct {
		data   []byte
		format string
		want   []byte
	}{
		"bare": {seed, "bare seed", seed}, "DER": {der, "PKCS#8", seed}, "PEM": {text, "PKCS#8", seed},
		"PEM with blanks around": {append([]byte("\n "), append(text, "\n\n"...)...), "PKCS#8", seed},
		"RFC 8410":               {[]byte(rfc8410), "PKCS#8", rfc}, "RFC 8410, version 2": {[]byte(rfc8410Long), "PKCS#8", rfc},
	} {
		got, format, err := Parse(c.data, none)
		if err != nil || format != c.format || !bytes.Equal(got.Bytes(), c.want) {
			t.Errorf("%s: %s, %v", what, format, err)
		}
		got.Destroy()
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	other, err := x509.MarshalPKCS8PrivateKey(p256)
	check(t, err)
	for what, data := range map[string][]byte{
		"nothing": nil, "31 bytes": seed[:31], "33 bytes": append(bytes.Clone(seed), 0), "DER with more behind": append(bytes.Clone(der), 0),
		"cut DER": der[:len(der)-1], "another kind of key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: other}),
		"another kind of block": pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: der}),
		"encrypted PKCS#8":      pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: der}),
		"two blocks":            append(bytes.Clone(text), text...), "no base64": []byte("-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n"),
	} {
		if got, format, err := Parse(data, none); err == nil {
			t.Errorf("%s: taken as %s: %x", what, format, got.Bytes())
		}
	}
}

// What ssh-keygen makes, with and without a passphrase, is read.
func TestOpenSSH(t *testing.T) {
	dir := t.TempDir()
	for _, pass := range []string{"", "a pass phrase"} {
		path := filepath.Join(dir, "key"+pass)
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", pass, "-f", path).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen (Debian package openssh-client): %v: %s", err, out)
		}
		data, err := os.ReadFile(path)
		check(t, err)
		seed, format, err := Parse(data, func() ([]byte, error) { return []byte(pass), nil })
		if err != nil || format != "OpenSSH" {
			t.Fatalf("%q: %s, %v", pass, format, err)
		}
		line, err := os.ReadFile(path + ".pub")
		check(t, err)
		public := ed25519.NewKeyFromSeed(seed.Bytes()).Public().(ed25519.PublicKey)
		if !bytes.Contains(line, []byte(sshLine(t, public))) {
			t.Errorf("%q: another key", pass)
		}
		seed.Destroy()
		if pass == "" {
			continue
		}
		if _, _, err := Parse(data, func() ([]byte, error) { return []byte("wrong"), nil }); !errors.Is(err, ErrPassphrase) {
			t.Errorf("a wrong passphrase: %v", err)
		}
		data[len(data)/2] ^= 1
		if _, _, err := Parse(data, func() ([]byte, error) { return []byte(pass), nil }); err == nil {
			t.Error("a changed file is read")
		}
	}
	path := filepath.Join(dir, "rsa")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(path)
	check(t, err)
	if _, _, err := Parse(data, none); err == nil {
		t.Error("an ECDSA key is taken for an Ed25519 key")
	}
}

func TestRead(t *testing.T) {
	b, n, err := Read(bytes.NewReader([]byte("abc")))
	if err != nil || string(b.Bytes()[:n]) != "abc" {
		t.Errorf("%d, %v", n, err)
	}
	b.Destroy()
	if _, _, err := Read(bytes.NewReader(make([]byte, MaxFile+1))); err == nil {
		t.Error("a large file was read")
	}
}

// FuzzParse: what is read is a key that crypto/x509 and x/crypto/ssh read the
// same, where they read it, and nothing else is the seed of.
func FuzzParse(f *testing.F) {
	f.Add([]byte(rfc8410))
	f.Add([]byte(rfc8410Long))
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	f.Add([]byte(private.Seed()))
	der, err := x509.MarshalPKCS8PrivateKey(private)
	check(f, err)
	f.Add(der)
	block, err := ssh.MarshalPrivateKey(private, "comment")
	check(f, err)
	f.Add(pem.EncodeToMemory(block))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > MaxFile {
			return
		}
		before := bytes.Clone(data)
		seed, format, err := Parse(data, func() ([]byte, error) { return []byte("passphrase"), nil })
		if !bytes.Equal(data, before) {
			t.Error("the data was changed")
		}
		if err != nil {
			return
		}
		defer seed.Destroy()
		var other any
		switch format {
		case "bare seed":
			other = ed25519.NewKeyFromSeed(data)
		case "PKCS#8":
			if b, _ := pem.Decode(data); b != nil {
				data = b.Bytes
			}
			other, _ = x509.ParsePKCS8PrivateKey(data)
		case "OpenSSH":
			if k, err := ssh.ParseRawPrivateKey(data); err == nil {
				other = *k.(*ed25519.PrivateKey)
			}
		default:
			t.Fatalf("format %q", format)
		}
		if k, ok := other.(ed25519.PrivateKey); ok && !bytes.Equal(k.Seed(), seed.Bytes()) {
			t.Errorf("%q: another seed than that of the standard library", before)
		} else if other != nil && !ok {
			t.Errorf("%q: %T to the standard library", before, other)
		}
	})
}

func sshLine(t *testing.T, public ed25519.PublicKey) string {
	t.Helper()
	k, err := ssh.NewPublicKey(public)
	check(t, err)
	return string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(k)))
}
