package p11

import (
	"bytes"
	"crypto/hkdf"
	"hash"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// hkdfMechanisms is HKDF (RFC 5869; section 6.62).
var hkdfMechanisms = []mechanism{
	{typ: CKM_HKDF_DERIVE, info: MechanismInfo{1, maxSecretKey, CKF_DERIVE}, keyType: CKK_HKDF, keyTypes: []uint{CKK_GENERIC_SECRET}, derive: parseHKDF},
	{typ: CKM_HKDF_DATA, info: MechanismInfo{1, maxSecretKey, CKF_DERIVE}, keyType: CKK_HKDF, keyTypes: []uint{CKK_GENERIC_SECRET}, derive: parseHKDF},
}

// HKDFParams is a CK_HKDF_PARAMS (section 6.62.2).
type HKDFParams struct {
	Extract, Expand bool
	PRF             MechanismType // hash of the HMAC
	SaltType        uint
	Salt            []byte
	SaltKey         ObjectHandle
	Info            []byte
}

// Kinds of salt.
const (
	CKF_HKDF_SALT_NULL uint = 1
	CKF_HKDF_SALT_DATA uint = 2
	CKF_HKDF_SALT_KEY  uint = 4
)

type hkdfRun struct {
	extract, expand bool
	newHash         func() hash.Hash
	salt, info      []byte
	saltKey         ObjectHandle
}

// parseHKDF ignores a salt where nothing is extracted, and the info where nothing
// is expanded (section 6.62.3).
func parseHKDF(param any) (deriver, error) {
	p, ok := param.(*HKDFParams)
	if !ok {
		return nil, CKR_MECHANISM_PARAM_INVALID
	}
	r := &hkdfRun{extract: p.Extract, expand: p.Expand, newHash: hashOf(p.PRF)}
	if r.newHash == nil || !p.Extract && !p.Expand || len(p.Salt) > maxValue || len(p.Info) > maxValue {
		return nil, CKR_MECHANISM_PARAM_INVALID
	}
	if p.Expand {
		r.info = bytes.Clone(p.Info)
	}
	switch {
	case !p.Extract, p.SaltType == CKF_HKDF_SALT_NULL && len(p.Salt) == 0:
	case p.SaltType == CKF_HKDF_SALT_DATA:
		r.salt = bytes.Clone(p.Salt)
	case p.SaltType == CKF_HKDF_SALT_KEY && len(p.Salt) == 0 && p.SaltKey != 0:
		r.saltKey = p.SaltKey
	default:
		return nil, CKR_MECHANISM_PARAM_INVALID
	}
	return r, nil
}

func (r *hkdfRun) second() ObjectHandle { return r.saltKey }

func (r *hkdfRun) class() uint { return CKO_SECRET_KEY }

func (r *hkdfRun) usual() int { return r.newHash().Size() }

func (r *hkdfRun) most() int {
	if r.expand {
		return maxSecretKey
	}
	return r.usual()
}

func (r *hkdfRun) derive(dst, key, saltKey []byte) (err error) {
	secmem.Compute(func() {
		prk, salt := key, r.salt
		if saltKey != nil {
			salt = saltKey
		}
		if r.extract {
			if prk, err = hkdf.Extract(r.newHash, key, salt); err != nil {
				return
			}
			defer secmem.Wipe(prk)
		}
		if !r.expand {
			copy(dst, prk)
			return
		}
		var okm []byte
		if okm, err = hkdf.Expand(r.newHash, prk, string(r.info), len(dst)); err == nil {
			copy(dst, okm)
			secmem.Wipe(okm)
		}
	})
	return err
}
