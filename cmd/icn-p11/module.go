package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"github.com/InterCooperative-Network/icn-p11/internal/config"
	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// identityLabel is the label of ICN's key in a token.
const identityLabel = "icn-identity"

// edwardsParams is id-Ed25519 (RFC 8410, section 3) as CKA_EC_PARAMS.
var edwardsParams = []byte{0x06, 0x03, 0x2b, 0x65, 0x70}

// module is the PKCS#11 module, run inside this process: objects are made and
// read by the very code that applications use.
type module struct {
	*p11.Module
	store *sealstore.Store
}

// startModule starts it without the settings of single tokens: they are for
// applications, and who administers a token sees it as it is recorded.
func startModule() (*module, error) { return startModuleWith(func(*config.Config) {}) }

// startModuleWith is startModule with a change of the configuration.
func startModuleWith(change func(*config.Config)) (*module, error) {
	cfg, err := config.Load()
	if err != nil {
		return nil, err
	}
	change(cfg)
	cfg.Tokens = nil
	cfg.Snapshots = false // who asks for a list, or tries what would be done, changes nothing
	m := &module{p11.NewModule(), sealstore.Open(cfg.SealedBlobDir, nil, nil)}
	if err := m.Open(cfg); err != nil {
		return nil, cause(err)
	}
	return m, nil
}

func (m *module) stop() { m.Finalize() }

// session opens a session with a token, for writing too where that is possible.
func (m *module) session(t sealstore.TokenInfo) (p11.SessionHandle, error) {
	flags := p11.CKF_SERIAL_SESSION
	if tok, err := m.store.Token(t.Serial); err == nil && tok.Writable() == nil {
		flags |= p11.CKF_RW_SESSION
	}
	return m.OpenSession(p11.SlotID(t.Slot), flags)
}

// ulong is a CK_ULONG as an attribute's value.
func ulong(v uint) []byte {
	if bits.UintSize == 32 {
		return binary.NativeEndian.AppendUint32(nil, uint32(v))
	}
	return binary.NativeEndian.AppendUint64(nil, uint64(v))
}

func ulongOf(b []byte) (uint, bool) {
	if len(b) != bits.UintSize/8 {
		return 0, false
	}
	if bits.UintSize == 32 {
		return uint(binary.NativeEndian.Uint32(b)), true
	}
	return uint(binary.NativeEndian.Uint64(b)), true
}

// find lists the objects that match a template.
func (m *module) find(s p11.SessionHandle, tmpl ...p11.Attribute) ([]p11.ObjectHandle, error) {
	if err := m.FindObjectsInit(s, tmpl); err != nil {
		return nil, err
	}
	defer m.FindObjectsFinal(s)
	var all []p11.ObjectHandle
	var some [64]p11.ObjectHandle
	for {
		n, err := m.FindObjects(s, some[:])
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return all, nil
		}
		all = append(all, some[:n]...)
	}
}

// attribute reads one attribute; nil where the object has none.
func (m *module) attribute(s p11.SessionHandle, o p11.ObjectHandle, t p11.AttributeType) ([]byte, error) {
	a := []p11.AttributeOut{{Type: t}}
	err := m.GetAttributeValue(s, o, a)
	if errors.Is(err, p11.CKR_ATTRIBUTE_TYPE_INVALID) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	a[0].Buf = make([]byte, a[0].Len)
	if err := m.GetAttributeValue(s, o, a); err != nil {
		return nil, err
	}
	return a[0].Buf[:a[0].Len], nil
}

// publicKey is an Ed25519 public key in a token.
type publicKey struct {
	label  string
	public [32]byte
	local  bool // generated in this token
}

func (k publicKey) did() string { return did.Encode(k.public) }

// publicKeyOf reads a public-key object.
func (m *module) publicKeyOf(s p11.SessionHandle, o p11.ObjectHandle) (k publicKey, err error) {
	point, err := m.attribute(s, o, p11.CKA_EC_POINT)
	if err != nil {
		return k, err
	}
	// ec_point_encoding chooses between the raw key and the key in a DER
	// OCTET STRING; the key is at the end of both.
	if len(point) != len(k.public) && len(point) != len(k.public)+2 {
		return k, fmt.Errorf("CKA_EC_POINT has %d bytes", len(point))
	}
	copy(k.public[:], point[len(point)-len(k.public):])
	label, err := m.attribute(s, o, p11.CKA_LABEL)
	if err != nil {
		return k, err
	}
	local, err := m.attribute(s, o, p11.CKA_LOCAL)
	if err != nil {
		return k, err
	}
	k.label, k.local = string(label), bytes.Equal(local, []byte{1})
	return k, nil
}

var errNoIdentity = errors.New("no identity key")

// identity finds the key that a token's DID is made of.
func (m *module) identity(t sealstore.TokenInfo) (tokenKey, error) {
	s, err := m.session(t)
	if err != nil {
		return tokenKey{}, err
	}
	defer m.CloseSession(s)
	keys, err := m.keys(s)
	if err != nil {
		return tokenKey{}, err
	}
	return identityOf(keys, t)
}

// identityOf tells which of a token's keys its DID is made of: the one with
// ICN's label, else the only one that was generated in the token, else the only
// one.
func identityOf(keys []tokenKey, t sealstore.TokenInfo) (tokenKey, error) {
	var named, local []tokenKey
	for _, k := range keys {
		if k.local {
			local = append(local, k)
		}
		if k.label == identityLabel {
			named = append(named, k)
		}
	}
	for _, some := range [][]tokenKey{named, local, keys} {
		if len(some) == 1 {
			return some[0], nil
		}
		if len(some) > 1 {
			return tokenKey{}, fmt.Errorf("%w: %d keys of token %s could be it; label one %s", errNoIdentity, len(some), t.Serial, identityLabel)
		}
	}
	return tokenKey{}, fmt.Errorf("%w: token %s holds no Ed25519 public key", errNoIdentity, t.Serial)
}
