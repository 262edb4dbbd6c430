package sealstore_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
)

// TestStatisticsFile: concurrent updates are all there, what is damaged is
// replaced, and what killed writers leave is removed.
func TestStatisticsFile(t *testing.T) {
	dir := t.TempDir()
	st, _, _, _ := newToken(t, dir)
	if b, err := st.Statistics(); b != nil || err != nil {
		t.Fatalf("%q, %v", b, err)
	}
	left := filepath.Join(dir, ".tmp-left")
	must(t, os.WriteFile(left, nil, 0o600))
	var wg sync.WaitGroup
	const workers, each = 8, 20
	for range workers {
		wg.Go(func() {
			for range each {
				add := func(old []byte, damage error) ([]byte, error) { return append(old, 'x'), damage }
				if err := st.UpdateStatistics(time.Minute, add); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if b, err := st.Statistics(); err != nil || len(b) != workers*each {
		t.Errorf("%d updates, %v", len(b), err)
	}
	if _, err := os.Lstat(left); err == nil {
		t.Error("a leftover stays")
	}
	path := filepath.Join(dir, "statistics")
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	// Who has no patience is told that it is busy.
	must(t, st.UpdateStatistics(time.Minute, func(old []byte, _ error) ([]byte, error) {
		if err := st.UpdateStatistics(10*time.Millisecond, nil); err == nil || !strings.Contains(err.Error(), "another process has held") {
			t.Error(err)
		}
		return old, nil
	}))
	refused := errors.New("no")
	if err := st.UpdateStatistics(time.Minute, func([]byte, error) ([]byte, error) { return nil, refused }); err != refused {
		t.Error(err)
	}

	// Too long a file is damage, which the caller may replace.
	must(t, os.Truncate(path, sealstore.MaxStatistics+1))
	if _, err := st.Statistics(); !errors.Is(err, sealstore.ErrIntegrity) {
		t.Error(err)
	}
	must(t, st.UpdateStatistics(time.Minute, func(old []byte, damage error) ([]byte, error) {
		if old != nil || !errors.Is(damage, sealstore.ErrIntegrity) {
			t.Errorf("%d bytes, %v", len(old), damage)
		}
		return []byte("anew"), nil
	}))
	if b, err := st.Statistics(); err != nil || string(b) != "anew" {
		t.Errorf("%q, %v", b, err)
	}

	// A link leads out of the store, and is left alone.
	must(t, os.Remove(path))
	must(t, os.Symlink(filepath.Join(dir, "elsewhere"), path))
	if err := st.UpdateStatistics(time.Minute, func([]byte, error) ([]byte, error) { return []byte("x"), nil }); err == nil {
		t.Error("a symbolic link is followed")
	}
	if _, err := os.Lstat(filepath.Join(dir, "elsewhere")); err == nil {
		t.Error("a file was made where a link leads")
	}
}

// TestStatisticsOfOthers: only the owner writes statistics, readable by the
// group that may read the store, and nobody makes a store for them.
func TestStatisticsOfOthers(t *testing.T) {
	write := func([]byte, error) ([]byte, error) { return []byte("x"), nil }
	dir := t.TempDir()
	none := filepath.Join(dir, "none")
	if err := sealstore.Open(none, memseal.New(), nil).UpdateStatistics(time.Minute, write); !errors.Is(err, sealstore.ErrNotFound) {
		t.Error(err)
	}
	if _, err := os.Lstat(none); err == nil {
		t.Error("a store was made")
	}
	st, _, _, _ := newToken(t, dir)
	must(t, os.Chmod(dir, 0o750))
	must(t, st.UpdateStatistics(time.Minute, write))
	if info, err := os.Lstat(filepath.Join(dir, "statistics")); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	needRoot(t)
	chownAll(t, dir, nobody)
	openWay(t, filepath.Dir(dir))
	for uid, allowed := range map[int]bool{0: false, nobody: true, nobody - 1: false} {
		as(t, uid, func() {
			if err := st.UpdateStatistics(time.Minute, write); (err == nil) != allowed || !allowed && !errors.Is(err, sealstore.ErrReadOnly) && !errors.Is(err, os.ErrPermission) {
				t.Errorf("user %d: %v", uid, err)
			}
		})
	}
	must(t, os.Chmod(dir, 0o550))
	as(t, nobody, func() {
		if err := st.UpdateStatistics(time.Minute, write); !errors.Is(err, sealstore.ErrReadOnly) {
			t.Error(err)
		}
	})
}
