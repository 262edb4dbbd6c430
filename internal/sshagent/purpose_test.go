package sshagent

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// loginMessage is what a client signs to log in, to the host with a key where
// one is given.
func loginMessage(key ssh.PublicKey, user string, host ssh.PublicKey) []byte {
	u := userauth{User: user, Service: "ssh-connection", Method: "publickey", Signed: true, Algorithm: key.Type(), Key: key.Marshal()}
	if host != nil {
		u.Method = hostBound
		u.Rest = ssh.Marshal(struct{ Key []byte }{host.Marshal()})
	}
	return append(ssh.Marshal(struct{ Session []byte }{bytes.Repeat([]byte{7}, 32)}), ssh.Marshal(u)...)
}

// sigMessage is what a key signs for an SSH signature.
func sigMessage(namespace string) []byte {
	d := sha512.Sum512([]byte("data"))
	return append([]byte("SSHSIG"), ssh.Marshal(struct {
		Namespace, Reserved, Hash string
		Digest                    []byte
	}{namespace, "", "sha512", d[:]})...)
}

func hostKey(t testing.TB) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bindingMessage is the contents of a session-bind@openssh.com request.
func bindingMessage(t testing.TB, session []byte, forwarded bool) []byte {
	return bindingOf(t, hostKey(t), session, forwarded)
}

func bindingOf(t testing.TB, host ssh.Signer, session []byte, forwarded bool) []byte {
	t.Helper()
	sig, err := host.Sign(rand.Reader, session)
	if err != nil {
		t.Fatal(err)
	}
	return ssh.Marshal(struct {
		Host, Session, Signature []byte
		Forwarded                bool
	}{host.PublicKey().Marshal(), session, ssh.Marshal(sig), forwarded})
}

