package secmem_test

import (
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/memscantest"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

func TestComputeUnderSignals(t *testing.T) {
	for range 10 {
		if hits := memscantest.Interrupted(t, secmem.Compute); len(hits) > 0 {
			t.Errorf("after Compute: %v", hits)
		}
	}
	// Where nothing holds signals back, copies are left, unless another signal
	// has overwritten them since.
	for range 50 {
		if len(memscantest.Interrupted(t, secmem.Do)) > 0 {
			return
		}
	}
	t.Error("signals in Do leave no copies: the test is blind")
}
