package backup

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"

	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
)

var pass = []byte("correct horse battery staple")

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// sample is the backup of a token with two keys, a certificate and data.
func sample(t testing.TB) *Backup {
	t.Helper()
	made := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	c := &sealstore.Contents{Serial: "0123456789abcdef", Label: "node", Slot: 3, Created: made, UserPIN: true,
		Binding: &sealstore.BindingSpec{Bank: "sha256", PCRs: []int{0, 7}}}
	b := &Backup{Contents: c, Manifest: Manifest{Tool: "test", Created: made, Certificates: 1, Data: 1}}
	b.Manifest.Token.Parent = "000b" + strings.Repeat("ab", 32)
	for i := range 2 {
		seed := bytes.Repeat([]byte{byte(i + 1)}, 32)
		public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
		secret, err := c.SecretBuffer(32)
		check(t, err)
		copy(secret, seed)
		c.Objects = append(c.Objects,
			sealstore.Content{ID: sealstore.ID{byte(9 - i)}, Private: true, Body: []byte("a private key"), Secret: secret, About: public},
			sealstore.Content{ID: sealstore.ID{byte(5 - i)}, Body: []byte("a public key")})
		b.Manifest.Keys = append(b.Manifest.Keys, Key{"key", did.Encode([32]byte(public))})
	}
	c.Objects = append(c.Objects,
		sealstore.Content{ID: sealstore.ID{200}, Body: bytes.Repeat([]byte("certificate"), 100)},
		sealstore.Content{ID: sealstore.ID{201}, Private: true})
	b.Manifest.DID = b.Manifest.Keys[1].DID
	t.Cleanup(b.Destroy)
	return b
}

// files are those of a token that is not recoverable.
var files = sync.OnceValues(func() (*sealstore.Files, error) {
	dir, err := os.MkdirTemp("", "store")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	dev := memseal.New()
	s := sealstore.Open(filepath.Join(dir, "store"), dev, nil)
	defer s.Close()
	info, err := s.Create(sealstore.InitParams{Label: "node", SOPIN: []byte("so-1234"), NoPIN: true})
	if err != nil {
		return nil, err
	}
	tok, err := s.Token(info.Serial)
	if err == nil {
		err = tok.Login(sealstore.User, nil)
	}
	for i := 0; i < 3 && err == nil; i++ {
		_, err = tok.CreateObject(i > 0, []byte("a body"), []byte("a secret"), nil)
	}
	if err == nil {
		err = tok.SaveBootLog([]byte("log"))
	}
	if err != nil {
		return nil, err
	}
	return tok.Files(nil, []byte("so-1234"))
})

// sealed is the backup of a token that is not recoverable.
func sealed(t testing.TB) *Backup {
	t.Helper()
	f, err := files()
	check(t, err)
	b := sample(t)
	b.Manifest.Token.take(b.Contents)
	b.Contents, b.Files = nil, f
	return b
}

func native(t testing.TB) (*Recipients, *Identity) {
	t.Helper()
	k, err := age.GenerateX25519Identity()
	check(t, err)
	r, err := ParseRecipients([]string{k.Recipient().String()})
	check(t, err)
	return r, WithFile([]byte(k.String()), nil)
}

func encrypt(t testing.TB, b *Backup, to *Recipients, text bool) []byte {
	t.Helper()
	w, err := Encrypt(b, to, text)
	check(t, err)
	defer w.Destroy()
	check(t, w.Check(w.Data))
	return w.Data
}

