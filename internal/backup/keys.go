package backup

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

var (
	// ErrDamaged: the file was cut, altered, or is not encrypted with age.
	ErrDamaged = errors.New("damaged, or not a backup")
	// ErrPassphrase: the passphrase is wrong, or the file was altered where
	// that cannot be told apart.
	ErrPassphrase = errors.New("wrong passphrase")
	// ErrIdentity: the file is not encrypted to any of the keys given.
	ErrIdentity = errors.New("the backup is not encrypted to this key")
	// ErrNoKey: what should be a private key is none.
	ErrNoKey = errors.New("no private key of age or ssh")
)

// maxWorkFactor is the work factor of scrypt that is taken of a file: one that
// asks for more than 2^20 is none of ours.
const maxWorkFactor = 20

// Recipients are those who shall be able to read a backup: who knows a
// passphrase, or who has one of the keys. age does not mix the two, since a
// passphrase also tells who wrote a file, and a public key does not.
type Recipients struct {
	keys       []age.Recipient
	passphrase []byte
	work       int // factor of scrypt
}

// Passphrase encrypts under a passphrase, which stays the caller's.
func Passphrase(passphrase []byte) *Recipients {
	return &Recipients{passphrase: passphrase, work: workFactor}
}

// ParseRecipients reads public keys: those of age (age1…, with post-quantum
// ones), ssh-ed25519 and ssh-rsa.
func ParseRecipients(keys []string) (*Recipients, error) {
	var r Recipients
	for _, s := range keys {
		k, err := parseRecipient(strings.TrimSpace(s))
		if err != nil {
			return nil, err
		}
		r.keys = append(r.keys, k)
	}
	return &r, nil
}

func parseRecipient(s string) (age.Recipient, error) {
	switch {
	case strings.HasPrefix(s, "age1pq1"):
		return age.ParseHybridRecipient(s)
	case strings.HasPrefix(s, "age1") && strings.LastIndex(s, "1") == 3:
		return age.ParseX25519Recipient(s)
	case strings.HasPrefix(s, "age1"):
		return nil, errors.New("keys of age's plugins are not supported")
	case strings.HasPrefix(s, "ssh-"):
		return agessh.ParseRecipient(s)
	}
	// What is no public key may be a secret one.
	return nil, errors.New("not a public key of age (age1…) or ssh (ssh-ed25519 or ssh-rsa)")
}

// recipients are what age needs. The key of the file goes to key as well.
func (r *Recipients) recipients(key *fileKey) []age.Recipient {
	keys := r.keys
	if len(r.passphrase) > 0 {
		// Fails only for an empty one.
		if s, err := age.NewScryptRecipient(string(r.passphrase)); err == nil {
			s.SetWorkFactor(r.work)
			keys = []age.Recipient{s}
		}
	}
	out := slices.Clone(keys)
	if len(out) > 0 {
		out[0] = keeper{out[0], key}
	}
	return out
}

// fileKey is the key that age encrypts a file with, in secret memory. As an
// Identity it reads that file.
type fileKey struct{ buf *secmem.Buffer }

func (k *fileKey) destroy() { k.buf.Destroy() }

func (k *fileKey) Unwrap([]*age.Stanza) ([]byte, error) { return k.buf.Bytes(), nil }

// keeper is a Recipient that keeps the key of the file.
type keeper struct {
	age.Recipient
	key *fileKey
}

func (k keeper) WrapWithLabels(key []byte) (s []*age.Stanza, labels []string, err error) {
	if k.key.buf, err = secmem.New(len(key)); err != nil {
		return nil, nil, err
	}
	secmem.Copy(k.key.buf.Bytes(), key)
	if r, ok := k.Recipient.(age.RecipientWithLabels); ok {
		return r.WrapWithLabels(key)
	}
	s, err = k.Wrap(key)
	return s, nil, err
}

