package p11

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"math/big"
	"slices"
)

// aesInfo: the sizes of AES keys are in bytes (sections 6.10, 6.11 and 6.13).
func aesInfo(functions uint) MechanismInfo { return MechanismInfo{16, 32, functions} }

// aesMechanisms are the modes of AES (sections 6.10, 6.11 and 6.13).
var aesMechanisms = []mechanism{
	{typ: CKM_AES_CBC, info: aesInfo(CKF_ENCRYPT | CKF_DECRYPT), keyType: CKK_AES, cipher: parseCBC},
	{typ: CKM_AES_CBC_PAD, info: aesInfo(CKF_ENCRYPT | CKF_DECRYPT | CKF_WRAP | CKF_UNWRAP), keyType: CKK_AES, cipher: parseCBCPad, wrap: wrapCBC, unwrap: unwrapCBC},
	{typ: CKM_AES_CTR, info: aesInfo(CKF_ENCRYPT | CKF_DECRYPT), keyType: CKK_AES, cipher: parseCTR},
	{typ: CKM_AES_GCM, info: aesInfo(CKF_ENCRYPT | CKF_DECRYPT), keyType: CKK_AES, cipher: parseGCM},
}

const blockSize = aes.BlockSize

// cbcRun is CKM_AES_CBC, with pad CKM_AES_CBC_PAD (PKCS #7).
type cbcRun struct {
	iv   [blockSize]byte
	pad  bool
	kept []byte // less than a block, or the one that may be padding
}

func parseCBC(param any) (cipherRun, error)    { return newCBC(param, false) }
func parseCBCPad(param any) (cipherRun, error) { return newCBC(param, true) }

func newCBC(param any, pad bool) (*cbcRun, error) {
	iv, _ := param.([]byte)
	if len(iv) != blockSize {
		return nil, CKR_MECHANISM_PARAM_INVALID
	}
	return &cbcRun{iv: [blockSize]byte(iv), pad: pad}, nil
}

func (r *cbcRun) clone() cipherRun {
	c := *r
	c.kept = slices.Clone(r.kept)
	return &c
}

// ready is how much of the input can be processed now.
func (r *cbcRun) ready(decrypt bool, n int, last bool) int {
	whole := n / blockSize * blockSize
	if decrypt && r.pad && !last && whole == n && n > 0 {
		return whole - blockSize // the last block may be padding
	}
	return whole
}

func (r *cbcRun) size(decrypt bool, n int, last bool) (int, bool) {
	n += len(r.kept)
	whole := r.ready(decrypt, n, last)
	switch {
	case !last || !r.pad:
		return whole, true
	case decrypt:
		return whole, false // less the padding
	}
	return whole + blockSize, true
}

func (r *cbcRun) next(key []byte, decrypt bool, data []byte, last bool) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, CKR_KEY_SIZE_RANGE
	}
	data = slices.Concat(r.kept, data)
	if last && !decrypt && r.pad {
		n := blockSize - len(data)%blockSize
		data = append(data, bytes.Repeat([]byte{byte(n)}, n)...)
	}
	if last && len(data)%blockSize != 0 || last && decrypt && r.pad && len(data) == 0 {
		return nil, badLength(decrypt)
	}
	n := r.ready(decrypt, len(data), last)
	r.kept = slices.Clone(data[n:])
	data = data[:n]
	if n == 0 {
		return nil, nil
	}
	out := make([]byte, n)
	if decrypt {
		cipher.NewCBCDecrypter(block, r.iv[:]).CryptBlocks(out, data)
		copy(r.iv[:], data[n-blockSize:])
	} else {
		cipher.NewCBCEncrypter(block, r.iv[:]).CryptBlocks(out, data)
		copy(r.iv[:], out[n-blockSize:])
	}
	if last && decrypt && r.pad {
		pad := int(out[n-1])
		if pad < 1 || pad > blockSize || subtle.ConstantTimeCompare(out[n-pad:], bytes.Repeat([]byte{byte(pad)}, pad)) != 1 {
			return nil, CKR_ENCRYPTED_DATA_INVALID
		}
		out = out[:n-pad]
	}
	return out, nil
}

// ctrRun is CKM_AES_CTR: a CK_AES_CTR_PARAMS with the number of bits that
// count, and the first counter block.
type ctrRun struct {
	first [blockSize]byte
	room  uint64 // bytes until the counter is at 0 again, or more than anybody has
	done  uint64 // bytes so far
}

