package p11

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/config"
	"github.com/InterCooperative-Network/icn-p11/internal/stats"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
)

// survivor is a TPM that outlives the process that uses it.
type survivor struct{ sealstore.Sealer }

func (survivor) Close() error { return nil }

// A process that had to read many objects leaves a snapshot of them to the next
// one, but not of a token that is said to be read-only.
func TestSnapshotForTheNext(t *testing.T) {
	const many = 600
	dir, dev := t.TempDir(), survivor{memseal.New()}
	must(t, os.Chmod(dir, 0o700))
	start := func(readOnly bool) *Module {
		m, cfg, log := NewModule(), config.Default(), slog.New(slog.DiscardHandler)
		cfg.SealedBlobDir = dir
		tok := cfg.Token("test")
		tok.ReadOnly = readOnly
		cfg.Tokens = map[string]config.Token{"test": tok}
		m.start(cfg, log, nopCloser{}, dev, stats.New(cfg.Statistics, log))
		return m
	}
	m := start(false)
	h := token(t, m)
	for i := range many {
		_, err := m.CreateObject(h, []Attribute{
			{CKA_CLASS, ulong(uint(CKO_DATA))}, {CKA_TOKEN, boolBytes(true)}, {CKA_PRIVATE, boolBytes(false)}, {CKA_LABEL, fmt.Appendf(nil, "data %d", i)},
		})
		must(t, err)
	}
	must(t, m.Finalize())
	time.Sleep(2100 * time.Millisecond) // until the times of the files can be trusted

	for i, c := range []struct{ readOnly, snapshot bool }{{true, false}, {false, true}, {false, true}, {true, true}} {
		m := start(c.readOnly)
		h, err := m.OpenSession(0, CKF_SERIAL_SESSION)
		must(t, err)
		if got := find(t, m, h, Attribute{CKA_CLASS, ulong(uint(CKO_DATA))}); len(got) != many {
			t.Errorf("start %d: %d objects of %d", i, len(got), many)
		}
		if got := find(t, m, h, Attribute{CKA_LABEL, []byte("data 77")}); len(got) != 1 {
			t.Errorf("start %d: %d objects with a label that one has", i, len(got))
		}
		must(t, m.Finalize())
		found, err := filepath.Glob(filepath.Join(dir, "tokens", "*", "snapshot"))
		must(t, err)
		if (len(found) == 1) != c.snapshot {
			t.Errorf("start %d: snapshots %v", i, found)
		}
	}
}
