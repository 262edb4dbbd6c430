package p11tool

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

// Constants of PKCS#11 v3 that the client package does not have.
const (
	ckkECEdwards = 0x40
	ckmEdwards   = 0x1055 // CKM_EC_EDWARDS_KEY_PAIR_GEN
	ckmEdDSA     = 0x1057
	ckaUniqueID  = 0x04
)

const (
	soPIN   = "so pin 73-alpha"
	userPIN = "user pin 41-beta"

	openRO = pkcs11.CKF_SERIAL_SESSION
	openRW = pkcs11.CKF_SERIAL_SESSION | pkcs11.CKF_RW_SESSION
)

// oid is the DER of 1.3.101.112, id-Ed25519 (RFC 8410, section 3).
var oid = []byte{0x06, 0x03, 0x2b, 0x65, 0x70}

// spki is what stands before the public key in its SubjectPublicKeyInfo.
var spki = []byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00}

func attr(typ uint, x any) *pkcs11.Attribute { return pkcs11.NewAttribute(typ, x) }

func mech(m uint, param ...byte) []*pkcs11.Mechanism {
	if param == nil {
		return []*pkcs11.Mechanism{pkcs11.NewMechanism(m, nil)}
	}
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(m, param)}
}

// ok fails the test at once on an error.
func ok(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// want reports an error that is none of codes.
func want(t *testing.T, what string, err error, codes ...uint) {
	t.Helper()
	for _, c := range codes {
		if err == nil && c == pkcs11.CKR_OK || err == pkcs11.Error(c) {
			return
		}
	}
	names := ""
	for _, c := range codes {
		names += " " + pkcs11.Error(c).Error()
	}
	t.Errorf("%s: got %v, want%s", what, err, names)
}

// freeSlot is the slot whose token is not initialised.
func freeSlot(c *pkcs11.Ctx) (uint, error) {
	slots, err := c.GetSlotList(false)
	if err != nil {
		return 0, err
	}
	for _, s := range slots {
		i, err := c.GetTokenInfo(s)
		if err == pkcs11.Error(pkcs11.CKR_TOKEN_NOT_PRESENT) || err == pkcs11.Error(pkcs11.CKR_TOKEN_NOT_RECOGNIZED) {
			return s, nil
		}
		if err != nil {
			return 0, err
		}
		if i.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			return s, nil
		}
	}
	return 0, fmt.Errorf("no free slot in %v", slots)
}

// findToken is the slot of the token with a label.
func findToken(c *pkcs11.Ctx, label string) (uint, error) {
	slots, err := c.GetSlotList(true)
	if err != nil {
		return 0, err
	}
	for _, s := range slots {
		if i, err := c.GetTokenInfo(s); err == nil && i.Label == label && i.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			return s, nil
		}
	}
	return 0, fmt.Errorf("no token %q in slots %v", label, slots)
}

// initToken makes a token with both PINs on the free slot.
func initToken(c *pkcs11.Ctx, label string) (uint, error) {
	slot, err := freeSlot(c)
	if err != nil {
		return 0, err
	}
	return slot, setUp(c, slot, label)
}

// setUp makes a token in a slot, with both PINs.
func setUp(c *pkcs11.Ctx, slot uint, label string) error {
	if err := c.InitToken(slot, soPIN, label); err != nil {
		return fmt.Errorf("C_InitToken: %w", err)
	}
	s, err := c.OpenSession(slot, openRW)
	if err != nil {
		return fmt.Errorf("C_OpenSession: %w", err)
	}
	if err := c.Login(s, pkcs11.CKU_SO, soPIN); err != nil {
		return fmt.Errorf("C_Login as SO: %w", err)
	}
	if err := c.InitPIN(s, userPIN); err != nil {
		return fmt.Errorf("C_InitPIN: %w", err)
	}
	if err := c.Logout(s); err != nil {
		return fmt.Errorf("C_Logout: %w", err)
	}
	return c.CloseSession(s)
}

// client is a token with an open session.
type client struct {
	*pkcs11.Ctx
	t    *testing.T
	slot uint
	s    pkcs11.SessionHandle
}

// newToken loads the module and makes a token, with a RW session that is
// logged in as user.
func newToken(t *testing.T) *client {
	t.Helper()
	c := &client{Ctx: load(t), t: t}
	var err error
	c.slot, err = initToken(c.Ctx, "test token")
	ok(t, "a new token", err)
	c.s = c.open(openRW)
	ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
	return c
}

func (c *client) open(flags uint) pkcs11.SessionHandle {
	c.t.Helper()
	s, err := c.OpenSession(c.slot, flags)
	ok(c.t, "C_OpenSession", err)
	return s
}

// find runs one search to its end.
func find(c *pkcs11.Ctx, s pkcs11.SessionHandle, template ...*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	if err := c.FindObjectsInit(s, template); err != nil {
		return nil, fmt.Errorf("C_FindObjectsInit: %w", err)
	}
	var all []pkcs11.ObjectHandle
	for {
		o, _, err := c.FindObjects(s, 7)
		if err != nil {
			return nil, fmt.Errorf("C_FindObjects: %w", err)
		}
		if len(o) == 0 {
			return all, c.FindObjectsFinal(s)
		}
		all = append(all, o...)
	}
}

func (c *client) find(template ...*pkcs11.Attribute) []pkcs11.ObjectHandle {
	c.t.Helper()
	o, err := find(c.Ctx, c.s, template...)
	ok(c.t, "find", err)
	return o
}

