// Package environment reads environment variables, unless the process runs with
// more rights than whoever started it: then they are that user's words, and
// would choose the files of somebody else.
package environment

import (
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/InterCooperative-Network/icn-p11/internal/account"
)

var distrusted atomic.Bool

// Distrust makes every variable unset, for a setuid or setgid host
// (secure_getenv(3)).
func Distrust() { distrusted.Store(true) }

// Lookup is os.LookupEnv.
func Lookup(name string) (string, bool) {
	if distrusted.Load() {
		return "", false
	}
	return os.LookupEnv(name)
}

// All is os.Environ.
func All() []string {
	if distrusted.Load() {
		return nil
	}
	return os.Environ()
}

// Get is os.Getenv.
func Get(name string) string {
	v, _ := Lookup(name)
	return v
}

// Home is the user's home directory: $HOME, or what /etc/passwd says where that
// is not set, as in many services, or not to be trusted; "" where there is none.
func Home() string {
	if home := Get("HOME"); filepath.IsAbs(home) {
		return home
	}
	return account.Home(uint32(os.Geteuid()))
}
