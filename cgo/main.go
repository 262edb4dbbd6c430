// Command cgo is the PKCS#11 module, built with -buildmode=c-shared.
//
// The entry points, function lists and the guard against fork are C
// (module.c); each C_ function that this token serves has a Go function
// go_C_… here. Such a function checks pointers and lengths, makes Go values
// of the arguments without copying what they point to, calls one method of
// [p11.Module], and writes the answer back. The rules are all in package p11.
//
// Go's runtime starts in C_Initialize, so nothing here may depend on having
// run when the module is loaded.
package main

// #cgo CFLAGS: -O2 -Wall -Wextra -Wno-unused-parameter
// #include "cryptoki.h"
import "C"

import (
	"fmt"
	"runtime/debug"

	"github.com/InterCooperative-Network/icn-p11/p11"
)

// version is the release, "v1.2.3" or what git describe makes of it; the
// Makefile sets it.
var version = "dev"

var module = newModule()

func newModule() *p11.Module {
	var v p11.Version
	if n, _ := fmt.Sscanf(version, "v%d.%d", &v.Major, &v.Minor); n == 2 {
		p11.LibraryVersion = v
	}
	return p11.NewModule()
}

func main() {}

// guard keeps a panic from the host: the call fails instead.
func guard(function string, rv *C.CK_RV) {
	if cause := recover(); cause != nil {
		*rv = C.CK_RV(p11.CKR_GENERAL_ERROR)
		defer func() { _ = recover() }() // a log that panics is no reason to end the host
		module.LogPanic(function, cause, debug.Stack())
	}
}

// code is the return value for what a method of the module answered.
func code(err error) C.CK_RV {
	return C.CK_RV(p11.RVOf(err))
}

const argumentsBad = C.CK_RV(p11.CKR_ARGUMENTS_BAD)

// refuse answers a call of a session with arguments that are none, and ends
// the operations in flags, which it would have continued.
func refuse(s C.CK_SESSION_HANDLE, flags uint) C.CK_RV {
	return code(module.Refuse(p11.SessionHandle(s), flags))
}

func refuseSlot(slot C.CK_SLOT_ID) C.CK_RV {
	return code(module.RefuseSlot(p11.SlotID(slot)))
}
