package main

// #include "cryptoki.h"
import "C"

import "github.com/InterCooperative-Network/icn-p11/p11"

// cancel ends the active operation of a function, which is what its Init does
// with NULL for the mechanism (v3.1, sections 5.11.1, 5.13.1 and 5.15.1).
func cancel(s C.CK_SESSION_HANDLE, function uint) C.CK_RV {
	return code(module.SessionCancel(p11.SessionHandle(s), function))
}

//export go_C_DigestInit
func go_C_DigestInit(s C.CK_SESSION_HANDLE, m C.CK_MECHANISM_PTR) (rv C.CK_RV) {
	defer guard("C_DigestInit", &rv)
	if m == nil {
		return cancel(s, p11.CKF_DIGEST)
	}
	mech, ok := mechanism(m)
	if !ok {
		return refuse(s, 0)
	}
	return code(module.DigestInit(p11.SessionHandle(s), mech))
}

//export go_C_Digest
func go_C_Digest(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_Digest", &rv)
	return crypt(s, p, np, o, no, p11.CKF_DIGEST, module.Digest)
}

//export go_C_DigestUpdate
func go_C_DigestUpdate(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_DigestUpdate", &rv)
	part, ok := in(p, np)
	if !ok {
		return refuse(s, p11.CKF_DIGEST)
	}
	return code(module.DigestUpdate(p11.SessionHandle(s), part))
}

//export go_C_DigestKey
func go_C_DigestKey(s C.CK_SESSION_HANDLE, key C.CK_OBJECT_HANDLE) (rv C.CK_RV) {
	defer guard("C_DigestKey", &rv)
	return code(module.DigestKey(p11.SessionHandle(s), p11.ObjectHandle(key)))
}

//export go_C_DigestFinal
func go_C_DigestFinal(s C.CK_SESSION_HANDLE, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_DigestFinal", &rv)
	return finish(s, o, no, p11.CKF_DIGEST, module.DigestFinal)
}

//export go_C_SignInit
func go_C_SignInit(s C.CK_SESSION_HANDLE, m C.CK_MECHANISM_PTR, key C.CK_OBJECT_HANDLE) (rv C.CK_RV) {
	defer guard("C_SignInit", &rv)
	return begin(s, m, key, p11.CKF_SIGN, module.SignInit)
}

// go_C_Sign runs on the caller's thread from end to end and makes nothing on
// the Go heap: handing the work to another goroutine costs three times as much
// as the signature.
//
//export go_C_Sign
func go_C_Sign(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_Sign", &rv)
	data, ok := in(p, np)
	out, okOut := output(o, no)
	if !ok || !okOut {
		return refuse(s, p11.CKF_SIGN)
	}
	return produced(&out, no, module.Sign(p11.SessionHandle(s), data, &out))
}

//export go_C_SignUpdate
func go_C_SignUpdate(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_SignUpdate", &rv)
	part, ok := in(p, np)
	if !ok {
		return refuse(s, p11.CKF_SIGN)
	}
	return code(module.SignUpdate(p11.SessionHandle(s), part))
}

//export go_C_SignFinal
func go_C_SignFinal(s C.CK_SESSION_HANDLE, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_SignFinal", &rv)
	return finish(s, o, no, p11.CKF_SIGN, module.SignFinal)
}

//export go_C_VerifyInit
func go_C_VerifyInit(s C.CK_SESSION_HANDLE, m C.CK_MECHANISM_PTR, key C.CK_OBJECT_HANDLE) (rv C.CK_RV) {
	defer guard("C_VerifyInit", &rv)
	return begin(s, m, key, p11.CKF_VERIFY, module.VerifyInit)
}

//export go_C_Verify
func go_C_Verify(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG, g C.CK_BYTE_PTR, ng C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_Verify", &rv)
	data, ok := in(p, np)
	sig, okSig := in(g, ng)
	if !ok || !okSig {
		return refuse(s, p11.CKF_VERIFY)
	}
	return code(module.Verify(p11.SessionHandle(s), data, sig))
}

//export go_C_VerifyUpdate
func go_C_VerifyUpdate(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_VerifyUpdate", &rv)
	part, ok := in(p, np)
	if !ok {
		return refuse(s, p11.CKF_VERIFY)
	}
	return code(module.VerifyUpdate(p11.SessionHandle(s), part))
}

//export go_C_VerifyFinal
func go_C_VerifyFinal(s C.CK_SESSION_HANDLE, g C.CK_BYTE_PTR, ng C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_VerifyFinal", &rv)
	sig, ok := in(g, ng)
	if !ok {
		return refuse(s, p11.CKF_VERIFY)
	}
	return code(module.VerifyFinal(p11.SessionHandle(s), sig))
}