// Whatever opens a backup gives the same one back, and nothing else opens it.
func TestRoundTrip(t *testing.T) {
	hybrid, err := age.GenerateHybridIdentity()
	check(t, err)
	other, otherIdentity := native(t)
	_, edKey, err := ed25519.GenerateKey(nil)
	check(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	line := func(key any) string {
		p, err := ssh.NewPublicKey(key)
		check(t, err)
		return string(ssh.MarshalAuthorizedKey(p))
	}
	file := func(key any, pass []byte) []byte {
		block, err := ssh.MarshalPrivateKey(key, "")
		if pass != nil {
			block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", pass)
		}
		check(t, err)
		return pem.EncodeToMemory(block)
	}
	pkcs8 := func(key any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		check(t, err)
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	locked := func(text bool) []byte {
		var out bytes.Buffer
		s, err := age.NewScryptRecipient(string(pass))
		check(t, err)
		s.SetWorkFactor(1)
		w, err := age.Encrypt(&out, s)
		check(t, err)
		_, err = w.Write([]byte("# a comment\n" + hybrid.String() + "\n"))
		check(t, err)
		check(t, w.Close())
		if text {
			p, err := enarmor(out.Bytes())
			check(t, err)
			return p
		}
		return out.Bytes()
	}
	recipients := func(s ...string) *Recipients {
		r, err := ParseRecipients(s)
		check(t, err)
		return r
	}
	quick := Passphrase(pass)
	quick.work = 1
	for name, c := range map[string]struct {
		to   *Recipients
		by   *Identity
		no   *Identity
		want error
	}{
		"passphrase":       {quick, WithPassphrase(pass), WithPassphrase([]byte("another")), ErrPassphrase},
		"no passphrase":    {quick, WithPassphrase(pass), WithPassphrase(nil), ErrPassphrase},
		"X25519":           {other, otherIdentity, WithFile([]byte(hybrid.String()), nil), ErrIdentity},
		"several":          {recipients(line(edKey.Public()), line(&rsaKey.PublicKey)), WithFile(file(rsaKey, nil), nil), otherIdentity, ErrIdentity},
		"hybrid":           {recipients(hybrid.Recipient().String()), WithFile([]byte(hybrid.String()), nil), WithPassphrase(pass), ErrIdentity},
		"ssh-ed25519":      {recipients(line(edKey.Public())), WithFile(file(edKey, nil), nil), WithFile(file(rsaKey, nil), nil), ErrIdentity},
		"PKCS #8":          {recipients(line(edKey.Public())), WithFile(pkcs8(edKey), nil), WithFile(pkcs8(rsaKey), nil), ErrIdentity},
		"locked ssh":       {recipients(line(edKey.Public())), WithFile(file(edKey, pass), pass), WithFile(file(edKey, pass), []byte("another")), ErrPassphrase},
		"locked ssh-rsa":   {recipients(line(&rsaKey.PublicKey)), WithFile(file(rsaKey, pass), pass), WithFile([]byte("garbage"), nil), ErrNoKey},
		"locked identity":  {recipients(hybrid.Recipient().String()), WithFile(locked(false), pass), WithFile(locked(false), []byte("another")), ErrPassphrase},
		"armored identity": {recipients(hybrid.Recipient().String()), WithFile(locked(true), pass), WithFile(locked(true), nil), ErrNoKey},
	} {
		t.Run(name, func(t *testing.T) {
			for _, b := range []*Backup{sample(t), sealed(t)} {
				data := encrypt(t, b, c.to, b.Files != nil)
				if text := bytes.HasPrefix(data, []byte(armor.Header)); text != (b.Files != nil) {
					t.Errorf("armor: %v", text)
				}
				byPass, err := ByPassphrase(data)
				if err != nil || byPass != (c.to == quick) {
					t.Errorf("by passphrase: %v, %v", byPass, err)
				}
				got, err := Decrypt(data, c.by)
				check(t, err)
				if !b.same(got) {
					t.Errorf("another backup came back: %+v", got)
				}
				if c := got.Contents; c != nil && (c.Label != "node" || !bytes.Equal(c.Objects[3].Secret, bytes.Repeat([]byte{1}, 32))) {
					t.Errorf("contents: %+v", c)
				}
				got.Destroy()
				if got, err := Decrypt(data, c.no); !errors.Is(err, c.want) || got != nil {
					t.Errorf("opened by another: %v, want %v", err, c.want)
				}
			}
		})
	}
	if !NeedsPassphrase(file(edKey, pass)) || !NeedsPassphrase(locked(false)) || NeedsPassphrase(file(edKey, nil)) || NeedsPassphrase([]byte(hybrid.String())) {
		t.Error("which files are encrypted is not known")
	}
}

// failing gives what it has, and an error then.
type failing struct {
	data []byte
	into []byte // what it was given to write to
}

func (f *failing) Read(p []byte) (int, error) {
	if f.into != nil {
		return 0, errors.New("no more")
	}
	f.into = p
	return copy(p, f.data), nil
}

// Of what identities are made of nothing is left where it was read to.
func TestIdentitiesAreWiped(t *testing.T) {
	f := &failing{data: []byte("AGE-SECRET-KEY-1")}
	if p, err := readAll(f, 100); err == nil || p != nil {
		t.Errorf("%q, %v", p, err)
	}
	if !bytes.Equal(f.into, make([]byte, 100)) {
		t.Errorf("a file that cannot be read to its end leaves %q", f.into)
	}
	for name, pointer := range map[string]bool{"ed25519.PrivateKey": false, "*ed25519.PrivateKey": true} {
		public, key, err := ed25519.GenerateKey(nil)
		check(t, err)
		line, err := ssh.NewPublicKey(public)
		check(t, err)
		to, err := ParseRecipients([]string{string(ssh.MarshalAuthorizedKey(line))})
		check(t, err)
		var given any = key
		if pointer {
			given = &key
		}
		id, err := sshIdentity(given)
		check(t, err)
		if !bytes.Equal(key, make([]byte, len(key))) {
			t.Errorf("%s: the key is left", name)
		}
		if _, err := age.Decrypt(bytes.NewReader(encrypt(t, sample(t), to, false)), id); err != nil {
			t.Errorf("%s: what is made of it does not open: %v", name, err)
		}
	}
}

// What is not a public key is refused, and not repeated: it may be a secret.
func TestRecipientsRefused(t *testing.T) {
	secret, err := age.GenerateX25519Identity()
	check(t, err)
	public := secret.Recipient().String()
	for _, s := range []string{"", secret.String(), "github:someone", "age1yubikey1" + public[4:], public[:len(public)-1] + "1", "ssh-ed25519 garbage", "node"} {
		if _, err := ParseRecipients([]string{public, s}); err == nil {
			t.Errorf("%q is accepted", s)
		} else if strings.Contains(err.Error(), "SECRET") {
			t.Errorf("a secret is repeated: %v", err)
		}
	}
	hybrid, err := age.GenerateHybridIdentity()
	check(t, err)
	mixed, err := ParseRecipients([]string{public, hybrid.Recipient().String()})
	check(t, err)
	if _, err := Encrypt(sample(t), mixed, false); err == nil || !strings.Contains(err.Error(), "post-quantum") {
		t.Errorf("mixed recipients: %v", err)
	}
}

// The age command opens a backup, too: whoever has lost this program has not
// lost the keys.
func TestAgeCommand(t *testing.T) {
	if _, err := exec.LookPath("age"); err != nil {
		t.Fatalf("%v (Debian package age)", err)
	}
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	out, err := exec.Command("age-keygen", "-o", key).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	_, public, ok := strings.Cut(strings.TrimSpace(string(out)), "Public key: ")
	if !ok {
		t.Fatalf("age-keygen: %s", out)
	}
	to, err := ParseRecipients([]string{public})
	check(t, err)
	b := sample(t)
	cmd := exec.Command("age", "-d", "-i", key)
	cmd.Stdin = bytes.NewReader(encrypt(t, b, to, true))
	plain, err := cmd.Output()
	check(t, err)
	got, err := decode(bytes.NewReader(plain))
	check(t, err)
	defer got.Destroy()
	if !b.same(got) {
		t.Error("age gives another backup")
	}
}

// However a file is cut or altered, nothing comes of it.
func TestDamage(t *testing.T) {
	to, by := native(t)
	quick := Passphrase(pass)
	quick.work = 1
	binary, armored := encrypt(t, sample(t), to, false), encrypt(t, sample(t), to, true)
	// Armor makes four characters of three bytes, and a line of 64.
	end := bytes.Index(binary, []byte("\n---")) + 60
	armoredEnd := len(armor.Header) + 1 + end*65/48
	for _, c := range []struct {
		name   string
		data   []byte
		header int // where age's header ends
	}{{"binary", binary, end}, {"armored", armored, armoredEnd}} {
		name, data := c.name, c.data
		refused := func(what string, at int, p []byte) {
			t.Helper()
			if b, err := read(p, by.identities); err == nil {
				b.Destroy()
				t.Errorf("%s: %s at %d: accepted", name, what, at)
			} else if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrIdentity) && !errors.Is(err, ErrPassphrase) {
				t.Errorf("%s: %s at %d: %v", name, what, at, err)
			}
		}
		// All of age's header, and some of what is one piece of ciphertext.
		for i := range data {
			if i > c.header && i%9 != 0 && i < len(data)-20 {
				continue
			}
			// A line end at the very end is not needed in armor.
			if name == "binary" || i < len(data)-1 {
				refused("cut", i, data[:i])
			}
			p := bytes.Clone(data)
			p[i] ^= 1
			refused("altered", i, p)
		}
		refused("longer", len(data), append(bytes.Clone(data), 'x'))
	}
	data := encrypt(t, sample(t), quick, false)
	for _, i := range []int{30, 60, len(data) - 1} {
		p := bytes.Clone(data)
		p[i] ^= 1
		if _, err := decrypt(p, WithPassphrase(pass).identities); err == nil {
			t.Errorf("altered at %d: accepted", i)
		}
	}
	if _, err := ByPassphrase([]byte("no backup")); !errors.Is(err, ErrDamaged) {
		t.Errorf("what is no backup: %v", err)
	}
}

// A backup of several of age's chunks.
func TestLarge(t *testing.T) {
	to, by := native(t)
	b := sample(t)
	for i := range 3 {
		body := make([]byte, sealstore.MaxBody)
		rand.Read(body)
		b.Contents.Objects = append(b.Contents.Objects, sealstore.Content{ID: sealstore.ID{100, byte(i)}, Body: body})
	}
	got, err := Decrypt(encrypt(t, b, to, false), by)
	check(t, err)
	defer got.Destroy()
	if !b.same(got) {
		t.Error("another backup came back")
	}
}

// A scrypt stanza must not have the reader spend any amount of memory.
func TestWorkFactor(t *testing.T) {
	costly := Passphrase(pass)
	costly.work = 1
	data := encrypt(t, sample(t), costly, false)
	data = bytes.Replace(data, []byte(" 1\n"), []byte(" 21\n"), 1)
	begun := time.Now()
	if _, err := Decrypt(data, WithPassphrase(pass)); !errors.Is(err, ErrDamaged) || time.Since(begun) > time.Second {
		t.Errorf("%v after %v", err, time.Since(begun))
	}
}

// A key that is not the one it is said to be is neither written nor read.
func TestWrongKey(t *testing.T) {
	to, by := native(t)
	b := sample(t)
	b.Contents.Objects[0].Secret[0] ^= 1
	if _, err := Encrypt(b, to, false); !errors.Is(err, ErrKey) {
		t.Errorf("written: %v", err)
	}
	b.Contents.Objects[0].Secret[0] ^= 1
	b.Manifest.Keys[0].DID = did.Encode([32]byte(ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)))
	if _, err := Encrypt(b, to, false); !errors.Is(err, ErrMalformed) {
		t.Errorf("a key that is not there: %v", err)
	}
	b = sample(t)
	p, secrets, err := b.encode()
	check(t, err)
	secrets[0], secrets[1] = secrets[1], secrets[0]
	var out bytes.Buffer
	w, err := age.Encrypt(&out, to.keys[0])
	check(t, err)
	check(t, write(w, p, secrets))
	if _, err := Decrypt(out.Bytes(), by); !errors.Is(err, ErrKey) {
		t.Errorf("read: %v", err)
	}
}
