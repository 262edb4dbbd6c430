//go:build goexperiment.runtimesecret && (amd64 || arm64)

package secmem

import (
	"encoding/binary"
	"errors"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// To hold signals back takes two system calls, a seventh of a signature. Where
// the C library has registered restartable sequences (rseq(2)), Compute lets
// signals come instead, and looks whether one came: the kernel clears rseq_cs of
// a thread when it delivers a signal outside of the instructions that rseq_cs
// tells of (linux/rseq.h), and Compute sets one that tells of instructions that
// never run. Where it was cleared, the signal stack, which may hold registers, is
// wiped.
//
// That takes a build with runtime/secret: in Do, the Go runtime then neither
// preempts by signals, nor leaves what a signal without a stack of its own has
// put on the stack of f.

// rseqArea is struct rseq of linux/rseq.h, as far as it is used.
type rseqArea struct {
	_     uint32
	cpuID int32 // negative if the thread is not registered
	cs    uintptr
}

// watching is where the kernel tells of signals, if it does.
var watching struct {
	cs     atomic.Uintptr // of a struct rseq_cs; 0: signals are held back
	offset uintptr        // from the thread pointer to the rseqArea
}

// threadPointer gives the thread pointer of the psABI, which is what the C
// library makes of it.
func threadPointer() unsafe.Pointer

// WatchSignals has Compute, from then on, look for signals instead of holding
// them back, if the kernel tells of them. offset and size, in bytes, are
// __rseq_offset and __rseq_size of the C library, which has to have made every
// thread that calls Compute.
func WatchSignals(offset int, size uint) error {
	if size < uint(unsafe.Sizeof(rseqArea{})) {
		return errors.New("the C library has not registered restartable sequences")
	}
	page, err := unix.Mmap(-1, 0, Max, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	// struct rseq_cs: version and flags, start and length of the sequence, and
	// where its interruption leads to. The kernel wants the C library's signature
	// in front of that.
	at := func(n int) uint64 { return uint64(uintptr(unsafe.Pointer(&page[n]))) }
	const abort, sequence = 128, 256
	for n, v := range map[int]uint64{8: at(sequence), 16: 1, 24: at(abort)} {
		binary.NativeEndian.PutUint64(page[n:], v)
	}
	binary.NativeEndian.PutUint32(page[abort-4:], signature)

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	watching.offset = uintptr(offset)
	area := areaOf()
	if area == nil {
		return errors.New("the thread has not registered restartable sequences")
	}
	cs := uintptr(at(0))
	// A signal of one's own is delivered on the way back from the call.
	var urgent, old unix.Sigset_t
	urgent.Val[0] = 1 << (unix.SIGURG - 1)
	if err := unix.PthreadSigmask(unix.SIG_UNBLOCK, &urgent, &old); err != nil {
		return err
	}
	atomic.StoreUintptr(&area.cs, cs)
	unix.RawSyscall(unix.SYS_TGKILL, uintptr(unix.Getpid()), uintptr(unix.Gettid()), uintptr(unix.SIGURG))
	told := atomic.SwapUintptr(&area.cs, 0) == 0
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); err != nil {
		return err
	}
	if !told {
		return errors.New("the kernel does not tell of signals")
	}
	watching.cs.Store(cs)
	return nil
}

// areaOf gives the thread's area; nil if it is not registered.
func areaOf() *rseqArea {
	area := (*rseqArea)(unsafe.Add(threadPointer(), watching.offset))
	if atomic.LoadInt32(&area.cpuID) < 0 {
		return nil
	}
	return area
}

// undisturbed runs f in Do, and wipes the signal stack if a signal came
// meanwhile. It gives false if it cannot tell, and then has not run f.
func undisturbed(f func()) bool {
	cs := watching.cs.Load()
	if cs == 0 {
		return false
	}
	area := areaOf()
	if area == nil {
		return false
	}
	// In a Compute within another: what the outer one finds out must stay.
	before := atomic.SwapUintptr(&area.cs, cs)
	if before != cs {
		before = 0
	}
	defer func() {
		if atomic.SwapUintptr(&area.cs, before) != cs {
			wipeSignalStack()
		}
	}()
	Do(f)
	return true
}

// stackT is stack_t of sigaltstack(2).
type stackT struct {
	sp    unsafe.Pointer
	flags int32
	size  uintptr
}

// frameReach is more than a signal puts on a stack: the registers of the largest
// processors take 11 KiB.
const frameReach = 64 << 10

// wipeSignalStack overwrites the upper end of the thread's alternate signal stack,
// where the kernel has put what the last signal interrupted.
func wipeSignalStack() {
	var s stackT
	const onStack, disable = 1, 2
	if _, _, errno := unix.RawSyscall(unix.SYS_SIGALTSTACK, 0, uintptr(unsafe.Pointer(&s)), 0); errno != 0 || s.flags&(onStack|disable) != 0 {
		return
	}
	n := min(s.size, frameReach)
	Wipe(unsafe.Slice((*byte)(unsafe.Add(s.sp, s.size-n)), n))
}
