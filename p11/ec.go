package p11

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/asn1"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
	"github.com/InterCooperative-Network/icn-p11/internal/x25519"
)

// curve is one that key pairs lie on.
type curve struct {
	keyType uint
	oid     []byte   // CKA_EC_PARAMS, as it reads back
	also    [][]byte // what else is taken for it
	spki    []byte   // SubjectPublicKeyInfo up to the key
	size    int      // of a public key in bytes
	// bits is the size of the field.
	bits uint
	// ecdsa is the curve of ECDSA keys, which the device makes.
	ecdsa elliptic.Curve
	valid func(public []byte) bool
}

// Encodings of the curves. Clients send all of them; what is read back is
// always the OID, on both halves, which every client takes.
var (
	edwardsOID    = []byte{0x06, 0x03, 0x2b, 0x65, 0x70}                                     // 1.3.101.112 (RFC 8410)
	edwardsOldOID = []byte{0x06, 0x09, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01} // 1.3.6.1.4.1.11591.15.1
	edwardsName   = append([]byte{0x13, 0x0c}, "edwards25519"...)                            // PrintableString
	montgomeryOID = []byte{0x06, 0x03, 0x2b, 0x65, 0x6e}                                     // 1.3.101.110 (RFC 8410)
	// 1.3.6.1.4.1.3029.1.5.1, of the time before RFC 8410.
	montgomeryOldOID = []byte{0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x97, 0x55, 0x01, 0x05, 0x01}
	montgomeryName   = append([]byte{0x13, 0x0a}, "curve25519"...)
	// pkcs11-tool of OpenSC 0.23 says that the name has one more byte.
	montgomeryLongName = append([]byte{0x13, 0x0b}, "curve25519"...)
	p256OID            = []byte{0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07} // 1.2.840.10045.3.1.7
	p256Name           = append([]byte{0x13, 0x09}, "secp256r1"...)
	p384OID            = []byte{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22} // 1.3.132.0.34
	p384Name           = append([]byte{0x13, 0x09}, "secp384r1"...)
	ecPublicKey        = []byte{0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01} // 1.2.840.10045.2.1
)

var (
	edwards25519 = &curve{
		keyType: CKK_EC_EDWARDS, oid: edwardsOID, also: [][]byte{edwardsOldOID, edwardsName}, size: eddsa.PublicKeySize, bits: 255,
		spki:  []byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00},
		valid: eddsa.ValidPublicKey,
	}
	curve25519 = &curve{
		keyType: CKK_EC_MONTGOMERY, oid: montgomeryOID, also: [][]byte{montgomeryOldOID, montgomeryName, montgomeryLongName}, size: x25519.Size, bits: 255,
		spki:  []byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x6e, 0x03, 0x21, 0x00},
		valid: func(p []byte) bool { return len(p) == x25519.Size },
	}
	p256 = weierstrass(elliptic.P256(), p256OID, p256Name)
	p384 = weierstrass(elliptic.P384(), p384OID, p384Name)

	curves = []*curve{edwards25519, curve25519, p256, p384}
)

// weierstrass is a curve of ECDSA; its points are as X9.62 has them,
// uncompressed.
func weierstrass(e elliptic.Curve, oid, name []byte) *curve {
	n := e.Params().BitSize
	c := &curve{keyType: CKK_EC, oid: oid, also: [][]byte{name}, size: 1 + 2*(n/8), bits: uint(n), ecdsa: e}
	c.valid = func(p []byte) bool {
		_, err := ecdsa.ParseUncompressedPublicKey(e, p)
		return err == nil
	}
	// SubjectPublicKeyInfo (RFC 5480): the lengths are below 128.
	algorithm := append(bytes.Clone(ecPublicKey), oid...)
	bits := append([]byte{0x03, byte(1 + c.size)}, 0)
	head := append([]byte{0x30, byte(len(algorithm))}, algorithm...)
	c.spki = append(append([]byte{0x30, byte(len(head) + len(bits) + c.size)}, head...), bits...)
	return c
}

// parseCurve finds the curve that CKA_EC_PARAMS names:
// CKR_CURVE_NOT_SUPPORTED for one that keys of the type do not have,
// CKR_DOMAIN_PARAMS_INVALID for what names none, a curve's parameters among it
// (section 6.3).
func parseCurve(keyType uint, v []byte) (*curve, error) {
	for _, c := range curves {
		if c.keyType != keyType {
			continue
		}
		if bytes.Equal(v, c.oid) {
			return c, nil
		}
		for _, p := range c.also {
			if bytes.Equal(v, p) {
				return c, nil
			}
		}
	}
	var raw asn1.RawValue
	rest, err := asn1.Unmarshal(v, &raw)
	if err != nil || len(rest) != 0 || raw.Class != asn1.ClassUniversal {
		return nil, CKR_DOMAIN_PARAMS_INVALID
	}
	switch raw.Tag {
	case asn1.TagOID, asn1.TagPrintableString:
		return nil, CKR_CURVE_NOT_SUPPORTED
	}
	return nil, CKR_DOMAIN_PARAMS_INVALID
}

// curve is that of a key, nil for other objects.
func (a attrs) curve() *curve {
	params, ok := a[CKA_EC_PARAMS]
	if !ok {
		return nil
	}
	return curveOf(a.ulong(CKA_KEY_TYPE), params)
}

func curveOf(keyType uint, params []byte) *curve {
	c, err := parseCurve(keyType, params)
	if err != nil {
		return nil
	}
	return c
}

// octets is what stands before a public key in a DER OCTET STRING.
func (c *curve) octets() []byte { return []byte{0x04, byte(c.size)} }

// parsePoint takes a public key raw (as v3.1 has it for Edwards and Montgomery
// curves) or as a DER OCTET STRING and gives the raw form. The two differ in
// length, so neither can be taken for the other.
func (c *curve) parsePoint(v []byte) ([]byte, bool) {
	if head := c.octets(); len(v) == len(head)+c.size && bytes.HasPrefix(v, head) {
		v = v[len(head):]
	}
	return v, len(v) == c.size
}

// point writes a public key as CKA_EC_POINT. Points of ECDSA are always DER.
func (c *curve) point(pub []byte, encoding string) []byte {
	if c.ecdsa == nil && encoding == "raw" {
		return pub
	}
	return append(c.octets(), pub...)
}

// info makes the SubjectPublicKeyInfo of a public key.
func (c *curve) info(pub []byte) []byte {
	return append(bytes.Clone(c.spki), pub...)
}

// setPublic fills in everything that follows from the public key, on either
// half. The point is kept raw; it is written as the configuration says when
// it is read.
func (a attrs) setPublic(c *curve, pub []byte) {
	a[CKA_EC_PARAMS] = c.oid
	a[CKA_EC_POINT] = bytes.Clone(pub)
	a[CKA_PUBLIC_KEY_INFO] = c.info(pub)
	if _, given := a[CKA_ID]; !given {
		a[CKA_ID] = bytes.Clone(pub)
	}
}
