package p11

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"hash"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/internal/x25519"
)

// montgomeryMechanisms is X25519 (RFC 7748; sections 6.3.11 and 6.3.17).
var montgomeryMechanisms = []mechanism{
	{typ: CKM_EC_MONTGOMERY_KEY_PAIR_GEN, info: edwardsInfo(CKF_GENERATE_KEY_PAIR), keyType: CKK_EC_MONTGOMERY},
	{typ: CKM_ECDH1_DERIVE, info: edwardsInfo(CKF_DERIVE), keyType: CKK_EC_MONTGOMERY, derive: parseECDH},
}

// ECDHParams is a CK_ECDH1_DERIVE_PARAMS (section 6.3.17).
type ECDHParams struct {
	KDF    uint
	Shared []byte // shared info of the KDF
	Public []byte // of the peer
}

// Key derivation functions of ECDH (section 6.3.17).
const (
	CKD_NULL       uint = 1
	CKD_SHA224_KDF uint = 5
	CKD_SHA256_KDF uint = 6
	CKD_SHA384_KDF uint = 7
	CKD_SHA512_KDF uint = 8
)

// x963 are the hashes of the KDF of ANSI X9.63 (SEC 1, section 3.6.1).
var x963 = map[uint]func() hash.Hash{
	CKD_SHA224_KDF: sha256.New224, CKD_SHA256_KDF: sha256.New, CKD_SHA384_KDF: sha512.New384, CKD_SHA512_KDF: sha512.New,
}

type ecdh struct {
	newHash func() hash.Hash // nil: no KDF
	shared  []byte
	public  []byte
}

func parseECDH(param any) (deriver, error) {
	p, ok := param.(*ECDHParams)
	if !ok {
		return nil, CKR_MECHANISM_PARAM_INVALID
	}
	public, ok := curve25519.parsePoint(p.Public)
	d := &ecdh{newHash: x963[p.KDF], shared: bytes.Clone(p.Shared), public: bytes.Clone(public)}
	if !ok || p.KDF != CKD_NULL && d.newHash == nil || p.KDF == CKD_NULL && len(p.Shared) > 0 || len(p.Shared) > maxValue {
		return nil, CKR_MECHANISM_PARAM_INVALID
	}
	return d, nil
}

func (d *ecdh) class() uint { return CKO_PRIVATE_KEY }

// most: without a KDF, the key is the shared secret or the end of it.
func (d *ecdh) most() int {
	if d.newHash == nil {
		return x25519.Size
	}
	return maxSecretKey
}

func (d *ecdh) usual() int { return d.most() }

func (d *ecdh) second() ObjectHandle { return 0 }

func (d *ecdh) derive(dst, key, _ []byte) error {
	z, err := secmem.New(x25519.Size)
	if err != nil {
		return err
	}
	defer z.Destroy()
	if err := x25519.Shared(z.Bytes(), key, d.public); err != nil {
		return CKR_MECHANISM_PARAM_INVALID
	}
	if d.newHash == nil {
		// Section 6.3.17: a shorter key loses bytes from the leading end.
		secmem.Copy(dst, z.Bytes()[x25519.Size-len(dst):])
		return nil
	}
	secmem.Compute(func() { deriveX963(dst, d.newHash(), z.Bytes(), d.shared) })
	return nil
}

// deriveX963 is the KDF of ANSI X9.63: it fills dst.
func deriveX963(dst []byte, h hash.Hash, z, shared []byte) {
	for counter := uint32(1); len(dst) > 0; counter++ {
		h.Reset()
		h.Write(z)
		h.Write(binary.BigEndian.AppendUint32(nil, counter))
		h.Write(shared)
		dst = dst[copy(dst, h.Sum(nil)):]
	}
	h.Reset()
}
