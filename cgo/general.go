package main

// #include "cryptoki.h"
import "C"

import (
	"sync"
	"unsafe"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem/rseq"
	"github.com/InterCooperative-Network/icn-p11/p11"
)

// spareSignals spares a signature the system calls that hold signals back, where
// that can be.
var spareSignals = sync.OnceFunc(func() { _ = rseq.Watch() })

//export go_C_Initialize
func go_C_Initialize(p C.CK_VOID_PTR) (rv C.CK_RV) {
	defer guard("C_Initialize", &rv)
	var args p11.InitArgs
	if a := (C.CK_C_INITIALIZE_ARGS_PTR)(p); a != nil {
		args = p11.InitArgs{
			Given:        true,
			Flags:        uint(a.flags),
			CreateMutex:  a.CreateMutex != nil,
			DestroyMutex: a.DestroyMutex != nil,
			LockMutex:    a.LockMutex != nil,
			UnlockMutex:  a.UnlockMutex != nil,
			Reserved:     a.pReserved != nil,
		}
	}
	spareSignals()
	takeEnvironment(variables)
	err := module.Initialize(args)
	if err == nil {
		takeEnvironment(module.Variables())
	}
	return code(err)
}

//export go_C_Finalize
func go_C_Finalize() (rv C.CK_RV) {
	defer guard("C_Finalize", &rv)
	return code(module.Finalize())
}

//export go_C_GetInfo
func go_C_GetInfo(p C.CK_INFO_PTR) (rv C.CK_RV) {
	defer guard("C_GetInfo", &rv)
	if p == nil {
		return argumentsBad
	}
	info, err := module.GetInfo()
	if err == nil {
		p.cryptokiVersion = cVersion(info.CryptokiVersion)
		pad(p.manufacturerID[:], info.ManufacturerID)
		p.flags = C.CK_FLAGS(info.Flags)
		pad(p.libraryDescription[:], info.LibraryDescription)
		p.libraryVersion = cVersion(info.LibraryVersion)
	}
	return code(err)
}

//export go_C_GetSlotList
func go_C_GetSlotList(present C.CK_BBOOL, list C.CK_SLOT_ID_PTR, n C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_GetSlotList", &rv)
	if n == nil {
		return argumentsBad
	}
	var out []p11.SlotID
	if list != nil {
		out = unsafe.Slice((*p11.SlotID)(unsafe.Pointer(list)), int(min(*n, maxHandles)))
	}
	count, err := module.GetSlotList(present != 0, out, list == nil)
	return counted(count, n, err)
}

//export go_C_GetSlotInfo
func go_C_GetSlotInfo(slot C.CK_SLOT_ID, p C.CK_SLOT_INFO_PTR) (rv C.CK_RV) {
	defer guard("C_GetSlotInfo", &rv)
	if p == nil {
		return refuseSlot(slot)
	}
	info, err := module.GetSlotInfo(p11.SlotID(slot))
	if err == nil {
		pad(p.slotDescription[:], info.SlotDescription)
		pad(p.manufacturerID[:], info.ManufacturerID)
		p.flags = C.CK_FLAGS(info.Flags)
		p.hardwareVersion = cVersion(info.HardwareVersion)
		p.firmwareVersion = cVersion(info.FirmwareVersion)
	}
	return code(err)
}

//export go_C_GetTokenInfo
func go_C_GetTokenInfo(slot C.CK_SLOT_ID, p C.CK_TOKEN_INFO_PTR) (rv C.CK_RV) {
	defer guard("C_GetTokenInfo", &rv)
	if p == nil {
		return refuseSlot(slot)
	}
	info, err := module.GetTokenInfo(p11.SlotID(slot))
	if err == nil {
		pad(p.label[:], info.Label)
		pad(p.manufacturerID[:], info.ManufacturerID)
		pad(p.model[:], info.Model)
		pad(p.serialNumber[:], info.SerialNumber)
		p.flags = C.CK_FLAGS(info.Flags)
		p.ulMaxSessionCount = C.CK_ULONG(info.MaxSessionCount)
		p.ulSessionCount = C.CK_ULONG(info.SessionCount)
		p.ulMaxRwSessionCount = C.CK_ULONG(info.MaxRwSessionCount)
		p.ulRwSessionCount = C.CK_ULONG(info.RwSessionCount)
		p.ulMaxPinLen = C.CK_ULONG(info.MaxPinLen)
		p.ulMinPinLen = C.CK_ULONG(info.MinPinLen)
		p.ulTotalPublicMemory = C.CK_ULONG(info.TotalPublicMemory)
		p.ulFreePublicMemory = C.CK_ULONG(info.FreePublicMemory)
		p.ulTotalPrivateMemory = C.CK_ULONG(info.TotalPrivateMemory)
		p.ulFreePrivateMemory = C.CK_ULONG(info.FreePrivateMemory)
		p.hardwareVersion = cVersion(info.HardwareVersion)
		p.firmwareVersion = cVersion(info.FirmwareVersion)
		pad(p.utcTime[:], info.UTCTime)
	}
	return code(err)
}

