package sshagent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// process is the one at the other end of a connection, as the kernel tells.
// Its number may have gone to another process since; its user has not.
type process struct {
	PID int
	UID uint32
}

// program is the name of its program, which that may choose.
func (p process) program() string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.PID))
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(name))
}

// session is what one client sees of an Agent. It implements
// [agent.ExtendedAgent].
type session struct {
	a        *Agent
	peer     process
	gone     func() bool
	bindings []binding
}

var _ agent.ExtendedAgent = (*session)(nil)

// failed logs why a request is refused.
func (s *session) failed(what string, err error, attrs ...any) {
	attrs = append(attrs, "client_pid", s.peer.PID, "client_uid", s.peer.UID, "error", err)
	s.a.log.Warn(what+" refused", attrs...)
}

// remote tells whether the client is on another host, to which SSH has
// forwarded the connection, so far as SSH has said.
func (s *session) remote() bool {
	for _, b := range s.bindings {
		if b.forwarded {
			return true
		}
	}
	return false
}

// List is a request for the keys.
func (s *session) List() ([]*agent.Key, error) {
	keys, err := s.a.keys()
	if err != nil {
		s.failed("list", err)
		return nil, err
	}
	var list []*agent.Key
	for _, k := range keys {
		list = append(list, &agent.Key{Format: k.ssh().Type(), Blob: k.ssh().Marshal(), Comment: k.Comment})
	}
	return list, nil
}

// Sign is SignWithFlags without any.
func (s *session) Sign(key ssh.PublicKey, message []byte) (*ssh.Signature, error) {
	return s.SignWithFlags(key, message, 0)
}

// SignWithFlags is a request for a signature. The flags choose among the hash
// functions of RSA, and mean nothing here.
func (s *session) SignWithFlags(key ssh.PublicKey, message []byte, _ agent.SignatureFlags) (*ssh.Signature, error) {
	k, err := s.a.key(key.Marshal())
	if err != nil {
		s.failed("signature", err)
		return nil, err
	}
	p := purposeOf(k.ssh(), message)
	attrs := []any{"key", k.fingerprint(), "for", p.kind}
	switch p.kind {
	case kindLogin:
		attrs = append(attrs, "user", p.user)
	case kindSignature:
		attrs = append(attrs, "namespace", p.namespace)
	}
	if host := p.target(s.bindings); host != nil {
		attrs = append(attrs, "host", ssh.FingerprintSHA256(host))
	}
	if s.remote() {
		attrs = append(attrs, "forwarded", true)
	}
	if s.a.opt.SSHOnly && p.kind == kindMessage {
		err = errors.New("neither an SSH login nor an SSH signature, and --ssh-only is set")
	} else {
		err = s.a.confirm(func() string { return s.question(k, p) }, s.gone)
	}
	var sig []byte
	if err == nil {
		sig, err = s.a.sign(k, message)
	}
	if err != nil {
		s.failed("signature", err, attrs...)
		return nil, err
	}
	s.a.log.Info("signed", append(attrs, "client_pid", s.peer.PID, "client_uid", s.peer.UID)...)
	return &ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: sig}, nil
}

// question is what a person is asked before a signature.
func (s *session) question(k Key, p purpose) string {
	from := ""
	for _, b := range s.bindings {
		if b.forwarded {
			from = ", from the host with the key " + ssh.FingerprintSHA256(b.host)
		}
	}
	return fmt.Sprintf("Sign with the key %s of token %s (%s)?\nFor: %s\nAsked by: process %d (%s) of user %d%s",
		text(k.Comment), text(s.a.opt.Name), k.fingerprint(), p.describe(s.bindings),
		s.peer.PID, text(s.peer.program()), s.peer.UID, from)
}

// Add is refused: keys get into a token by other ways, sealed.
func (s *session) Add(agent.AddedKey) error { return s.refuse("adding a key") }

// Remove is refused, and so is RemoveAll: a key that is gone would be gone for
// good.
func (s *session) Remove(ssh.PublicKey) error { return s.refuse("removing a key") }

// RemoveAll is refused.
func (s *session) RemoveAll() error { return s.refuse("removing all keys") }

func (s *session) refuse(what string) error {
	s.failed(what, errKeep)
	return errKeep
}

// Lock takes a passphrase in secret memory.
func (s *session) Lock(passphrase []byte) error {
	return s.change("lock", s.a.lock, passphrase)
}

// Unlock takes a passphrase in secret memory.
func (s *session) Unlock(passphrase []byte) error {
	return s.change("unlock", s.a.unlock, passphrase)
}

// change locks or unlocks, for who is on this machine: others that a
// connection was forwarded to are to sign, and not to guess PINs or to lock
// the agent's owner out.
func (s *session) change(what string, f func([]byte) error, passphrase []byte) error {
	err := error(nil)
	if s.remote() {
		err = errors.New("the connection was forwarded to another host")
	} else {
		err = f(passphrase)
	}
	if err != nil {
		s.failed(what, err)
		return err
	}
	s.a.log.Info(what+"ed", "client_pid", s.peer.PID, "client_uid", s.peer.UID)
	return nil
}

// Signers has no place in the protocol.
func (s *session) Signers() ([]ssh.Signer, error) { return nil, errors.ErrUnsupported }

// Extension is a request beyond the basic protocol.
func (s *session) Extension(name string, contents []byte) ([]byte, error) {
	if name != bindExtension {
		return nil, agent.ErrExtensionUnsupported
	}
	b, err := parseBinding(contents)
	if err == nil {
		s.bindings, err = bind(s.bindings, b)
	}
	if err != nil {
		s.failed(bindExtension, err)
	}
	return nil, err
}
