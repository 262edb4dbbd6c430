// Package environment reads environment variables, unless the process runs with
// more rights than whoever started it: then they are that user's words, and
// would choose the files of somebody else.
package environment

import (
	"os"
	"os/user"
	"strconv"
	"sync/atomic"
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

// Get is os.Getenv.
func Get(name string) string {
	v, _ := Lookup(name)
	return v
}

// Home is the user's home directory: $HOME, or what the user database says
// where variables are not to be trusted; "" where there is none.
func Home() string {
	if !distrusted.Load() {
		return os.Getenv("HOME")
	}
	u, err := user.LookupId(strconv.Itoa(os.Geteuid()))
	if err != nil {
		return ""
	}
	return u.HomeDir
}
