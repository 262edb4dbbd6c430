package rseq

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/memscantest"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// heldBack tells whether Compute blocks signals.
func heldBack(t *testing.T) bool {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	mask := func() (set unix.Sigset_t) {
		if err := unix.PthreadSigmask(unix.SIG_BLOCK, nil, &set); err != nil {
			t.Error(err)
		}
		return set
	}
	before := mask()
	var during unix.Sigset_t
	secmem.Compute(func() { during = mask() })
	return during != before
}

// Signals that come in Compute leave no copies of registers, although they are
// not held back.
func TestWatchUnderSignals(t *testing.T) {
	err := Watch()
	if held := heldBack(t); held != (err != nil) {
		t.Fatalf("Watch: %v, and signals are held back: %t", err, held)
	}
	switch {
	case !secmem.WipesHeap:
		if err == nil {
			t.Error("signals are not held back in a build that preempts by them")
		}
	case err != nil:
		t.Skipf("%v: Compute holds signals back, which internal/secmem tests", err)
	}
	nested := func(f func()) {
		secmem.Compute(func() {
			secmem.Compute(func() {})
			f()
			secmem.Compute(func() {})
		})
	}
	for range 10 {
		if hits := memscantest.Interrupted(t, secmem.Compute); len(hits) > 0 {
			t.Errorf("after Compute: %v", hits)
		}
		if hits := memscantest.Interrupted(t, nested); len(hits) > 0 {
			t.Errorf("after one Compute in another: %v", hits)
		}
	}
	for range 50 {
		if len(memscantest.Interrupted(t, secmem.Do)) > 0 {
			return
		}
	}
	t.Error("signals in Do leave no copies: the test is blind")
}

func BenchmarkCompute(b *testing.B) {
	b.Run("held", func(b *testing.B) {
		for b.Loop() {
			secmem.Compute(func() {})
		}
	})
	b.Run("watched", func(b *testing.B) {
		if err := Watch(); err != nil {
			b.Skip(err)
		}
		for b.Loop() {
			secmem.Compute(func() {})
		}
	})
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			secmem.Do(func() {})
		}
	})
}
