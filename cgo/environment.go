package main

// #include <stdlib.h>
// #include <sys/auxv.h>
import "C"

import (
	"os"
	"unsafe"

	"github.com/InterCooperative-Network/icn-p11/internal/environment"
)

// variables names the variables that package config reads, those that lead to
// a message bus, and the one that the times in a log file depend on.
var variables = []string{"ICN_P11_CONF", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HOME", "TZ",
	"DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS", "XDG_RUNTIME_DIR"}

// takeEnvironment brings Go's copy of the environment up to date with the
// host's, which may set variables at any time before C_Initialize. os.Setenv
// also calls C's setenv, so only a change is passed on; it replaces a value in
// the host's environment by the same value.
//
// In a setuid or setgid host they are the words of whoever started it, and
// name the log file, the store and the TPM; there they count for nothing.
func takeEnvironment(names []string) {
	if C.getauxval(C.AT_SECURE) != 0 {
		environment.Distrust()
		return
	}
	for _, name := range names {
		key := C.CString(name)
		value := C.getenv(key)
		C.free(unsafe.Pointer(key))
		old, known := os.LookupEnv(name)
		switch {
		case value == nil && known:
			os.Unsetenv(name)
		case value != nil && (!known || old != C.GoString(value)):
			os.Setenv(name, C.GoString(value))
		}
	}
}
