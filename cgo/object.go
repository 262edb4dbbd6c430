package main

// #include "cryptoki.h"
import "C"

import (
	"unsafe"

	"github.com/InterCooperative-Network/icn-p11/p11"
)

//export go_C_CreateObject
func go_C_CreateObject(s C.CK_SESSION_HANDLE, t C.CK_ATTRIBUTE_PTR, n C.CK_ULONG, out C.CK_OBJECT_HANDLE_PTR) (rv C.CK_RV) {
	defer guard("C_CreateObject", &rv)
	attrs, ok := template(t, n)
	if !ok || out == nil {
		return refuse(s, 0)
	}
	o, err := module.CreateObject(p11.SessionHandle(s), attrs)
	if err == nil {
		*out = C.CK_OBJECT_HANDLE(o)
	}
	return code(err)
}

//export go_C_CopyObject
func go_C_CopyObject(s C.CK_SESSION_HANDLE, obj C.CK_OBJECT_HANDLE, t C.CK_ATTRIBUTE_PTR, n C.CK_ULONG, out C.CK_OBJECT_HANDLE_PTR) (rv C.CK_RV) {
	defer guard("C_CopyObject", &rv)
	attrs, ok := template(t, n)
	if !ok || out == nil {
		return refuse(s, 0)
	}
	o, err := module.CopyObject(p11.SessionHandle(s), p11.ObjectHandle(obj), attrs)
	if err == nil {
		*out = C.CK_OBJECT_HANDLE(o)
	}
	return code(err)
}

//export go_C_DestroyObject
func go_C_DestroyObject(s C.CK_SESSION_HANDLE, obj C.CK_OBJECT_HANDLE) (rv C.CK_RV) {
	defer guard("C_DestroyObject", &rv)
	return code(module.DestroyObject(p11.SessionHandle(s), p11.ObjectHandle(obj)))
}

//export go_C_GetObjectSize
func go_C_GetObjectSize(s C.CK_SESSION_HANDLE, obj C.CK_OBJECT_HANDLE, out C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_GetObjectSize", &rv)
	if out == nil {
		return refuse(s, 0)
	}
	size, err := module.GetObjectSize(p11.SessionHandle(s), p11.ObjectHandle(obj))
	if err == nil {
		*out = C.CK_ULONG(size)
	}
	return code(err)
}

//export go_C_GetAttributeValue
func go_C_GetAttributeValue(s C.CK_SESSION_HANDLE, obj C.CK_OBJECT_HANDLE, t C.CK_ATTRIBUTE_PTR, n C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_GetAttributeValue", &rv)
	c, ok := attributes(t, n)
	if !ok || t == nil {
		return refuse(s, 0)
	}
	attrs, ok := templateOut(c)
	if !ok {
		return refuse(s, 0)
	}
	result := p11.RVOf(module.GetAttributeValue(p11.SessionHandle(s), p11.ObjectHandle(obj), attrs))
	switch result {
	case p11.CKR_OK, p11.CKR_ATTRIBUTE_SENSITIVE, p11.CKR_ATTRIBUTE_TYPE_INVALID, p11.CKR_BUFFER_TOO_SMALL:
		// Section 5.7.5: these are answers about single attributes, and all
		// the others are answered nevertheless.
		for i := range c {
			c[i].ulValueLen = C.CK_ULONG(attrs[i].Len)
		}
	}
	return C.CK_RV(result)
}

//export go_C_SetAttributeValue
func go_C_SetAttributeValue(s C.CK_SESSION_HANDLE, obj C.CK_OBJECT_HANDLE, t C.CK_ATTRIBUTE_PTR, n C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_SetAttributeValue", &rv)
	attrs, ok := template(t, n)
	if !ok {
		return refuse(s, 0)
	}
	return code(module.SetAttributeValue(p11.SessionHandle(s), p11.ObjectHandle(obj), attrs))
}

//export go_C_FindObjectsInit
func go_C_FindObjectsInit(s C.CK_SESSION_HANDLE, t C.CK_ATTRIBUTE_PTR, n C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_FindObjectsInit", &rv)
	attrs, ok := template(t, n)
	if !ok {
		return refuse(s, 0)
	}
	return code(module.FindObjectsInit(p11.SessionHandle(s), attrs))
}

//export go_C_FindObjects
func go_C_FindObjects(s C.CK_SESSION_HANDLE, list C.CK_OBJECT_HANDLE_PTR, room C.CK_ULONG, n C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_FindObjects", &rv)
	if n == nil || list == nil && room != 0 {
		return refuse(s, 0)
	}
	out := unsafe.Slice((*p11.ObjectHandle)(unsafe.Pointer(list)), int(min(room, maxHandles)))
	count, err := module.FindObjects(p11.SessionHandle(s), out)
	if err == nil {
		*n = C.CK_ULONG(count)
	}
	return code(err)
}

