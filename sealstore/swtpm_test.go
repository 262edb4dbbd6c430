package sealstore_test

import (
	"sync"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/sealtest"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

func init() {
	openers["swtpm:"] = func(device string) (sealstore.Sealer, error) {
		return tpm.New(tpm.Config{Device: device, KeyHandle: 0x81000001})
	}
}

// TestTPM runs the suite over a TPM 2.0.
func TestTPM(t *testing.T) {
	var tpms sync.Map // *swtpmtest.TPM by device
	sealtest.Suite{
		Open: openDevice,
		Device: func(t *testing.T) string {
			s := swtpmtest.Start(t)
			tpms.Store(s.Device(), s)
			return s.Device()
		},
		Extend: func(_ *testing.T, device string, pcr int) {
			s, _ := tpms.Load(device)
			s.(*swtpmtest.TPM).Extend(pcr, sealtest.Extension)
		},
		// Each kill may cost one of swtpm's three tries.
		Kills: 2,
	}.Run(t)
}