// get reads one attribute.
func (c *client) get(o pkcs11.ObjectHandle, typ uint) []byte {
	c.t.Helper()
	a, err := c.GetAttributeValue(c.s, o, []*pkcs11.Attribute{attr(typ, nil)})
	ok(c.t, fmt.Sprintf("attribute %#x", typ), err)
	return a[0].Value
}

// generate makes a key pair as ICN does.
func generate(c *pkcs11.Ctx, s pkcs11.SessionHandle, label string, token bool) (pub, priv pkcs11.ObjectHandle, err error) {
	return c.GenerateKeyPair(s, mech(ckmEdwards),
		[]*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, token), attr(pkcs11.CKA_VERIFY, true), attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_EC_PARAMS, oid)},
		[]*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, token), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true),
			attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_EXTRACTABLE, false), attr(pkcs11.CKA_LABEL, label)})
}

func (c *client) generate(label string, token bool) (pub, priv pkcs11.ObjectHandle) {
	c.t.Helper()
	pub, priv, err := generate(c.Ctx, c.s, label, token)
	ok(c.t, "C_GenerateKeyPair", err)
	return pub, priv
}

// privateTemplate imports a seed.
func privateTemplate(seed []byte, token bool, more ...*pkcs11.Attribute) []*pkcs11.Attribute {
	return append([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), attr(pkcs11.CKA_KEY_TYPE, ckkECEdwards),
		attr(pkcs11.CKA_TOKEN, token), attr(pkcs11.CKA_PRIVATE, true), attr(pkcs11.CKA_SENSITIVE, true), attr(pkcs11.CKA_EXTRACTABLE, false),
		attr(pkcs11.CKA_SIGN, true), attr(pkcs11.CKA_EC_PARAMS, oid), attr(pkcs11.CKA_VALUE, seed)}, more...)
}

// publicTemplate imports a public key.
func publicTemplate(point []byte, token bool, more ...*pkcs11.Attribute) []*pkcs11.Attribute {
	return append([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attr(pkcs11.CKA_KEY_TYPE, ckkECEdwards),
		attr(pkcs11.CKA_TOKEN, token), attr(pkcs11.CKA_PRIVATE, false), attr(pkcs11.CKA_VERIFY, true),
		attr(pkcs11.CKA_EC_PARAMS, oid), attr(pkcs11.CKA_EC_POINT, point)}, more...)
}

func dataTemplate(label string, value []byte, token, private bool, more ...*pkcs11.Attribute) []*pkcs11.Attribute {
	return append([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_DATA), attr(pkcs11.CKA_TOKEN, token), attr(pkcs11.CKA_PRIVATE, private),
		attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_APPLICATION, "p11tool"), attr(pkcs11.CKA_VALUE, value)}, more...)
}

func (c *client) create(template []*pkcs11.Attribute) pkcs11.ObjectHandle {
	c.t.Helper()
	o, err := c.CreateObject(c.s, template)
	ok(c.t, "C_CreateObject", err)
	return o
}

// derPoint is a public key as the DER OCTET STRING that CKA_EC_POINT holds.
func derPoint(pub []byte) []byte { return append([]byte{0x04, 0x20}, pub...) }

// point is a key's public key, taken from CKA_EC_POINT as ICN takes it.
func point(c *pkcs11.Ctx, s pkcs11.SessionHandle, o pkcs11.ObjectHandle) (ed25519.PublicKey, error) {
	a, err := c.GetAttributeValue(s, o, []*pkcs11.Attribute{attr(pkcs11.CKA_EC_POINT, nil)})
	if err != nil {
		return nil, fmt.Errorf("CKA_EC_POINT: %w", err)
	}
	v := a[0].Value
	if len(v) < 32 {
		return nil, fmt.Errorf("CKA_EC_POINT is %x", v)
	}
	return v[len(v)-32:], nil
}

// sign is a one-shot pure signature.
func sign(c *pkcs11.Ctx, s pkcs11.SessionHandle, key pkcs11.ObjectHandle, msg []byte) ([]byte, error) {
	if err := c.SignInit(s, mech(ckmEdDSA), key); err != nil {
		return nil, fmt.Errorf("C_SignInit: %w", err)
	}
	sig, err := c.Sign(s, msg)
	if err != nil {
		return nil, fmt.Errorf("C_Sign: %w", err)
	}
	return sig, nil
}

// signChecked signs and verifies the signature in Go.
func signChecked(c *pkcs11.Ctx, s pkcs11.SessionHandle, key pkcs11.ObjectHandle, pub ed25519.PublicKey, msg []byte) error {
	sig, err := sign(c, s, key, msg)
	if err != nil {
		return err
	}
	if !ed25519.Verify(pub, msg, sig) {
		return fmt.Errorf("signature %x of %q by %x is wrong", sig, msg, []byte(pub))
	}
	return nil
}

func equal(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got %x, want %x", what, got, want)
	}
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	ok(t, "hex", err)
	return b
}

// tokenFlags waits until C_GetTokenInfo, which may remember its answer for a
// second, shows exactly flags under mask.
func (c *client) tokenFlags(what string, mask, flags uint) {
	c.t.Helper()
	var i pkcs11.TokenInfo
	for deadline := time.Now().Add(2500 * time.Millisecond); ; time.Sleep(100 * time.Millisecond) {
		var err error
		i, err = c.GetTokenInfo(c.slot)
		ok(c.t, "C_GetTokenInfo", err)
		if i.Flags&mask == flags {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	c.t.Errorf("%s: token flags are %#x, under mask %#x want %#x", what, i.Flags, mask, flags)
}