//export go_C_FindObjectsFinal
func go_C_FindObjectsFinal(s C.CK_SESSION_HANDLE) (rv C.CK_RV) {
	defer guard("C_FindObjectsFinal", &rv)
	return code(module.FindObjectsFinal(p11.SessionHandle(s)))
}

//export go_C_GenerateKeyPair
func go_C_GenerateKeyPair(s C.CK_SESSION_HANDLE, m C.CK_MECHANISM_PTR, tpub C.CK_ATTRIBUTE_PTR, npub C.CK_ULONG, tpriv C.CK_ATTRIBUTE_PTR, npriv C.CK_ULONG, pub, priv C.CK_OBJECT_HANDLE_PTR) (rv C.CK_RV) {
	defer guard("C_GenerateKeyPair", &rv)
	mech, ok := mechanism(m)
	pubAttrs, okPub := template(tpub, npub)
	privAttrs, okPriv := template(tpriv, npriv)
	if !ok || !okPub || !okPriv || pub == nil || priv == nil {
		return refuse(s, 0)
	}
	pubKey, privKey, err := module.GenerateKeyPair(p11.SessionHandle(s), mech, pubAttrs, privAttrs)
	if err == nil {
		*pub, *priv = C.CK_OBJECT_HANDLE(pubKey), C.CK_OBJECT_HANDLE(privKey)
	}
	return code(err)
}

//export go_C_GenerateKey
func go_C_GenerateKey(s C.CK_SESSION_HANDLE, m C.CK_MECHANISM_PTR, t C.CK_ATTRIBUTE_PTR, n C.CK_ULONG, out C.CK_OBJECT_HANDLE_PTR) (rv C.CK_RV) {
	defer guard("C_GenerateKey", &rv)
	mech, ok := mechanism(m)
	attrs, okAttrs := template(t, n)
	if !ok || !okAttrs || out == nil {
		return refuse(s, 0)
	}
	return made(out)(module.GenerateKey(p11.SessionHandle(s), mech, attrs))
}

// made writes back the handle of a new object.
func made(out C.CK_OBJECT_HANDLE_PTR) func(p11.ObjectHandle, error) C.CK_RV {
	return func(o p11.ObjectHandle, err error) C.CK_RV {
		if err == nil {
			*out = C.CK_OBJECT_HANDLE(o)
		}
		return code(err)
	}
}

//export go_C_WrapKey
func go_C_WrapKey(s C.CK_SESSION_HANDLE, m C.CK_MECHANISM_PTR, wrapping, key C.CK_OBJECT_HANDLE, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_WrapKey", &rv)
	mech, ok := mechanism(m)
	out, okOut := output(o, no)
	if !ok || !okOut {
		return refuse(s, 0)
	}
	return produced(&out, no, module.WrapKey(p11.SessionHandle(s), mech, p11.ObjectHandle(wrapping), p11.ObjectHandle(key), &out))
}

//export go_C_UnwrapKey
func go_C_UnwrapKey(s C.CK_SESSION_HANDLE, m C.CK_MECHANISM_PTR, key C.CK_OBJECT_HANDLE, p C.CK_BYTE_PTR, np C.CK_ULONG, t C.CK_ATTRIBUTE_PTR, n C.CK_ULONG, out C.CK_OBJECT_HANDLE_PTR) (rv C.CK_RV) {
	defer guard("C_UnwrapKey", &rv)
	mech, ok := mechanism(m)
	wrapped, okIn := in(p, np)
	attrs, okAttrs := template(t, n)
	if !ok || !okIn || !okAttrs || out == nil {
		return refuse(s, 0)
	}
	return made(out)(module.UnwrapKey(p11.SessionHandle(s), mech, p11.ObjectHandle(key), wrapped, attrs))
}

//export go_C_DeriveKey
func go_C_DeriveKey(s C.CK_SESSION_HANDLE, m C.CK_MECHANISM_PTR, key C.CK_OBJECT_HANDLE, t C.CK_ATTRIBUTE_PTR, n C.CK_ULONG, out C.CK_OBJECT_HANDLE_PTR) (rv C.CK_RV) {
	defer guard("C_DeriveKey", &rv)
	mech, ok := mechanism(m)
	attrs, okAttrs := template(t, n)
	if !ok || !okAttrs || out == nil {
		return refuse(s, 0)
	}
	return made(out)(module.DeriveKey(p11.SessionHandle(s), mech, p11.ObjectHandle(key), attrs))
}
