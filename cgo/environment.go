package main

// #include <stdlib.h>
import "C"

import (
	"os"
	"unsafe"
)

// environment names the variables that package config reads, and the one that
// the times in a log file depend on.
var environment = []string{"ICN_P11_CONF", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "HOME", "TZ"}

// takeEnvironment brings Go's copy of the environment up to date with the
// host's, which may set variables at any time before C_Initialize. os.Setenv
// also calls C's setenv, so only a change is passed on; it replaces a value in
// the host's environment by the same value.
func takeEnvironment(names []string) {
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
