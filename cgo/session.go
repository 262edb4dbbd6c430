package main

// #include "cryptoki.h"
import "C"

import "github.com/InterCooperative-Network/icn-p11/p11"

// The application pointer and notification callback of C_OpenSession stop in
// C: this token never surrenders a session.
//
//export go_C_OpenSession
func go_C_OpenSession(slot C.CK_SLOT_ID, flags C.CK_FLAGS, out C.CK_SESSION_HANDLE_PTR) (rv C.CK_RV) {
	defer guard("C_OpenSession", &rv)
	if out == nil {
		return refuseSlot(slot)
	}
	s, err := module.OpenSession(p11.SlotID(slot), uint(flags))
	if err == nil {
		*out = C.CK_SESSION_HANDLE(s)
	}
	return code(err)
}

//export go_C_CloseSession
func go_C_CloseSession(s C.CK_SESSION_HANDLE) (rv C.CK_RV) {
	defer guard("C_CloseSession", &rv)
	return code(module.CloseSession(p11.SessionHandle(s)))
}

//export go_C_CloseAllSessions
func go_C_CloseAllSessions(slot C.CK_SLOT_ID) (rv C.CK_RV) {
	defer guard("C_CloseAllSessions", &rv)
	return code(module.CloseAllSessions(p11.SlotID(slot)))
}

//export go_C_GetSessionInfo
func go_C_GetSessionInfo(s C.CK_SESSION_HANDLE, p C.CK_SESSION_INFO_PTR) (rv C.CK_RV) {
	defer guard("C_GetSessionInfo", &rv)
	if p == nil {
		return refuse(s, 0)
	}
	info, err := module.GetSessionInfo(p11.SessionHandle(s))
	if err == nil {
		p.slotID = C.CK_SLOT_ID(info.Slot)
		p.state = C.CK_STATE(info.State)
		p.flags = C.CK_FLAGS(info.Flags)
		p.ulDeviceError = C.CK_ULONG(info.DeviceError)
	}
	return code(err)
}

//export go_C_SessionCancel
func go_C_SessionCancel(s C.CK_SESSION_HANDLE, flags C.CK_FLAGS) (rv C.CK_RV) {
	defer guard("C_SessionCancel", &rv)
	return code(module.SessionCancel(p11.SessionHandle(s), uint(flags)))
}

//export go_C_Login
func go_C_Login(s C.CK_SESSION_HANDLE, user C.CK_USER_TYPE, p C.CK_BYTE_PTR, n C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_Login", &rv)
	pin, ok := in(p, n)
	if !ok {
		return refuse(s, 0)
	}
	return code(module.Login(p11.SessionHandle(s), p11.UserType(user), pin))
}

//export go_C_LoginUser
func go_C_LoginUser(s C.CK_SESSION_HANDLE, user C.CK_USER_TYPE, p C.CK_BYTE_PTR, n C.CK_ULONG, pname C.CK_BYTE_PTR, nname C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_LoginUser", &rv)
	pin, ok := in(p, n)
	name, okName := in(pname, nname)
	if !ok || !okName {
		return refuse(s, 0)
	}
	return code(module.LoginUser(p11.SessionHandle(s), p11.UserType(user), pin, name))
}

//export go_C_GetOperationState
func go_C_GetOperationState(s C.CK_SESSION_HANDLE, o C.CK_BYTE_PTR, no C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_GetOperationState", &rv)
	out, ok := output(o, no)
	if !ok {
		return refuse(s, 0)
	}
	return produced(&out, no, module.GetOperationState(p11.SessionHandle(s), &out))
}

//export go_C_SetOperationState
func go_C_SetOperationState(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, n C.CK_ULONG, enc, auth C.CK_OBJECT_HANDLE) (rv C.CK_RV) {
	defer guard("C_SetOperationState", &rv)
	state, ok := in(p, n)
	if !ok {
		return refuse(s, 0)
	}
	return code(module.SetOperationState(p11.SessionHandle(s), state, p11.ObjectHandle(enc), p11.ObjectHandle(auth)))
}

//export go_C_GetSessionValidationFlags
func go_C_GetSessionValidationFlags(s C.CK_SESSION_HANDLE, what C.CK_SESSION_VALIDATION_FLAGS_TYPE, p C.CK_FLAGS_PTR) (rv C.CK_RV) {
	defer guard("C_GetSessionValidationFlags", &rv)
	if p == nil {
		return refuse(s, 0)
	}
	flags, err := module.GetSessionValidationFlags(p11.SessionHandle(s), uint(what))
	if err == nil {
		*p = C.CK_FLAGS(flags)
	}
	return code(err)
}

//export go_C_Logout
func go_C_Logout(s C.CK_SESSION_HANDLE) (rv C.CK_RV) {
	defer guard("C_Logout", &rv)
	return code(module.Logout(p11.SessionHandle(s)))
}

//export go_C_InitPIN
func go_C_InitPIN(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, n C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_InitPIN", &rv)
	pin, ok := in(p, n)
	if !ok {
		return refuse(s, 0)
	}
	return code(module.InitPIN(p11.SessionHandle(s), pin))
}

//export go_C_SetPIN
func go_C_SetPIN(s C.CK_SESSION_HANDLE, pold C.CK_BYTE_PTR, nold C.CK_ULONG, pnew C.CK_BYTE_PTR, nnew C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_SetPIN", &rv)
	oldPIN, ok1 := in(pold, nold)
	newPIN, ok2 := in(pnew, nnew)
	if !ok1 || !ok2 {
		return refuse(s, 0)
	}
	return code(module.SetPIN(p11.SessionHandle(s), oldPIN, newPIN))
}
