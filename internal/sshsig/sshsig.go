// Package sshsig makes and checks the signatures of "ssh-keygen -Y sign"
// (OpenSSH, PROTOCOL.sshsig) with Ed25519 keys.
package sshsig

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/pem"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"
)

const (
	magic   = "SSHSIG"
	version = 1
	block   = "SSH SIGNATURE"
)

// envelope is the signature as it is stored, behind the magic.
type envelope struct {
	Version   uint32
	PublicKey []byte
	Namespace string
	Reserved  string
	Hash      string
	Signature []byte
}

// signed is what is signed, behind the magic.
type signed struct {
	Namespace string
	Reserved  string
	Hash      string
	Digest    []byte
}

// message is what the key signs for a message of a namespace.
func message(namespace, hash string, data []byte) ([]byte, error) {
	var digest []byte
	switch hash {
	case "sha512":
		d := sha512.Sum512(data)
		digest = d[:]
	case "sha256":
		d := sha256.Sum256(data)
		digest = d[:]
	default:
		return nil, fmt.Errorf("an SSH signature with the hash %q, which is neither sha256 nor sha512", hash)
	}
	return append([]byte(magic), ssh.Marshal(signed{namespace, "", hash, digest})...), nil
}

// Namespace recognises what a key signs for an SSH signature, and gives the
// namespace in it: an agent sees this message, not the data.
func Namespace(message []byte) (namespace string, ok bool) {
	body, ok := bytes.CutPrefix(message, []byte(magic))
	var s signed
	if !ok || ssh.Unmarshal(body, &s) != nil || !bytes.Equal(ssh.Marshal(s), body) {
		return "", false
	}
	size := map[string]int{"sha512": sha512.Size, "sha256": sha256.Size}[s.Hash]
	return s.Namespace, s.Namespace != "" && s.Reserved == "" && size != 0 && len(s.Digest) == size
}

// Sign makes an armoured signature of data; sign signs a message with the key
// whose public half is public. A namespace keeps signatures for one purpose
// from being taken for another: it must not be empty; that of files is "file".
func Sign(data []byte, namespace string, public ed25519.PublicKey, sign func(message []byte) ([]byte, error)) ([]byte, error) {
	if namespace == "" {
		return nil, errors.New("an SSH signature needs a namespace, such as file")
	}
	const hash = "sha512"
	m, err := message(namespace, hash, data)
	if err != nil {
		return nil, err
	}
	raw, err := sign(m)
	if err != nil {
		return nil, err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	e := envelope{version, key.Marshal(), namespace, "", hash, ssh.Marshal(ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: raw})}
	return pem.EncodeToMemory(&pem.Block{Type: block, Bytes: append([]byte(magic), ssh.Marshal(e)...)}), nil
}

// Verify checks an armoured signature of data, and gives the key that made it.
// Whether that key is to be trusted is the caller's to say.
func Verify(data, armoured []byte, namespace string) (ed25519.PublicKey, error) {
	b, rest := pem.Decode(armoured)
	if b == nil || b.Type != block || len(b.Headers) > 0 || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("this is no SSH signature")
	}
	body, ok := bytes.CutPrefix(b.Bytes, []byte(magic))
	var e envelope
	if !ok || ssh.Unmarshal(body, &e) != nil || e.Version != version {
		return nil, errors.New("this is no SSH signature of version 1")
	}
	if e.Namespace != namespace {
		return nil, fmt.Errorf("the signature is for the namespace %q, not %q", e.Namespace, namespace)
	}
	key, err := ssh.ParsePublicKey(e.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("the key of the signature: %w", err)
	}
	crypto, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return nil, fmt.Errorf("a key of type %s, not ssh-ed25519", key.Type())
	}
	public, ok := crypto.CryptoPublicKey().(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("a key of type %s, not ssh-ed25519", key.Type())
	}
	var s ssh.Signature
	if err := ssh.Unmarshal(e.Signature, &s); err != nil || s.Format != ssh.KeyAlgoED25519 || len(s.Rest) > 0 {
		return nil, errors.New("the signature is not one of an Ed25519 key")
	}
	m, err := message(e.Namespace, e.Hash, data)
	if err != nil {
		return nil, err
	}
	if !ed25519.Verify(public, m, s.Blob) {
		return nil, errors.New("the signature is wrong")
	}
	return public, nil
}
