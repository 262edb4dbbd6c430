package main

// #include "cryptoki.h"
import "C"

import (
	"unsafe"

	"github.com/InterCooperative-Network/icn-p11/p11"
)

// The structures below are those of cryptoki.h with integers for the pointers,
// which stay integers until bytesAt has looked at them.
type (
	eddsaParams struct {
		ph      C.CK_BBOOL
		length  C.CK_ULONG
		context uintptr
	}
	gcmParams struct {
		iv              uintptr
		ivLen, ivBits   C.CK_ULONG
		aad             uintptr
		aadLen, tagBits C.CK_ULONG
	}
	chachaParams struct {
		nonce    uintptr
		nonceLen C.CK_ULONG
		aad      uintptr
		aadLen   C.CK_ULONG
	}
	ecdhParams struct {
		kdf, sharedLen C.CK_ULONG
		shared         uintptr
		publicLen      C.CK_ULONG
		public         uintptr
	}
	hkdfParams struct {
		extract, expand C.CK_BBOOL
		prf             C.CK_MECHANISM_TYPE
		saltType        C.CK_ULONG
		salt            uintptr
		saltLen         C.CK_ULONG
		saltKey         C.CK_OBJECT_HANDLE
		info            uintptr
		infoLen         C.CK_ULONG
	}
)

// layout copies a parameter to a structure, if it has the size of one: the
// host's need not be aligned.
func layout[T any](param []byte) (c T, ok bool) {
	if len(param) != int(unsafe.Sizeof(c)) {
		return c, false
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&c)), len(param)), param)
	return c, true
}

// nonceBytes is the length of a nonce of ChaCha20-Poly1305 in bytes. The standard
// has it in bits (section 6.61), which Java passes; NSS and those who follow it
// pass bytes. No nonce is of 96 bytes, nor of 12 bits.
func nonceBytes(n C.CK_ULONG) C.CK_ULONG {
	if n == 96 {
		return 12
	}
	return n
}

// parameter takes the parameter of a mechanism apart. ok is false for a pointer
// that cannot be one.
func parameter(t p11.MechanismType, param []byte) (v any, ok bool) {
	ok = true
	at := func(a uintptr, n C.CK_ULONG) []byte {
		b, good := bytesAt(a, n)
		ok = ok && good
		return b
	}
	switch t {
	case p11.CKM_EDDSA:
		if c, fits := layout[eddsaParams](param); fits {
			v = &p11.EdDSAParams{Ph: c.ph != 0, Context: at(c.context, c.length)}
		}
	case p11.CKM_AES_GCM:
		if c, fits := layout[gcmParams](param); fits {
			v = &p11.AEADParams{Nonce: at(c.iv, c.ivLen), AAD: at(c.aad, c.aadLen), TagBits: uint(c.tagBits)}
		}
	case p11.CKM_CHACHA20_POLY1305:
		if c, fits := layout[chachaParams](param); fits {
			v = &p11.AEADParams{Nonce: at(c.nonce, nonceBytes(c.nonceLen)), AAD: at(c.aad, c.aadLen), TagBits: 128}
		}
	case p11.CKM_ECDH1_DERIVE:
		if c, fits := layout[ecdhParams](param); fits {
			v = &p11.ECDHParams{KDF: uint(c.kdf), Shared: at(c.shared, c.sharedLen), Public: at(c.public, c.publicLen)}
		}
	case p11.CKM_HKDF_DERIVE, p11.CKM_HKDF_DATA:
		if c, fits := layout[hkdfParams](param); fits {
			v = &p11.HKDFParams{
				Extract: c.extract != 0, Expand: c.expand != 0, PRF: p11.MechanismType(c.prf), SaltType: uint(c.saltType),
				Salt: at(c.salt, c.saltLen), SaltKey: p11.ObjectHandle(c.saltKey), Info: at(c.info, c.infoLen),
			}
		}
	}
	if v == nil {
		v = param
	}
	return v, ok
}
