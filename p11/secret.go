package p11

import (
	"bytes"
	"crypto/aes"
	"crypto/sha1"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// secretType is a type of secret keys.
type secretType struct {
	sizes []int           // of the key in bytes; nil: 1 to maxSecretKey
	uses  []AttributeType // what a key is for unless its template says otherwise
	// check computes the three bytes of CKA_CHECK_VALUE (section 4.10).
	check func(key []byte) []byte
}

// maxSecretKey is the size of the longest secret key in bytes: what a seal holds.
const maxSecretKey = sealstore.MaxSecret

var macUses = []AttributeType{CKA_SIGN, CKA_VERIFY}

// secretTypes are the types of secret keys, as objects and as what a
// derivation or an unwrapping makes.
var secretTypes = map[uint]secretType{
	CKK_GENERIC_SECRET:  {uses: append([]AttributeType{CKA_DERIVE}, macUses...), check: hashCheck},
	CKK_HKDF:            {uses: []AttributeType{CKA_DERIVE}, check: hashCheck},
	CKK_SHA224_HMAC:     {uses: macUses, check: hashCheck},
	CKK_SHA256_HMAC:     {uses: macUses, check: hashCheck},
	CKK_SHA384_HMAC:     {uses: macUses, check: hashCheck},
	CKK_SHA512_HMAC:     {uses: macUses, check: hashCheck},
	CKK_SHA512_224_HMAC: {uses: macUses, check: hashCheck},
	CKK_SHA512_256_HMAC: {uses: macUses, check: hashCheck},
	CKK_SHA3_224_HMAC:   {uses: macUses, check: hashCheck},
	CKK_SHA3_256_HMAC:   {uses: macUses, check: hashCheck},
	CKK_SHA3_384_HMAC:   {uses: macUses, check: hashCheck},
	CKK_SHA3_512_HMAC:   {uses: macUses, check: hashCheck},
	CKK_AES:             {sizes: []int{16, 24, 32}, uses: []AttributeType{CKA_ENCRYPT, CKA_DECRYPT}, check: aesCheck},
	CKK_CHACHA20:        {sizes: []int{32}, uses: []AttributeType{CKA_ENCRYPT, CKA_DECRYPT}, check: hashCheck},
}

// fits tells whether a key of the type can have a size.
func (t secretType) fits(n int) bool {
	for _, s := range t.sizes {
		if s == n {
			return true
		}
	}
	return t.sizes == nil && n >= 1 && n <= maxSecretKey
}

// hashCheck is the check value of keys that are no block cipher's.
func hashCheck(key []byte) []byte {
	h := sha1.New()
	h.Write(key)
	sum := h.Sum(nil)
	h.Reset()
	return sum[:3]
}

func aesCheck(key []byte) []byte {
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil
	}
	var block [aes.BlockSize]byte
	b.Encrypt(block[:], block[:])
	return block[:3]
}

// checkValue computes CKA_CHECK_VALUE of a secret key.
func checkValue(keyType uint, key []byte) (v []byte) {
	secmem.Compute(func() { v = secretTypes[keyType].check(key) })
	return v
}

// setSecret fills in what follows from a secret key. A check value that was
// given must be the right one, or is empty: then the key gets none.
func (a attrs) setSecret(key []byte) error {
	v := checkValue(a.ulong(CKA_KEY_TYPE), key)
	if given, ok := a[CKA_CHECK_VALUE]; !ok {
		a[CKA_CHECK_VALUE] = v
	} else if len(given) > 0 && !bytes.Equal(given, v) {
		return CKR_ATTRIBUTE_VALUE_INVALID
	}
	a[CKA_VALUE_LEN] = ulong(uint(len(key)))
	return nil
}

// readable tells whether the value of a key may be read (section 4.10). A
// private key is always sensitive.
func (o *object) readable() bool { return !o.bool(CKA_SENSITIVE) && o.bool(CKA_EXTRACTABLE) }