//export go_C_GetMechanismList
func go_C_GetMechanismList(slot C.CK_SLOT_ID, list C.CK_MECHANISM_TYPE_PTR, n C.CK_ULONG_PTR) (rv C.CK_RV) {
	defer guard("C_GetMechanismList", &rv)
	if n == nil {
		return refuseSlot(slot)
	}
	var out []p11.MechanismType
	if list != nil {
		out = unsafe.Slice((*p11.MechanismType)(unsafe.Pointer(list)), int(min(*n, maxHandles)))
	}
	count, err := module.GetMechanismList(p11.SlotID(slot), out, list == nil)
	return counted(count, n, err)
}

// counted writes back the number of entries of a list.
func counted(count int, n C.CK_ULONG_PTR, err error) C.CK_RV {
	rv := p11.RVOf(err)
	if rv == p11.CKR_OK || rv == p11.CKR_BUFFER_TOO_SMALL {
		*n = C.CK_ULONG(count)
	}
	return C.CK_RV(rv)
}

//export go_C_GetMechanismInfo
func go_C_GetMechanismInfo(slot C.CK_SLOT_ID, mech C.CK_MECHANISM_TYPE, p C.CK_MECHANISM_INFO_PTR) (rv C.CK_RV) {
	defer guard("C_GetMechanismInfo", &rv)
	if p == nil {
		return refuseSlot(slot)
	}
	info, err := module.GetMechanismInfo(p11.SlotID(slot), p11.MechanismType(mech))
	if err == nil {
		p.ulMinKeySize = C.CK_ULONG(info.MinKeySize)
		p.ulMaxKeySize = C.CK_ULONG(info.MaxKeySize)
		p.flags = C.CK_FLAGS(info.Flags)
	}
	return code(err)
}

//export go_C_InitToken
func go_C_InitToken(slot C.CK_SLOT_ID, pin C.CK_BYTE_PTR, npin C.CK_ULONG, label C.CK_UTF8CHAR_PTR) (rv C.CK_RV) {
	defer guard("C_InitToken", &rv)
	soPIN, ok := in(pin, npin)
	if !ok || label == nil {
		return refuseSlot(slot)
	}
	// Section 5.5.7: the label is 32 bytes, padded with blanks, not terminated.
	return code(module.InitToken(p11.SlotID(slot), soPIN, *(*[32]byte)(unsafe.Pointer(label))))
}

//export go_C_WaitForSlotEvent
func go_C_WaitForSlotEvent(flags C.CK_FLAGS, slot C.CK_SLOT_ID_PTR, reserved C.CK_VOID_PTR) (rv C.CK_RV) {
	defer guard("C_WaitForSlotEvent", &rv)
	if slot == nil || reserved != nil {
		return argumentsBad
	}
	id, err := module.WaitForSlotEvent(uint(flags))
	if err == nil {
		*slot = C.CK_SLOT_ID(id)
	}
	return code(err)
}

//export go_C_SeedRandom
func go_C_SeedRandom(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, n C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_SeedRandom", &rv)
	seed, ok := in(p, n)
	if !ok {
		return refuse(s, 0)
	}
	return code(module.SeedRandom(p11.SessionHandle(s), seed))
}

//export go_C_GenerateRandom
func go_C_GenerateRandom(s C.CK_SESSION_HANDLE, p C.CK_BYTE_PTR, n C.CK_ULONG) (rv C.CK_RV) {
	defer guard("C_GenerateRandom", &rv)
	out, ok := in(p, n)
	if !ok {
		return refuse(s, 0)
	}
	return code(module.GenerateRandom(p11.SessionHandle(s), out))
}