// ByPassphrase tells whether a file was encrypted under a passphrase, and not
// to keys.
func ByPassphrase(data []byte) (bool, error) {
	_, err := age.Decrypt(open(data), nobody{})
	var no *age.NoIdentityMatchError
	if !errors.As(err, &no) {
		return false, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return slices.Contains(no.StanzaTypes, "scrypt"), nil
}

// nobody is an Identity that fits no file.
type nobody struct{}

func (nobody) Unwrap([]*age.Stanza) ([]byte, error) { return nil, age.ErrIncorrectIdentity }

// refused explains why age does not decrypt.
func refused(err error) error {
	var no *age.NoIdentityMatchError
	switch {
	case errors.As(err, &no) && slices.Contains(no.StanzaTypes, "scrypt"):
		return ErrPassphrase
	case errors.As(err, &no):
		return ErrIdentity
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// Identity is what opens a backup.
type Identity struct{ passphrase, file []byte }

// WithPassphrase opens what Passphrase has encrypted.
func WithPassphrase(passphrase []byte) *Identity { return &Identity{passphrase: passphrase} }

// WithFile opens what was encrypted to a key. file is the content of an
// identity file of age, which may be encrypted under the passphrase, or of a
// private key of OpenSSH, which may have it.
func WithFile(file, passphrase []byte) *Identity { return &Identity{passphrase, file} }

// NeedsPassphrase tells whether a file is encrypted itself.
func NeedsPassphrase(file []byte) (needs bool) {
	secmem.Compute(func() {
		_, err := (&Identity{file: file}).identities()
		needs = errors.Is(err, errNeedsPassphrase)
	})
	return needs
}

var errNeedsPassphrase = errors.New("it is encrypted, and no passphrase was given")

// identities are what age needs. What parses them leaves copies on the heap, so
// it runs in secmem.Compute.
func (i *Identity) identities() ([]age.Identity, error) {
	if i.file == nil {
		s, err := age.NewScryptIdentity(string(i.passphrase))
		if err != nil {
			return nil, ErrPassphrase
		}
		s.SetMaxWorkFactor(maxWorkFactor)
		return []age.Identity{s}, nil
	}
	ids, err := i.parse(i.file)
	if err != nil && !errors.Is(err, ErrPassphrase) {
		err = fmt.Errorf("%w: %w", ErrNoKey, err)
	}
	return ids, err
}

func (i *Identity) parse(file []byte) ([]age.Identity, error) {
	text := bytes.TrimSpace(file)
	switch {
	case bytes.HasPrefix(text, []byte("age-encryption.org/")), bytes.HasPrefix(text, []byte(armor.Header)):
		plain, err := i.plain(file)
		if err != nil {
			return nil, err
		}
		defer secmem.Wipe(plain)
		return age.ParseIdentities(bytes.NewReader(plain))
	case bytes.HasPrefix(text, []byte("-----BEGIN ")):
		return i.openSSH(file)
	}
	return age.ParseIdentities(bytes.NewReader(file))
}

// plain decrypts an identity file of "age -p".
func (i *Identity) plain(file []byte) ([]byte, error) {
	if len(i.passphrase) == 0 {
		return nil, errNeedsPassphrase
	}
	by, err := WithPassphrase(i.passphrase).identities()
	if err != nil {
		return nil, err
	}
	r, err := age.Decrypt(open(file), by...)
	if err != nil {
		return nil, refused(err)
	}
	// Not larger than what it was decrypted from.
	return readAll(r, len(file))
}

// readAll reads a secret of at most size bytes, which the caller wipes. Of one
// that cannot be read to its end, nothing is left.
func readAll(r io.Reader, size int) ([]byte, error) {
	p := make([]byte, size)
	n, err := io.ReadFull(r, p)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		secmem.Wipe(p)
		return nil, err
	}
	return p[:n], nil
}

func (i *Identity) openSSH(file []byte) ([]age.Identity, error) {
	key, err := ssh.ParseRawPrivateKey(file)
	if errors.As(err, new(*ssh.PassphraseMissingError)) {
		if len(i.passphrase) == 0 {
			return nil, errNeedsPassphrase
		}
		if key, err = ssh.ParseRawPrivateKeyWithPassphrase(file, i.passphrase); err != nil {
			return nil, ErrPassphrase
		}
	}
	if err != nil {
		return nil, err
	}
	id, err := sshIdentity(key)
	if err != nil {
		return nil, err
	}
	return []age.Identity{id}, nil
}

// sshIdentity makes a private key an identity, and wipes it where that is
// possible. What age keeps of an Ed25519 key is a key for X25519 that is derived
// from it.
func sshIdentity(key any) (age.Identity, error) {
	switch k := key.(type) {
	case *ed25519.PrivateKey: // of an OPENSSH PRIVATE KEY
		return sshIdentity(*k)
	case ed25519.PrivateKey: // of a PRIVATE KEY (PKCS #8)
		defer secmem.Wipe(k)
		return agessh.NewEd25519Identity(k)
	case *rsa.PrivateKey:
		return agessh.NewRSAIdentity(k)
	}
	return nil, errors.New("an ssh key that is neither Ed25519 nor RSA")
}
