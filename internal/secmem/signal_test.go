package secmem_test

import (
	"crypto/rand"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/memscantest"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// interrupted has a signal come while the registers hold a secret, and gives
// where copies are left.
func interrupted(t *testing.T, run func(func())) []memscantest.Hit {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	page, err := secmem.New(32)
	if err != nil {
		t.Fatal(err)
	}
	defer page.Destroy()
	rand.Read(page.Bytes())
	needle := memscantest.Mask("secret", page.Bytes())
	pid, tid := uintptr(unix.Getpid()), uintptr(unix.Gettid())
	run(func() {
		var on [32]byte
		copy(on[:], page.Bytes())
		// Go's own signal for preemption, which it ignores uncalled for. It
		// comes before the call returns, unless it is held back.
		unix.RawSyscall(unix.SYS_TGKILL, pid, tid, uintptr(unix.SIGURG))
		runtime.KeepAlive(&on)
	})
	var hits []memscantest.Hit
	for _, h := range memscantest.Scan(t, os.Getpid(), []memscantest.Needle{needle}) {
		if !h.Locked {
			hits = append(hits, h)
		}
	}
	return hits
}

func TestComputeUnderSignals(t *testing.T) {
	for range 10 {
		if hits := interrupted(t, secmem.Compute); len(hits) > 0 {
			t.Errorf("after Compute: %v", hits)
		}
	}
	// Where nothing holds signals back, copies are left, unless another signal
	// has overwritten them since.
	for range 50 {
		if len(interrupted(t, secmem.Do)) > 0 {
			return
		}
	}
	t.Error("signals in Do leave no copies: the test is blind")
}