//export go_C_EncryptInit
func go_C_EncryptInit(s C.CK_SESSION_HANDLE, m C.CK_MECHANISM_PTR, key C.CK_OBJECT_HANDLE) (rv C.CK_RV) {
	defer guard("C_EncryptInit", &rv)
	return begin(s, m, key, p11.CKF_ENCRYPT, module.EncryptInit)
}

//export go_C_Encrypt
func go_C_Encrypt(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_Encrypt", &rv)
	return crypt(s, p, np, o, no, p11.CKF_ENCRYPT, module.Encrypt)
}

//export go_C_EncryptUpdate
func go_C_EncryptUpdate(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_EncryptUpdate", &rv)
	return crypt(s, p, np, o, no, p11.CKF_ENCRYPT, module.EncryptUpdate)
}

//export go_C_EncryptFinal
func go_C_EncryptFinal(s C.CK_SESSION_HANDLE, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_EncryptFinal", &rv)
	return finish(s, o, no, p11.CKF_ENCRYPT, module.EncryptFinal)
}

//export go_C_DecryptInit
func go_C_DecryptInit(s C.CK_SESSION_HANDLE, m C.CK_MECHANISM_PTR, key C.CK_OBJECT_HANDLE) (rv C.CK_RV) {
	defer guard("C_DecryptInit", &rv)
	return begin(s, m, key, p11.CKF_DECRYPT, module.DecryptInit)
}

//export go_C_Decrypt
func go_C_Decrypt(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_Decrypt", &rv)
	return crypt(s, p, np, o, no, p11.CKF_DECRYPT, module.Decrypt)
}

//export go_C_DecryptUpdate
func go_C_DecryptUpdate(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_DecryptUpdate", &rv)
	return crypt(s, p, np, o, no, p11.CKF_DECRYPT, module.DecryptUpdate)
}

//export go_C_DecryptFinal
func go_C_DecryptFinal(s C.CK_SESSION_HANDLE, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_DecryptFinal", &rv)
	return finish(s, o, no, p11.CKF_DECRYPT, module.DecryptFinal)
}

//export go_C_DigestEncryptUpdate
func go_C_DigestEncryptUpdate(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_DigestEncryptUpdate", &rv)
	return crypt(s, p, np, o, no, p11.CKF_ENCRYPT|p11.CKF_DIGEST, module.DigestEncryptUpdate)
}

//export go_C_DecryptDigestUpdate
func go_C_DecryptDigestUpdate(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_DecryptDigestUpdate", &rv)
	return crypt(s, p, np, o, no, p11.CKF_DECRYPT|p11.CKF_DIGEST, module.DecryptDigestUpdate)
}

//export go_C_SignEncryptUpdate
func go_C_SignEncryptUpdate(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_SignEncryptUpdate", &rv)
	return crypt(s, p, np, o, no, p11.CKF_ENCRYPT|p11.CKF_SIGN, module.SignEncryptUpdate)
}

//export go_C_DecryptVerifyUpdate
func go_C_DecryptVerifyUpdate(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_DecryptVerifyUpdate", &rv)
	return crypt(s, p, np, o, no, p11.CKF_DECRYPT|p11.CKF_VERIFY, module.DecryptVerifyUpdate)
}

// begin is what the functions do that start an operation with a key.
func begin(s C.CK_SESSION_HANDLE, m C.CK_MECHANISM_PTR, key C.CK_OBJECT_HANDLE, function uint, f func(p11.SessionHandle, p11.Mechanism, p11.ObjectHandle) error) C.CK_RV {
	if m == nil {
		return cancel(s, function)
	}
	mech, ok := mechanism(m)
	if !ok {
		return refuse(s, 0)
	}
	return code(f(p11.SessionHandle(s), mech, p11.ObjectHandle(key)))
}

// finish is what the functions do that end an operation with its last data.
func finish(s C.CK_SESSION_HANDLE, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR, function uint, f func(p11.SessionHandle, *p11.Output) error) C.CK_RV {
	out, ok := output(o, no)
	if !ok {
		return refuse(s, function)
	}
	return produced(&out, no, f(p11.SessionHandle(s), &out))
}

// crypt is what the functions do that take data and give data. flags are those
// of the operations that they continue.
func crypt(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR, flags uint, f func(p11.SessionHandle, []byte, *p11.Output) error) C.CK_RV {
	data, ok := in(p, np)
	out, okOut := output(o, no)
	if !ok || !okOut {
		return refuse(s, flags)
	}
	return produced(&out, no, f(p11.SessionHandle(s), data, &out))
}
