package secmem

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// The thread gets the mask back that it had.
func TestComputeRestoresMask(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	mask := func() (set unix.Sigset_t) {
		if err := unix.PthreadSigmask(unix.SIG_BLOCK, nil, &set); err != nil {
			t.Fatal(err)
		}
		return
	}
	before := mask()
	var during unix.Sigset_t
	Compute(func() { Compute(func() {}); during = mask() })
	if during == before {
		t.Error("nothing is blocked in Compute")
	}
	if mask() != before {
		t.Error("the signal mask is not the one from before")
	}
	func() {
		defer func() { _ = recover() }()
		Compute(func() { panic("in Compute") })
	}()
	if mask() != before {
		t.Error("the signal mask is not restored after a panic")
	}
}
