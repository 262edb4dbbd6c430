package p11

import (
	"bytes"
	"encoding/asn1"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
)

// Encodings of the curve. Clients send all of them; what is read back is
// always the OID, on both halves, which every client takes.
var (
	edwardsOID     = []byte{0x06, 0x03, 0x2b, 0x65, 0x70}                                           // 1.3.101.112 (RFC 8410)
	edwardsOldOID  = []byte{0x06, 0x09, 0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01}       // 1.3.6.1.4.1.11591.15.1
	edwardsName    = append([]byte{0x13, 0x0c}, "edwards25519"...)                                  // PrintableString
	spkiPrefix     = []byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00} // SubjectPublicKeyInfo up to the key
	octetString32  = []byte{0x04, 0x20}
	rawPointLength = eddsa.PublicKeySize
)

// parseCurve tells whether CKA_EC_PARAMS names edwards25519: nil,
// CKR_CURVE_NOT_SUPPORTED for another curve, CKR_DOMAIN_PARAMS_INVALID for what
// names none, a curve's parameters among it (section 6.3).
func parseCurve(v []byte) error {
	if bytes.Equal(v, edwardsOID) || bytes.Equal(v, edwardsOldOID) || bytes.Equal(v, edwardsName) {
		return nil
	}
	var raw asn1.RawValue
	rest, err := asn1.Unmarshal(v, &raw)
	if err != nil || len(rest) != 0 || raw.Class != asn1.ClassUniversal {
		return CKR_DOMAIN_PARAMS_INVALID
	}
	switch raw.Tag {
	case asn1.TagOID, asn1.TagPrintableString:
		return CKR_CURVE_NOT_SUPPORTED
	}
	return CKR_DOMAIN_PARAMS_INVALID
}

// parsePoint takes a public key raw (32 bytes, as v3.1 has it) or as a DER
// OCTET STRING (34 bytes, as v3.0 was read) and gives the raw form. The two
// differ in length, so neither can be taken for the other.
func parsePoint(v []byte) ([]byte, bool) {
	if len(v) == rawPointLength+2 && bytes.HasPrefix(v, octetString32) {
		v = v[2:]
	}
	return v, len(v) == rawPointLength
}

func spki(pub []byte) []byte {
	return append(bytes.Clone(spkiPrefix), pub...)
}

// setPublic fills in everything that follows from the public key, on either
// half. The point is kept raw; it is written as the configuration says when
// it is read.
func (a attrs) setPublic(pub []byte) {
	a[CKA_EC_PARAMS] = edwardsOID
	a[CKA_EC_POINT] = bytes.Clone(pub)
	a[CKA_PUBLIC_KEY_INFO] = spki(pub)
	if _, given := a[CKA_ID]; !given {
		a[CKA_ID] = bytes.Clone(pub)
	}
}
