// Package keyfile reads Ed25519 private keys from files, into secret memory:
// PKCS#8 (RFC 8410), OpenSSH's own format, and bare seeds.
package keyfile

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
	"golang.org/x/crypto/ssh"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// MaxFile is the size of the largest file that is read, in bytes.
const MaxFile = secmem.Max - 1

// Read reads a whole file into secret memory, which the caller destroys.
func Read(r io.Reader) (*secmem.Buffer, int, error) {
	buf, err := secmem.New(secmem.Max)
	if err != nil {
		return nil, 0, err
	}
	n, err := io.ReadFull(r, buf.Bytes())
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		buf.Destroy()
		return nil, 0, err
	}
	if n > MaxFile {
		buf.Destroy()
		return nil, 0, fmt.Errorf("more than %d bytes: this is no file with one Ed25519 key", MaxFile)
	}
	return buf, n, nil
}

// ErrPassphrase: the key is encrypted, and no passphrase or a wrong one was
// given.
var ErrPassphrase = errors.New("wrong passphrase")

// Parse finds the seed, 32 bytes, in the content of a file. passphrase is
// asked for the passphrase of an encrypted key; the caller destroys what it
// gives, and the seed.
func Parse(data []byte, passphrase func() ([]byte, error)) (seed *secmem.Buffer, format string, err error) {
	if seed, err = secmem.New(ed25519.SeedSize); err != nil {
		return nil, "", err
	}
	secmem.Compute(func() { format, err = parse(seed.Bytes(), data, nil) })
	if errors.Is(err, errEncrypted) {
		var pass []byte
		if pass, err = passphrase(); err == nil && len(pass) == 0 {
			err = ErrPassphrase
		} else if err == nil {
			secmem.Compute(func() { format, err = parse(seed.Bytes(), data, pass) })
		}
	}
	if err != nil {
		seed.Destroy()
		return nil, "", err
	}
	return seed, format, nil
}

const (
	begin = "-----BEGIN "
	end   = "-----END "
	dash  = "-----"
)

// errEncrypted asks for a passphrase.
var errEncrypted = errors.New("the key is encrypted")

// parse is Parse once a passphrase is there; nil is none yet.
func parse(seed, data, passphrase []byte) (format string, err error) {
	if len(data) == ed25519.SeedSize {
		copy(seed, data)
		return "bare seed", nil
	}
	kind, body, ok := Block(data)
	if !ok {
		if pkcs8(seed, data) {
			return "PKCS#8", nil
		}
		return "", errors.New("neither a bare seed of 32 bytes, nor PKCS#8, nor an OpenSSH private key")
	}
	switch kind {
	case "PRIVATE KEY":
		der, err := secmem.New(secmem.Max)
		if err != nil {
			return "", err
		}
		defer der.Destroy()
		n, err := Decode(der.Bytes(), body)
		if err != nil || !pkcs8(seed, der.Bytes()[:n]) {
			return "", errors.New("the PRIVATE KEY is not an Ed25519 key in the form of RFC 8410")
		}
		return "PKCS#8", nil
	case "OPENSSH PRIVATE KEY":
		return "OpenSSH", openSSH(seed, data, passphrase)
	case "ENCRYPTED PRIVATE KEY":
		return "", errors.New("the key is encrypted (PKCS#8): decrypt it into a pipe, as by openssl pkey -in FILE, and import from there")
	}
	return "", fmt.Errorf("a file of kind %q holds no Ed25519 key that can be read", kind)
}

// Block finds the one PEM block of a file; its body is still encoded. A bare
// seed has none, whatever its bytes are.
func Block(data []byte) (kind string, body []byte, ok bool) {
	if len(data) == ed25519.SeedSize {
		return "", nil, false
	}
	data = bytes.TrimSpace(data)
	rest, ok := bytes.CutPrefix(data, []byte(begin))
	if !ok {
		return "", nil, false
	}
	name, rest, ok := bytes.Cut(rest, []byte(dash))
	if !ok || len(name) > 64 {
		return "", nil, false
	}
	body, ok = bytes.CutSuffix(rest, []byte(end+string(name)+dash))
	if !ok || bytes.Contains(body, []byte(dash)) {
		return "", nil, false
	}
	return string(name), body, true
}

// Decode is base64 without the line ends, from secret memory into such. dst has
// room for the whole body.
func Decode(dst, body []byte) (int, error) {
	n := 0
	for line := range bytes.FieldsSeq(body) {
		n += copy(dst[n:], line)
	}
	return base64.StdEncoding.Decode(dst, dst[:n])
}

// pkcs8 reads a OneAsymmetricKey of RFC 8410, section 7, with or without
// attributes and public key; the latter is compared by the caller's use.
func pkcs8(seed, der []byte) bool {
	in := cryptobyte.String(der)
	var key, algorithm, octets, inner cryptobyte.String
	var oid cryptobyte.String
	version := 0
	if !in.ReadASN1(&key, asn1.SEQUENCE) || !in.Empty() ||
		!key.ReadASN1Integer(&version) || version < 0 || version > 1 ||
		!key.ReadASN1(&algorithm, asn1.SEQUENCE) || !algorithm.ReadASN1(&oid, asn1.OBJECT_IDENTIFIER) || !algorithm.Empty() ||
		!bytes.Equal(oid, []byte{0x2b, 0x65, 0x70}) || // 1.3.101.112
		!key.ReadASN1(&octets, asn1.OCTET_STRING) || !octets.ReadASN1(&inner, asn1.OCTET_STRING) || !octets.Empty() {
		return false
	}
	for _, tag := range []asn1.Tag{asn1.Tag(0).ContextSpecific().Constructed(), asn1.Tag(1).ContextSpecific()} {
		if !key.SkipOptionalASN1(tag) {
			return false
		}
	}
	return key.Empty() && len(inner) == len(seed) && copy(seed, inner) == len(seed)
}

// openSSH reads what ssh-keygen writes. The library that does it leaves copies
// on the heap, which secmem.Compute has wiped where the toolchain can do that.
func openSSH(seed, data, passphrase []byte) error {
	key, err := ssh.ParseRawPrivateKey(data)
	var missing *ssh.PassphraseMissingError
	if errors.As(err, &missing) {
		if passphrase == nil {
			return errEncrypted
		}
		key, err = ssh.ParseRawPrivateKeyWithPassphrase(data, passphrase)
		if err != nil {
			return ErrPassphrase
		}
	}
	if err != nil {
		return errors.New("the OPENSSH PRIVATE KEY is malformed")
	}
	k, ok := key.(*ed25519.PrivateKey)
	if !ok || len(*k) != ed25519.PrivateKeySize {
		return errors.New("the OPENSSH PRIVATE KEY is not an Ed25519 key")
	}
	copy(seed, (*k)[:ed25519.SeedSize])
	secmem.Wipe(*k)
	return nil
}
