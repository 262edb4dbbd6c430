package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"

	"github.com/miekg/pkcs11"
)

// Constants of PKCS #11 v3 that the client package does not have.
const (
	ckmEdDSA         = 0x1057
	ckaPublicKeyInfo = 0x129
)

// Token is one in which somebody is logged in.
type Token struct {
	ctx     *pkcs11.Ctx
	slot    uint
	session pkcs11.SessionHandle // holds the login
}

// OpenToken loads a module and logs in to a token.
func OpenToken(module, label, pin string) (*Token, error) {
	t := &Token{ctx: pkcs11.New(module)}
	if t.ctx == nil {
		return nil, fmt.Errorf("%s cannot be loaded", module)
	}
	if err := t.ctx.Initialize(); err != nil {
		t.ctx.Destroy()
		return nil, err
	}
	if err := t.login(label, pin); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Token) login(label, pin string) error {
	slots, err := t.ctx.GetSlotList(true)
	if err != nil {
		return err
	}
	for _, slot := range slots {
		info, err := t.ctx.GetTokenInfo(slot)
		if err != nil {
			return err
		}
		if strings.TrimRight(info.Label, " ") != label {
			continue
		}
		t.slot = slot
		if t.session, err = t.ctx.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION); err != nil {
			return err
		}
		return t.ctx.Login(t.session, pkcs11.CKU_USER, pin)
	}
	return fmt.Errorf("there is no token %s", label)
}

// Close logs out and unloads the module.
func (t *Token) Close() error {
	err := t.ctx.Finalize()
	t.ctx.Destroy()
	return err
}

// Key is a private key in a token: a crypto.Signer, which any number of
// goroutines may use at once.
type Key struct {
	token  *Token
	handle pkcs11.ObjectHandle
	public crypto.PublicKey
}

// Key finds an Ed25519 or ECDSA key by its label.
func (t *Token) Key(label string) (*Key, error) {
	if err := t.ctx.FindObjectsInit(t.session, []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
	}); err != nil {
		return nil, err
	}
	found, _, err := t.ctx.FindObjects(t.session, 2)
	if err = errors.Join(err, t.ctx.FindObjectsFinal(t.session)); err != nil {
		return nil, err
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%d keys are called %s", len(found), label)
	}
	a, err := t.ctx.GetAttributeValue(t.session, found[0], []*pkcs11.Attribute{pkcs11.NewAttribute(ckaPublicKeyInfo, nil)})
	if err != nil {
		return nil, err
	}
	public, err := x509.ParsePKIXPublicKey(a[0].Value)
	if err != nil {
		return nil, err
	}
	return &Key{t, found[0], public}, nil
}

// Public returns an ed25519.PublicKey or an *ecdsa.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.public }

// Sign signs as crypto.Signer says: a message with Ed25519, where opts has no
// hash, and a digest with ECDSA, in the DER form of X.509.
func (k *Key) Sign(_ io.Reader, data []byte, opts crypto.SignerOpts) ([]byte, error) {
	var mechanism uint
	switch k.public.(type) {
	case ed25519.PublicKey:
		if opts.HashFunc() != 0 {
			return nil, errors.New("Ed25519 signs messages, not digests")
		}
		mechanism = ckmEdDSA
	case *ecdsa.PublicKey:
		mechanism = pkcs11.CKM_ECDSA
	default:
		return nil, fmt.Errorf("a %T does not sign", k.public)
	}
	// A session has one operation at a time.
	session, err := k.token.ctx.OpenSession(k.token.slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return nil, err
	}
	defer k.token.ctx.CloseSession(session)
	if err := k.token.ctx.SignInit(session, []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, nil)}, k.handle); err != nil {
		return nil, err
	}
	sig, err := k.token.ctx.Sign(session, data)
	if err != nil || mechanism == ckmEdDSA {
		return sig, err
	}
	r, s := sig[:len(sig)/2], sig[len(sig)/2:]
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(r), new(big.Int).SetBytes(s)})
}
