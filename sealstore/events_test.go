package sealstore_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"slices"
	"testing"

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
