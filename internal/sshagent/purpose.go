package sshagent

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/crypto/ssh"

	"github.com/InterCooperative-Network/icn-p11/internal/sshsig"
)

// Kinds of what is signed.
const (
	kindLogin     = "ssh-login"     // a request to log in by SSH
	kindSignature = "ssh-signature" // of "ssh-keygen -Y sign"
	kindMessage   = "message"       // anything else
)

// purpose is what a message is signed for, as far as the message tells.
type purpose struct {
	kind      string
	user      string        // of a login
	session   []byte        // of a login
	host      ssh.PublicKey // of a login that names the host's key
	namespace string        // of a signature
	digest    [sha256.Size]byte
}

// userauth is what a client signs to log in (RFC 4252, section 7), behind the
// session identifier.
type userauth struct {
	User      string `sshtype:"50"`
	Service   string
	Method    string
	Signed    bool
	Algorithm string
	Key       []byte
	Rest      []byte `ssh:"rest"`
}

// hostBound is the method that also names the host's key (OpenSSH, PROTOCOL,
// 3.1).
const hostBound = "publickey-hostbound-v00@openssh.com"

// purposeOf recognises messages that are signed by SSH programs with a key.
// It is strict: what no SSH program would make is only a message.
func purposeOf(key ssh.PublicKey, message []byte) purpose {
	p := purpose{kind: kindMessage, digest: sha256.Sum256(message)}
	if ns, ok := sshsig.Namespace(message); ok {
		p.kind, p.namespace = kindSignature, ns
		return p
	}
	var m struct {
		Session []byte
		Rest    []byte `ssh:"rest"`
	}
	var u userauth
	if ssh.Unmarshal(message, &m) != nil || ssh.Unmarshal(m.Rest, &u) != nil || !bytes.Equal(ssh.Marshal(u), m.Rest) {
		return p
	}
	// The identifier is a hash of the key exchange: SHA-1, SHA-256, 384 or 512.
	switch len(m.Session) {
	case 20, 32, 48, 64:
	default:
		return p
	}
	if u.Service != "ssh-connection" || !u.Signed || !u.with(key) {
		return p
	}
	switch u.Method {
	case "publickey":
		if len(u.Rest) > 0 {
			return p
		}
	case hostBound:
		var h struct{ Key []byte }
		if ssh.Unmarshal(u.Rest, &h) != nil {
			return p
		}
		host, err := ssh.ParsePublicKey(h.Key)
		if err != nil || !bytes.Equal(host.Marshal(), h.Key) {
			return p
		}
		p.host = host
	default:
		return p
	}
	p.kind, p.user, p.session = kindLogin, u.User, m.Session
	return p
}

// with tells whether the login is with a key, or with a certificate of it.
func (u *userauth) with(key ssh.PublicKey) bool {
	if u.Algorithm == key.Type() {
		return bytes.Equal(u.Key, key.Marshal())
	}
	parsed, err := ssh.ParsePublicKey(u.Key)
	if err != nil || parsed.Type() != u.Algorithm {
		return false
	}
	cert, ok := parsed.(*ssh.Certificate)
	return ok && bytes.Equal(cert.Key.Marshal(), key.Marshal())
}

// binding is what an SSH client says of a connection: it is used by the
// session with a host, which proves that by a signature with its key.
type binding struct {
	host      ssh.PublicKey
	session   []byte
	forwarded bool // to that host, for use there
}

const (
	bindExtension = "session-bind@openssh.com"
	maxBindings   = 16
)

// parseBinding reads a session-bind@openssh.com message (PROTOCOL.agent, 1),
// and checks the host's signature.
func parseBinding(contents []byte) (binding, error) {
	var m struct {
		Host, Session, Signature []byte
		Forwarded                bool
	}
	if err := ssh.Unmarshal(contents, &m); err != nil {
		return binding{}, err
	}
	host, err := ssh.ParsePublicKey(m.Host)
	if err != nil {
		return binding{}, fmt.Errorf("the host's key: %w", err)
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(m.Signature, &sig); err != nil {
		return binding{}, fmt.Errorf("the host's signature: %w", err)
	}
	if err := host.Verify(m.Session, &sig); err != nil {
		return binding{}, fmt.Errorf("the host's signature: %w", err)
	}
	return binding{host, m.Session, m.Forwarded}, nil
}

// bind adds a binding to those of a connection, by the rules of ssh-agent.
func bind(all []binding, b binding) ([]binding, error) {
	for _, old := range all {
		same := bytes.Equal(old.session, b.session)
		switch {
		case !old.forwarded:
			return all, errors.New("a connection that a login has used is bound to another session")
		case same && bytes.Equal(old.host.Marshal(), b.host.Marshal()):
			return all, nil
		case same:
			return all, errors.New("a session is bound to another host's key")
		}
	}
	if len(all) >= maxBindings {
		return all, fmt.Errorf("more than %d sessions on one connection", maxBindings)
	}
	return append(all, b), nil
}

// target is the host that a login is for: that which the message names, else
// that of the session. It is nil where nobody has said.
func (p purpose) target(all []binding) ssh.PublicKey {
	if p.host != nil {
		return p.host
	}
	for _, b := range all {
		if p.kind == kindLogin && bytes.Equal(b.session, p.session) {
			return b.host
		}
	}
	return nil
}

// describe says what a signature is for, in a line.
func (p purpose) describe(all []binding) string {
	switch p.kind {
	case kindLogin:
		what := "an SSH login as " + text(p.user)
		if host := p.target(all); host != nil {
			what += " on the host with the key " + ssh.FingerprintSHA256(host)
		}
		return what
	case kindSignature:
		return "an SSH signature for " + text(p.namespace)
	}
	return fmt.Sprintf("a message with the SHA-256 %x", p.digest)
}

// text makes somebody else's words safe to show: short, and on one line.
func text(s string) string {
	const most = 100
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strconv.Quote(s)
}
