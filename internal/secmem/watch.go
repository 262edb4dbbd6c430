//go:build !goexperiment.runtimesecret || !(amd64 || arm64)

package secmem

import "errors"

// WatchSignals would have Compute look for signals instead of holding them back;
// that takes runtime/secret.
func WatchSignals(offset int, size uint) error {
	return errors.New("built without runtime/secret")
}

func undisturbed(func()) bool { return false }