func parseCTR(param any) (cipherRun, error) {
	p, _ := param.([]byte)
	if len(p) != ulongSize+blockSize {
		return nil, CKR_MECHANISM_PARAM_INVALID
	}
	bits := ulongOf(p[:ulongSize])
	if bits < 1 || bits > 8*blockSize {
		return nil, CKR_MECHANISM_PARAM_INVALID
	}
	r := &ctrRun{first: [blockSize]byte(p[ulongSize:]), room: 1 << 62}
	if bits < 8*blockSize {
		// The library counts in all 128 bits: it must not come to the point
		// where a counter of fewer bits would begin again.
		period := new(big.Int).Lsh(big.NewInt(1), bits)
		count := new(big.Int).SetBytes(r.first[:])
		left := period.Sub(period, count.Mod(count, period))
		if left.Mul(left, big.NewInt(blockSize)); left.IsUint64() {
			r.room = min(r.room, left.Uint64())
		}
	}
	return r, nil
}

func (r *ctrRun) clone() cipherRun { c := *r; return &c }

func (r *ctrRun) size(_ bool, n int, _ bool) (int, bool) { return n, true }

func (r *ctrRun) next(key []byte, decrypt bool, data []byte, _ bool) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, CKR_KEY_SIZE_RANGE
	}
	if uint64(len(data)) > r.room-r.done {
		return nil, badLength(decrypt)
	}
	iv := r.first
	low := binary.BigEndian.Uint64(iv[8:])
	sum := low + r.done/blockSize
	binary.BigEndian.PutUint64(iv[8:], sum)
	if sum < low {
		binary.BigEndian.PutUint64(iv[:8], binary.BigEndian.Uint64(iv[:8])+1)
	}
	stream := cipher.NewCTR(block, iv[:])
	var skip [blockSize]byte
	stream.XORKeyStream(skip[:r.done%blockSize], skip[:r.done%blockSize])
	out := make([]byte, len(data))
	stream.XORKeyStream(out, data)
	r.done += uint64(len(data))
	return out, nil
}

// aeadRun is an AEAD. Nothing comes out before the end: a plaintext must not
// leave before its tag is checked, and the libraries work on whole messages.
type aeadRun struct {
	nonce, aad []byte
	tag        int
	open       func(key []byte) (cipher.AEAD, error)
	data       []byte
}

// clone shares the data: what next adds for the one that is given up, the other
// overwrites.
func (r *aeadRun) clone() cipherRun { c := *r; return &c }

func (r *aeadRun) size(decrypt bool, n int, last bool) (int, bool) {
	n += len(r.data)
	switch {
	case !last:
		return 0, true
	case decrypt:
		return max(n-r.tag, 0), true
	}
	return n + r.tag, true
}

func (r *aeadRun) next(key []byte, decrypt bool, data []byte, last bool) ([]byte, error) {
	if len(data) > maxMessage-len(r.data) {
		return nil, badLength(decrypt)
	}
	r.data = append(r.data, data...)
	if !last {
		return nil, nil
	}
	a, err := r.open(key)
	if err != nil {
		return nil, CKR_KEY_SIZE_RANGE
	}
	if !decrypt {
		return a.Seal(nil, r.nonce, r.data, r.aad), nil
	}
	if len(r.data) < r.tag {
		return nil, CKR_ENCRYPTED_DATA_LEN_RANGE
	}
	out, err := a.Open(nil, r.nonce, r.data, r.aad)
	if err != nil {
		return nil, CKR_AEAD_DECRYPT_FAILED
	}
	return out, nil
}

// AEADParams is a CK_GCM_PARAMS (section 6.13) or, with TagBits 128, a
// CK_SALSA20_CHACHA20_POLY1305_PARAMS (section 6.61).
type AEADParams struct {
	Nonce, AAD []byte
	TagBits    uint
}

// parseGCM takes nonces of any length with a tag of 128 bits, and shorter tags,
// down to 96 bits, with the usual nonce of 12 bytes: what the standard library
// has.
func parseGCM(param any) (cipherRun, error) {
	p, ok := param.(*AEADParams)
	if !ok || len(p.Nonce) == 0 || len(p.Nonce) > 256 || p.TagBits%8 != 0 || p.TagBits < 96 || p.TagBits > 128 ||
		len(p.AAD) > maxMessage || p.TagBits < 128 && len(p.Nonce) != 12 {
		return nil, CKR_MECHANISM_PARAM_INVALID
	}
	nonce, tag := len(p.Nonce), int(p.TagBits/8)
	return &aeadRun{nonce: bytes.Clone(p.Nonce), aad: bytes.Clone(p.AAD), tag: tag, open: func(key []byte) (cipher.AEAD, error) {
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		if tag < 16 {
			return cipher.NewGCMWithTagSize(block, tag)
		}
		return cipher.NewGCMWithNonceSize(block, nonce)
	}}, nil
}
