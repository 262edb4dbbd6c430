package p11

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"hash"
	"math/big"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// ecdsaInfo: the sizes are in bits (section 6.3). CKF_HW is set, since the
// private key is made and used by the TPM.
func ecdsaInfo(functions uint) MechanismInfo {
	return MechanismInfo{256, 384, functions | CKF_HW | CKF_EC_F_P | CKF_EC_OID | CKF_EC_UNCOMPRESS}
}

func ecdsaRow(t MechanismType, name string, newHash func() hash.Hash) mechanism {
	return mechanism{typ: t, name: name, info: ecdsaInfo(CKF_SIGN | CKF_VERIFY), keyType: CKK_EC, ecdsa: true, digest: newHash}
}

// ecdsaMechanisms is ECDSA (FIPS 186-5; sections 6.3.9, 6.3.12 and 6.3.13) with
// keys that live in the TPM. The signature is r and s.
var ecdsaMechanisms = []mechanism{
	{typ: CKM_EC_KEY_PAIR_GEN, info: ecdsaInfo(CKF_GENERATE_KEY_PAIR), keyType: CKK_EC},
	ecdsaRow(CKM_ECDSA, "ECDSA", nil),
	ecdsaRow(CKM_ECDSA_SHA256, "ECDSA-SHA256", sha256.New),
	ecdsaRow(CKM_ECDSA_SHA384, "ECDSA-SHA384", sha512.New384),
	ecdsaRow(CKM_ECDSA_SHA512, "ECDSA-SHA512", sha512.New),
}

// value gives the digest that is signed: as many bytes as the curve's field
// has. A longer one counts with its beginning, a shorter one as a number (FIPS
// 186-5, section 6.4.1).
func (op *messageOp) value(message []byte) []byte {
	if op.row.digest != nil {
		h := op.row.digest()
		h.Write(message)
		message = h.Sum(nil)
	}
	n := op.size / 2
	if len(message) >= n {
		return message[:n]
	}
	return append(make([]byte, n-len(message)), message...)
}

// signInDevice has the TPM sign.
func (l *library) signInDevice(s *slot, op *messageOp, message, out []byte) error {
	var sig []byte
	var err error
	if op.key.made != nil {
		sig, err = s.token.SignWith(op.key.made, op.value(message))
	} else {
		sig, err = s.token.Sign(op.key.id, op.value(message))
	}
	if errors.Is(err, sealstore.ErrNotFound) {
		return &coded{CKR_KEY_HANDLE_INVALID, err}
	}
	if err != nil {
		return l.fail("signing", s.serial, err)
	}
	copy(out, sig)
	return nil
}

func (op *messageOp) verifyECDSA(message, sig []byte) error {
	c := op.key.body.curve()
	public, err := ecdsa.ParseUncompressedPublicKey(c.ecdsa, op.key.body.bytes(CKA_EC_POINT))
	if err != nil {
		return &coded{CKR_GENERAL_ERROR, err}
	}
	n := len(sig) / 2
	if !ecdsa.Verify(public, op.value(message), new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:])) {
		return CKR_SIGNATURE_INVALID
	}
	return nil
}