func TestPurpose(t *testing.T) {
	key, host := Key{Public: newMemory(t, "").public()}.ssh(), hostKey(t).PublicKey()
	login, bound := loginMessage(key, "me", nil), loginMessage(key, "me", host)
	if p := purposeOf(key, login); p.kind != kindLogin || p.user != "me" || p.host != nil || p.describe(nil) != `an SSH login as "me"` {
		t.Errorf("%+v", p)
	}
	p := purposeOf(key, bound)
	if p.kind != kindLogin || p.describe(nil) != `an SSH login as "me" on the host with the key `+ssh.FingerprintSHA256(host) {
		t.Errorf("%+v", p)
	}
	// The session tells the host where the message does not.
	other := binding{host: host, session: bytes.Repeat([]byte{7}, 32)}
	if p := purposeOf(key, login); !bytes.Equal(p.target([]binding{other}).Marshal(), host.Marshal()) {
		t.Errorf("%+v", p)
	}
	if p := purposeOf(key, sigMessage("git")); p.kind != kindSignature || p.describe(nil) != `an SSH signature for "git"` {
		t.Errorf("%+v", p)
	}
	if d := purposeOf(key, loginMessage(key, strings.Repeat("a\n", 1000), nil)).describe(nil); len(d) > 300 || strings.Contains(d, "\n") {
		t.Errorf("somebody else's words are shown as they are: %q", d)
	}
	for name, m := range map[string][]byte{"login": login, "bound": bound} {
		for i := range m {
			if purposeOf(key, m[:i]).kind != kindMessage {
				t.Errorf("%s: recognised in its first %d bytes", name, i)
			}
		}
		if purposeOf(key, append(bytes.Clone(m), 0)).kind != kindMessage {
			t.Errorf("%s: recognised with a byte behind it", name)
		}
	}
	cert := &ssh.Certificate{Key: key, CertType: ssh.UserCert, ValidPrincipals: []string{"me"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, hostKey(t)); err != nil {
		t.Fatal(err)
	}
	if p := purposeOf(key, loginMessage(cert, "me", host)); p.kind != kindLogin || p.user != "me" {
		t.Errorf("with a certificate: %+v", p)
	}
	if purposeOf(host, loginMessage(cert, "me", nil)).kind != kindMessage {
		t.Error("a login with another key's certificate is recognised")
	}
	if purposeOf(host, login).kind != kindMessage {
		t.Error("a login with another key is recognised")
	}
	for what, change := range map[string]func(*userauth){
		"service":   func(u *userauth) { u.Service = "ssh-userauth" },
		"method":    func(u *userauth) { u.Method = "hostbased" },
		"unsigned":  func(u *userauth) { u.Signed = false },
		"algorithm": func(u *userauth) { u.Algorithm = "ssh-rsa" },
	} {
		u := userauth{User: "me", Service: "ssh-connection", Method: "publickey", Signed: true, Algorithm: key.Type(), Key: key.Marshal()}
		change(&u)
		m := append(ssh.Marshal(struct{ Session []byte }{make([]byte, 32)}), ssh.Marshal(u)...)
		if purposeOf(key, m).kind != kindMessage {
			t.Errorf("recognised with another %s", what)
		}
	}
	short := append(ssh.Marshal(struct{ Session []byte }{make([]byte, 33)}), login[36:]...)
	if purposeOf(key, short).kind != kindMessage {
		t.Error("recognised with an odd session identifier")
	}
}

func TestBinding(t *testing.T) {
	host := hostKey(t)
	good := bindingOf(t, host, []byte("session"), true)
	b, err := parseBinding(good)
	if err != nil || !b.forwarded || string(b.session) != "session" {
		t.Fatalf("%+v, %v", b, err)
	}
	for i := range good[:len(good)-1] { // the last byte is the flag
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := parseBinding(bad); err == nil {
			t.Errorf("accepted with byte %d changed", i)
		}
	}
	all, err := bind(nil, b)
	if err != nil || len(all) != 1 {
		t.Fatal(err)
	}
	if all, err = bind(all, b); err != nil || len(all) != 1 {
		t.Errorf("again: %d, %v", len(all), err)
	}
	stolen, err := parseBinding(bindingMessage(t, []byte("session"), true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = bind(all, stolen); err == nil {
		t.Error("a session has two hosts")
	}
	last, err := parseBinding(bindingMessage(t, []byte("last"), false))
	if err != nil {
		t.Fatal(err)
	}
	if all, err = bind(all, last); err != nil || len(all) != 2 {
		t.Fatalf("%d, %v", len(all), err)
	}
	next, _ := parseBinding(bindingMessage(t, []byte("next"), false))
	if _, err = bind(all, next); err == nil {
		t.Error("bound after a login")
	}
	for all = nil; len(all) < maxBindings; {
		b, _ := parseBinding(bindingMessage(t, []byte{byte(len(all))}, true))
		if all, err = bind(all, b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err = bind(all, next); err == nil {
		t.Error("there is no end to sessions")
	}
}

// A connection that was forwarded signs, and does nothing else.
func TestForwarded(t *testing.T) {
	r := start(t, "1234", Options{})
	c := r.client(t)
	if _, err := c.Extension(bindExtension, bindingMessage(t, []byte("session"), true)); err != nil {
		t.Fatal(err)
	}
	if err := r.sign(t, c, "m"); err != nil {
		t.Error(err)
	}
	if !r.log.has("forwarded=true") {
		t.Error("the log does not say that the request came from another host")
	}
	if c.Lock([]byte("passphrase")) == nil || !r.token.loggedIn() {
		t.Error("locked from another host")
	}
	if err := r.client(t).Lock([]byte("1234")); err != nil {
		t.Fatal(err)
	}
	tries := r.token.logins
	if c.Unlock([]byte("1234")) == nil || r.token.logins != tries {
		t.Error("unlocked, or tried, from another host")
	}
	if _, err := c.Extension(bindExtension, []byte("nothing of the kind")); err == nil {
		t.Error("a binding that is none was accepted")
	}
}

// What is recognised would be written just so.
func FuzzPurpose(f *testing.F) {
	key, host := Key{Public: newMemory(f, "").public()}.ssh(), hostKey(f).PublicKey()
	f.Add(loginMessage(key, "me", nil))
	f.Add(loginMessage(key, "me", host))
	f.Add(sigMessage("git"))
	f.Fuzz(func(t *testing.T, m []byte) {
		p := purposeOf(key, m)
		p.describe(nil)
		if p.kind != kindLogin {
			return
		}
		again := loginMessage(key, p.user, p.host)
		again = append(ssh.Marshal(struct{ Session []byte }{p.session}), again[4+32:]...)
		if !bytes.Equal(m, again) && !bytes.Contains(m, []byte(ssh.CertAlgoED25519v01)) {
			t.Errorf("%x is written %x", m, again)
		}
	})
}

func FuzzBinding(f *testing.F) {
	f.Add(bindingMessage(f, []byte("session"), true))
	f.Add(bindingMessage(f, nil, false))
	f.Fuzz(func(t *testing.T, m []byte) {
		if b, err := parseBinding(m); err == nil {
			bind([]binding{b}, b)
		}
	})
}
