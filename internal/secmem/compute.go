package secmem

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blocked is every signal but those of faults, which kill the process when
// they are blocked.
var blocked = func() (set unix.Sigset_t) {
	for i := range set.Val {
		set.Val[i] = ^set.Val[i]
	}
	for _, s := range []unix.Signal{unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSYS} {
		bits := 8 * int(unsafe.Sizeof(set.Val[0]))
		set.Val[(int(s)-1)/bits] &^= 1 << ((int(s) - 1) % bits)
	}
	return
}()

// Compute is [Do] for an f that computes and does not wait for anything. For the
// time of a handler the kernel saves the registers on the signal stack, where they
// remain until the next signal comes; so Compute holds signals back meanwhile, also
// those by which the Go runtime preempts, or wipes that stack after a signal
// ([WatchSignals]).
func Compute(f func()) {
	runtime.LockOSThread() // mask and signal stack are the thread's
	defer runtime.UnlockOSThread()
	if undisturbed(f) {
		return
	}
	var old unix.Sigset_t
	if unix.PthreadSigmask(unix.SIG_BLOCK, &blocked, &old) == nil {
		defer unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
	}
	Do(f)
}

// Copy copies a secret, in [Compute]: a copy goes through vector registers.
func Copy(dst, src []byte) (n int) {
	Compute(func() { n = copy(dst, src) })
	return n
}
