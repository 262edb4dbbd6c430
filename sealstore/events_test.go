package sealstore_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
	"github.com/InterCooperative-Network/icn-p11/sealstore/sealtest"
)

// TestEvents: what happens to a token is told once, and stands in the log with
// what an operator wants to know.
func TestEvents(t *testing.T) {
	dev, dir := memseal.New(), t.TempDir()
	must(t, os.Chmod(dir, 0o700))
	var log bytes.Buffer
	st := sealstore.Open(dir, dev, slog.New(slog.NewJSONHandler(&log, nil)))
	defer st.Close()
	var told []sealstore.Event
	var serial string
	st.Observe(func(s string, e sealstore.Event) {
		if s != serial {
			t.Errorf("an event of token %q", s)
		}
		told = append(told, e)
	})
	info, err := st.Create(sealstore.InitParams{Label: "t", SOPIN: sealtest.SOPIN, Binding: &pcrs})
	must(t, err)
	serial = info.Serial
	tok, err := st.Token(serial)
	must(t, err)
	// expect compares what was told and logged since it was called last.
	expect := func(what string, events []sealstore.Event, messages []string, attrs map[string]any) {
		t.Helper()
		if !slices.Equal(told, events) {
			t.Errorf("%s: told %v, not %v", what, told, events)
		}
		told = nil
		var got []string
		for line := range bytes.Lines(log.Bytes()) {
			var r map[string]any
			must(t, json.Unmarshal(line, &r))
			got = append(got, r["msg"].(string))
			if r["token"] != serial {
				t.Errorf("%s: not of the token: %s", what, line)
			}
			for k, v := range attrs {
				a, _ := json.Marshal(r[k])
				if b, _ := json.Marshal(v); !bytes.Equal(a, b) {
					t.Errorf("%s: %s is not %v in %s", what, k, v, line)
				}
			}
		}
		if !slices.Equal(got, messages) {
			t.Errorf("%s: logged %q", what, got)
		}
		log.Reset()
	}

	must(t, tok.Login(sealstore.SO, sealtest.SOPIN))
	must(t, tok.InitUserPIN(sealtest.UserPIN))
	tok.Logout()
	expect("SO", []sealstore.Event{sealstore.EventSOLogin}, []string{"login", "logout"}, nil)

	wrong := []byte("not the pin")
	if err := tok.Login(sealstore.User, wrong); !errors.Is(err, sealstore.ErrAuth) {
		t.Fatal(err)
	}
	expect("wrong PIN", []sealstore.Event{sealstore.EventWrongPIN}, []string{"wrong PIN"},
		map[string]any{"role": "user", "counter": 1, "max": memseal.MaxTries})
	before := dev.Commands()
	if err := tok.SetPIN(sealstore.SO, []byte("1"), sealtest.SOPIN); !errors.Is(err, sealstore.ErrAuth) {
		t.Fatal(err)
	}
	if n := dev.Commands() - before; n != 0 {
		t.Errorf("a PIN that cannot be right costs %d commands", n)
	}
	expect("short PIN", []sealstore.Event{sealstore.EventWrongSOPIN}, []string{"wrong PIN"}, map[string]any{"role": "SO", "counter": nil})

	must(t, tok.Login(sealstore.User, sealtest.UserPIN))
	o, err := tok.CreateObject(true, []byte("body"), []byte("secret"), nil)
	must(t, err)
	dst, err := secmem.New(sealstore.MaxSecret)
	must(t, err)
	defer dst.Destroy()
	_, err = tok.Unseal(o.ID, dst.Bytes())
	must(t, err)
	expect("use", []sealstore.Event{sealstore.EventLogin, sealstore.EventUnseal}, []string{"login"}, map[string]any{"role": "user"})

	dev.Extend(pcrs.PCRs[0], []byte("other firmware"))
	if _, err := tok.Unseal(o.ID, dst.Bytes()); !errors.Is(err, sealstore.ErrPCR) {
		t.Fatal(err)
	}
	tok.Logout()
	if err := tok.Login(sealstore.User, sealtest.UserPIN); !errors.Is(err, sealstore.ErrPCR) {
		t.Fatal(err)
	}
	expect("mismatch", []sealstore.Event{sealstore.EventPCRMismatch, sealstore.EventPCRMismatch}, []string{"PCR mismatch", "logout", "PCR mismatch"}, nil)

	must(t, tok.Rebind(sealtest.SOPIN, nil))
	for range memseal.MaxTries {
		tok.Login(sealstore.User, wrong)
	}
	told = nil
	log.Reset()
	if err := tok.Login(sealstore.User, sealtest.UserPIN); !errors.Is(err, sealstore.ErrLockout) {
		t.Fatal(err)
	}
	expect("lockout", []sealstore.Event{sealstore.EventLockout}, []string{"PIN refused in lockout"}, map[string]any{"role": "user"})
}

// TestMismatchNamesPCRs: the log tells which PCRs keep a token closed.
func TestMismatchNamesPCRs(t *testing.T) {
	_, tok, dev, j := newToken(t, t.TempDir())
	must(t, tok.Bind(sealtest.UserPIN, sealtest.SOPIN, sealstore.BindingSpec{Bank: "sha256", PCRs: []int{1, 4, 7}}, nil))
	dev.Extend(4, []byte("x"))
	dev.Extend(7, []byte("x"))
	if err := tok.Login(sealstore.User, sealtest.UserPIN); !errors.Is(err, sealstore.ErrPCR) {
		t.Fatal(err)
	}
	if !bytes.Contains(j.buf.Bytes(), []byte(`msg="PCR mismatch"`)) || !bytes.Contains(j.buf.Bytes(), []byte(`bank=sha256 pcrs="[4 7]"`)) {
		t.Errorf("%s", &j.buf)
	}
}

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
