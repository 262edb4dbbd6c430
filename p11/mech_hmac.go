package p11

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/sha512"
	"hash"
	"slices"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// hmacMechanisms is HMAC (RFC 2104; sections 6.21 to 6.31), each hash
// with a code of full length and with one of a length that is given.
var hmacMechanisms = slices.Concat(
	hmacRows("HMAC-SHA224", CKM_SHA224_HMAC, CKM_SHA224_HMAC_GENERAL, CKK_SHA224_HMAC, sha256.New224),
	hmacRows("HMAC-SHA256", CKM_SHA256_HMAC, CKM_SHA256_HMAC_GENERAL, CKK_SHA256_HMAC, sha256.New),
	hmacRows("HMAC-SHA384", CKM_SHA384_HMAC, CKM_SHA384_HMAC_GENERAL, CKK_SHA384_HMAC, sha512.New384),
	hmacRows("HMAC-SHA512", CKM_SHA512_HMAC, CKM_SHA512_HMAC_GENERAL, CKK_SHA512_HMAC, sha512.New),
	hmacRows("HMAC-SHA512/224", CKM_SHA512_224_HMAC, CKM_SHA512_224_HMAC_GENERAL, CKK_SHA512_224_HMAC, sha512.New512_224),
	hmacRows("HMAC-SHA512/256", CKM_SHA512_256_HMAC, CKM_SHA512_256_HMAC_GENERAL, CKK_SHA512_256_HMAC, sha512.New512_256),
	hmacRows("HMAC-SHA3-224", CKM_SHA3_224_HMAC, CKM_SHA3_224_HMAC_GENERAL, CKK_SHA3_224_HMAC, func() hash.Hash { return sha3.New224() }),
	hmacRows("HMAC-SHA3-256", CKM_SHA3_256_HMAC, CKM_SHA3_256_HMAC_GENERAL, CKK_SHA3_256_HMAC, func() hash.Hash { return sha3.New256() }),
	hmacRows("HMAC-SHA3-384", CKM_SHA3_384_HMAC, CKM_SHA3_384_HMAC_GENERAL, CKK_SHA3_384_HMAC, func() hash.Hash { return sha3.New384() }),
	hmacRows("HMAC-SHA3-512", CKM_SHA3_512_HMAC, CKM_SHA3_512_HMAC_GENERAL, CKK_SHA3_512_HMAC, func() hash.Hash { return sha3.New512() }),
)

func hmacRows(name string, full, general MechanismType, keyType uint, newHash func() hash.Hash) []mechanism {
	row := mechanism{
		typ: full, name: name, info: MechanismInfo{1, maxSecretKey, CKF_SIGN | CKF_VERIFY},
		keyType: CKK_GENERIC_SECRET, keyTypes: []uint{keyType}, mac: newHash,
	}
	other := row
	other.typ, other.macParam = general, true
	return []mechanism{row, other}
}

// macSize reads the parameter of a HMAC: the length of the code, a CK_ULONG,
// for those that take one (section 6.21 and following).
func (m *mechanism) macSize(param any) (int, error) {
	most := m.mac().Size()
	p, _ := param.([]byte)
	switch {
	case !m.macParam && param == nil:
		return most, nil
	case !m.macParam || len(p) != ulongSize:
		return 0, CKR_MECHANISM_PARAM_INVALID
	}
	if n := ulongOf(p); n >= 1 && n <= uint(most) {
		return int(n), nil
	}
	return 0, CKR_MECHANISM_PARAM_INVALID
}

// macWith writes the first len(out) bytes of a message's code.
func (l *library) macWith(sess *session, op *messageOp, message, out []byte) error {
	return l.withKey(sess, op.key, func(key []byte) error {
		secmem.Compute(func() {
			h := hmac.New(op.row.mac, key)
			h.Write(message)
			copy(out, h.Sum(nil))
		})
		return nil
	})
}

func (l *library) verifyMAC(sess *session, op *messageOp, message, mac []byte) error {
	if op.key.private && l.user(sess) != userIn {
		return CKR_USER_NOT_LOGGED_IN
	}
	want := make([]byte, op.size)
	if err := l.macWith(sess, op, message, want); err != nil {
		return err
	}
	if !hmac.Equal(want, mac) {
		return CKR_SIGNATURE_INVALID
	}
	return nil
}
