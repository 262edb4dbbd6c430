package sealstore_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
	"github.com/InterCooperative-Network/icn-p11/sealstore/sealtest"
)

// until waits with w until the store has n tokens.
func until(t *testing.T, st *sealstore.Store, w *sealstore.Watch, n int) {
	t.Helper()
	late := time.AfterFunc(time.Minute, func() { w.Close() })
	defer late.Stop()
	for {
		tokens, err := st.Tokens()
		must(t, err)
		if len(tokens) == n {
			return
		}
		if err := w.Wait(); err != nil {
			t.Fatalf("%d tokens instead of %d: %v", len(tokens), n, err)
		}
	}
}

// TestWatch sees tokens that others make and remove, in a store that is made
// only later.
func TestWatch(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "a", "b", "store")
	dev := memseal.New()
	other := sealstore.Open(dir, dev, nil)
	t.Cleanup(other.Close)
	st := sealstore.Open(dir, dev, nil)
	t.Cleanup(st.Close)
	w, err := st.Watch()
	must(t, err)
	defer w.Close()

	made := make(chan error, 1)
	create := func() {
		_, err := other.Create(sealstore.InitParams{Label: "t", SOPIN: sealtest.SOPIN})
		made <- err
	}
	go func() {
		if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
			made <- err
			return
		}
		create()
	}()
	until(t, st, w, 1)
	must(t, <-made)
	go create()
	until(t, st, w, 2)
	must(t, <-made)

	tokens, err := st.Tokens()
	must(t, err)
	path := filepath.Join(dir, "tokens", tokens[0].Serial)
	go os.Rename(path, filepath.Join(root, "away"))
	until(t, st, w, 1)

	// Copied back file by file, as cp does.
	b, err := os.ReadFile(filepath.Join(root, "away", "token"))
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(path, "objects"), 0o700))
	late := time.AfterFunc(time.Minute, func() { w.Close() })
	must(t, w.Wait())
	late.Stop()
	go os.WriteFile(filepath.Join(path, "token"), b, 0o600)
	until(t, st, w, 2)

	// The store goes, and comes back.
	must(t, os.Rename(dir, filepath.Join(root, "moved")))
	until(t, st, w, 0)
	go os.Rename(filepath.Join(root, "moved"), dir)
	until(t, st, w, 2)
}

// TestWatchClose ends a Wait.
func TestWatchClose(t *testing.T) {
	st := sealstore.Open(filepath.Join(t.TempDir(), "store"), memseal.New(), nil)
	t.Cleanup(st.Close)
	w, err := st.Watch()
	must(t, err)
	ended := make(chan error)
	go func() { ended <- w.Wait() }()
	must(t, w.Close())
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wait after Close: %v", err)
	}
	if err := w.Wait(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a further Wait: %v", err)
	}
}
