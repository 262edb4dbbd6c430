package main

// #include "cryptoki.h"
import "C"

import "github.com/InterCooperative-Network/icn-p11/p11"

//export go_C_MessageSignInit
func go_C_MessageSignInit(s C.CK_SESSION_HANDLE, m C.CK_MECHANISM_PTR, key C.CK_OBJECT_HANDLE) (rv C.CK_RV) {
	defer guard("C_MessageSignInit", &rv)
	mech, ok := mechanism(m)
	if !ok {
		return refuse(s, 0)
	}
	return code(module.MessageSignInit(p11.SessionHandle(s), mech, p11.ObjectHandle(key)))
}

//export go_C_SignMessage
func go_C_SignMessage(s C.CK_SESSION_HANDLE, par C.CK_VOID_PTR, npar C.CK_ULONG, p C.CK_BYTE_PTR, np C.CK_ULONG, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_SignMessage", &rv)
	param, okParam := messageParam(par, npar)
	data, ok := in(p, np)
	out, okOut := output(o, no)
	if !okParam || !ok || !okOut {
		return refuse(s, 0)
	}
	return produced(&out, no, module.SignMessage(p11.SessionHandle(s), param, data, &out))
}

//export go_C_SignMessageBegin
func go_C_SignMessageBegin(s C.CK_SESSION_HANDLE, par C.CK_VOID_PTR, npar C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_SignMessageBegin", &rv)
	param, ok := messageParam(par, npar)
	if !ok {
		return refuse(s, 0)
	}
	return code(module.SignMessageBegin(p11.SessionHandle(s), param))
}

//export go_C_SignMessageNext
func go_C_SignMessageNext(s C.CK_SESSION_HANDLE, par C.CK_VOID_PTR, npar C.CK_ULONG, p C.CK_BYTE_PTR, np C.CK_ULONG, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_SignMessageNext", &rv)
	param, okParam := messageParam(par, npar)
	part, ok := in(p, np)
	// NULL for the length says that more follows (section 5.14.4).
	if no == nil {
		if !okParam || !ok {
			return refuseMessage(s, p11.CKF_MESSAGE_SIGN)
		}
		return code(module.SignMessageNext(p11.SessionHandle(s), param, part, nil))
	}
	out, okOut := output(o, no)
	if !okParam || !ok || !okOut {
		return refuseMessage(s, p11.CKF_MESSAGE_SIGN)
	}
	return produced(&out, no, module.SignMessageNext(p11.SessionHandle(s), param, part, &out))
}

// refuseMessage is refuse where it is a message that ends, not its process.
func refuseMessage(s C.CK_SESSION_HANDLE, function uint) C.CK_RV {
	return code(module.RefuseMessage(p11.SessionHandle(s), function))
}

//export go_C_MessageSignFinal
func go_C_MessageSignFinal(s C.CK_SESSION_HANDLE) (rv C.CK_RV) {
	defer guard("C_MessageSignFinal", &rv)
	return code(module.MessageSignFinal(p11.SessionHandle(s)))
}

//export go_C_MessageVerifyInit
func go_C_MessageVerifyInit(s C.CK_SESSION_HANDLE, m C.CK_MECHANISM_PTR, key C.CK_OBJECT_HANDLE) (rv C.CK_RV) {
	defer guard("C_MessageVerifyInit", &rv)
	mech, ok := mechanism(m)
	if !ok {
		return refuse(s, 0)
	}
	return code(module.MessageVerifyInit(p11.SessionHandle(s), mech, p11.ObjectHandle(key)))
}

//export go_C_VerifyMessage
func go_C_VerifyMessage(s C.CK_SESSION_HANDLE, par C.CK_VOID_PTR, npar C.CK_ULONG, p C.CK_BYTE_PTR, np C.CK_ULONG, g C.CK_BYTE_PTR, ng C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_VerifyMessage", &rv)
	param, okParam := messageParam(par, npar)
	data, ok := in(p, np)
	sig, okSig := in(g, ng)
	if !okParam || !ok || !okSig {
		return refuse(s, 0)
	}
	return code(module.VerifyMessage(p11.SessionHandle(s), param, data, sig))
}

//export go_C_VerifyMessageBegin
func go_C_VerifyMessageBegin(s C.CK_SESSION_HANDLE, par C.CK_VOID_PTR, npar C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_VerifyMessageBegin", &rv)
	param, ok := messageParam(par, npar)
	if !ok {
		return refuse(s, 0)
	}
	return code(module.VerifyMessageBegin(p11.SessionHandle(s), param))
}

//export go_C_VerifyMessageNext
func go_C_VerifyMessageNext(s C.CK_SESSION_HANDLE, par C.CK_VOID_PTR, npar C.CK_ULONG, p C.CK_BYTE_PTR, np C.CK_ULONG, g C.CK_BYTE_PTR, ng C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_VerifyMessageNext", &rv)
	param, okParam := messageParam(par, npar)
	part, ok := in(p, np)
	sig, okSig := in(g, ng) // nil for NULL: more follows (section 5.16.4)
	if !okParam || !ok || !okSig {
		return refuseMessage(s, p11.CKF_MESSAGE_VERIFY)
	}
	return code(module.VerifyMessageNext(p11.SessionHandle(s), param, part, sig))
}

//export go_C_MessageVerifyFinal
func go_C_MessageVerifyFinal(s C.CK_SESSION_HANDLE) (rv C.CK_RV) {
	defer guard("C_MessageVerifyFinal", &rv)
	return code(module.MessageVerifyFinal(p11.SessionHandle(s)))
}

//export go_C_VerifySignatureInit
func go_C_VerifySignatureInit(s C.CK_SESSION_HANDLE, m C.CK_MECHANISM_PTR, key C.CK_OBJECT_HANDLE, g C.CK_BYTE_PTR, ng C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_VerifySignatureInit", &rv)
	if m == nil {
		return cancel(s, p11.CKF_VERIFY)
	}
	mech, ok := mechanism(m)
	sig, okSig := in(g, ng)
	if !ok || !okSig {
		return refuse(s, 0)
	}
	return code(module.VerifySignatureInit(p11.SessionHandle(s), mech, p11.ObjectHandle(key), sig))
}

//export go_C_VerifySignature
func go_C_VerifySignature(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_VerifySignature", &rv)
	data, ok := in(p, np)
	if !ok {
		return refuse(s, p11.CKF_VERIFY)
	}
	return code(module.VerifySignature(p11.SessionHandle(s), data))
}

//export go_C_VerifySignatureUpdate
func go_C_VerifySignatureUpdate(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_VerifySignatureUpdate", &rv)
	part, ok := in(p, np)
	if !ok {
		return refuse(s, p11.CKF_VERIFY)
	}
	return code(module.VerifySignatureUpdate(p11.SessionHandle(s), part))
}

//export go_C_VerifySignatureFinal
func go_C_VerifySignatureFinal(s C.CK_SESSION_HANDLE) (rv C.CK_RV) {
	defer guard("C_VerifySignatureFinal", &rv)
	return code(module.VerifySignatureFinal(p11.SessionHandle(s)))
}
