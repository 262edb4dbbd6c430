package p11tool

/*
#include <stdlib.h>

typedef unsigned long ul;
struct eddsa_params { unsigned char ph; ul context_len; void *context; };
struct gcm_params { void *iv; ul iv_len, iv_bits; void *aad; ul aad_len, tag_bits; };
struct chacha_params { void *nonce; ul nonce_len; void *aad; ul aad_len; };
struct ecdh1_params { ul kdf, shared_len; void *shared; ul public_len; void *public; };
struct hkdf_params {
	unsigned char extract, expand;
	ul prf, salt_type;
	void *salt;
	ul salt_len, salt_key;
	void *info;
	ul info_len;
};
*/
import "C"

import "unsafe"

// cBytes copies b to C memory, which free gives back; NULL for what is empty.
func cBytes(blocks *[]unsafe.Pointer, b []byte) (unsafe.Pointer, C.ul) {
	if len(b) == 0 {
		return nil, 0
	}
	p := C.CBytes(b)
	*blocks = append(*blocks, p)
	return p, C.ul(len(b))
}

// structure makes the bytes of a mechanism parameter. What it points to lies in C
// memory until free is called, which must not be before the call that takes the
// parameter is over.
func structure[T any](s *T, blocks []unsafe.Pointer) (param []byte, free func()) {
	return C.GoBytes(unsafe.Pointer(s), C.int(unsafe.Sizeof(*s))), func() {
		for _, p := range blocks {
			C.free(p)
		}
	}
}

func flag(b bool) C.uchar {
	if b {
		return 1
	}
	return 0
}

// EdDSAParams makes a CK_EDDSA_PARAMS (PKCS#11 v3.1, section 6.3.16). free is for
// after the C_SignInit or C_VerifyInit.
func EdDSAParams(ph bool, context []byte) (param []byte, free func()) {
	var blocks []unsafe.Pointer
	s := C.struct_eddsa_params{ph: flag(ph)}
	s.context, s.context_len = cBytes(&blocks, context)
	return structure(&s, blocks)
}

// GCMParams makes a CK_GCM_PARAMS (section 6.13), with a tag of tagBits bits. free
// is for after the Init function.
func GCMParams(iv, aad []byte, tagBits uint) (param []byte, free func()) {
	var blocks []unsafe.Pointer
	s := C.struct_gcm_params{iv_bits: C.ul(8 * len(iv)), tag_bits: C.ul(tagBits)}
	s.iv, s.iv_len = cBytes(&blocks, iv)
	s.aad, s.aad_len = cBytes(&blocks, aad)
	return structure(&s, blocks)
}

// ChaChaParams makes a CK_SALSA20_CHACHA20_POLY1305_PARAMS (section 6.61).
// nonceLen is what it says of the length of the nonce. free is for after the Init
// function.
func ChaChaParams(nonce []byte, nonceLen uint, aad []byte) (param []byte, free func()) {
	var blocks []unsafe.Pointer
	var s C.struct_chacha_params
	s.nonce, _ = cBytes(&blocks, nonce)
	s.nonce_len = C.ul(nonceLen)
	s.aad, s.aad_len = cBytes(&blocks, aad)
	return structure(&s, blocks)
}

// ECDH1Params makes a CK_ECDH1_DERIVE_PARAMS (section 6.3.17). free is for after
// the C_DeriveKey.
func ECDH1Params(kdf uint, shared, public []byte) (param []byte, free func()) {
	var blocks []unsafe.Pointer
	s := C.struct_ecdh1_params{kdf: C.ul(kdf)}
	s.shared, s.shared_len = cBytes(&blocks, shared)
	s.public, s.public_len = cBytes(&blocks, public)
	return structure(&s, blocks)
}

// HKDF is what a CK_HKDF_PARAMS says.
type HKDF struct {
	Extract, Expand bool
	PRF, SaltType   uint
	Salt            []byte
	SaltKey         uint
	Info            []byte
}

// HKDFParams makes a CK_HKDF_PARAMS (section 6.62.2). free is for after the
// C_DeriveKey.
func HKDFParams(p HKDF) (param []byte, free func()) {
	var blocks []unsafe.Pointer
	s := C.struct_hkdf_params{extract: flag(p.Extract), expand: flag(p.Expand), prf: C.ul(p.PRF), salt_type: C.ul(p.SaltType), salt_key: C.ul(p.SaltKey)}
	s.salt, s.salt_len = cBytes(&blocks, p.Salt)
	s.info, s.info_len = cBytes(&blocks, p.Info)
	return structure(&s, blocks)
}
