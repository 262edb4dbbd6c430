package main

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
)

// The offer goes last: a TPM that fails from then on takes nothing away. Before,
// the offer is there, and the command can be repeated.
func TestAcceptDropsTheOfferLast(t *testing.T) {
	b := newBench(t)
	b.migrations()
	proxy := swtpmtest.StartProxy(t, b.tpm)
	if err := writeConf(b.conf, proxy.Device(), b.store); err != nil {
		t.Fatal(err)
	}
	offers := func() int {
		t.Helper()
		found, err := os.ReadDir(filepath.Join(b.store, "offers"))
		if err != nil {
			t.Error(err)
		}
		return len(found)
	}
	var refused atomic.Bool
	proxy.Refuse(func(tpm2.TPMCC) []byte {
		if offers() > 0 {
			return nil
		}
		refused.Store(true)
		return swtpmtest.Code(uint32(tpm2.TPMRCFailure))
	})
	if offers() != 1 {
		t.Fatal("the bench has no offer")
	}
	status, stdout, stderr := b.run("migrate", "accept", "here.parcel")
	if status != exitOK || !strings.HasPrefix(stdout, did.Prefix) {
		t.Errorf("status %d, %q, %q; the TPM was asked after the offer was gone: %v", status, stdout, stderr, refused.Load())
	}
	if offers() != 0 {
		t.Error("the offer is still there")
	}
}
