package p11

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
)

// TestSlotEvents: tokens that another process makes and removes are events,
// each once; what this one does is none.
func TestSlotEvents(t *testing.T) {
	dir, s := t.TempDir(), memseal.New()
	m, other := NewModule(), NewModule()
	startWith(t, other, s, dir, nil)
	must(t, other.InitToken(0, []byte(soPIN), label("there before")))
	startWith(t, m, s, dir, nil)
	none := func() {
		t.Helper()
		_, err := m.WaitForSlotEvent(CKF_DONT_BLOCK)
		want(t, CKR_NO_EVENT, err)
	}
	event := func(want SlotID) {
		t.Helper()
		id, err := m.WaitForSlotEvent(CKF_DONT_BLOCK)
		must(t, err)
		if id != want {
			t.Errorf("event in slot %d, not %d", id, want)
		}
	}
	none()
	must(t, m.InitToken(1, []byte(soPIN), label("own")))
	none()

	_, err := other.GetSlotList(true, nil, true)
	must(t, err)
	must(t, other.InitToken(2, []byte(soPIN), label("another's")))
	// The list does not change before its length is asked for, but the slot
	// of the event is a valid one (sections 5.5.1 and 5.5.4).
	list := make([]SlotID, 10)
	before, err := m.GetSlotList(true, list, false)
	must(t, err)
	event(2)
	info, err := m.GetTokenInfo(2)
	must(t, err)
	if info.Label != "another's" {
		t.Errorf("token %q in slot 2", info.Label)
	}
	if n, err := m.GetSlotList(true, list, false); err != nil || n != before {
		t.Errorf("%d slots are listed after the event, %d before (%v)", n, before, err)
	}
	none()
	// An event that the list told of first is told all the same.
	_, err = other.GetSlotList(true, nil, true)
	must(t, err)
	must(t, other.InitToken(3, []byte(soPIN), label("third")))
	if n, err := m.GetSlotList(true, nil, true); err != nil || n != 5 {
		t.Errorf("%d slots (%v)", n, err)
	}
	event(3)
	none()

	// A token that goes leaves its slot valid until the list is asked for.
	must(t, os.Rename(filepath.Join(dir, "tokens", info.SerialNumber), filepath.Join(dir, "away")))
	event(2)
	_, err = m.GetSlotInfo(2)
	must(t, err)
	_, err = m.GetTokenInfo(2)
	want(t, CKR_TOKEN_NOT_PRESENT, err)
	_, err = m.GetSlotList(true, nil, true)
	must(t, err)
	_, err = m.GetSlotInfo(2)
	want(t, CKR_SLOT_ID_INVALID, err)
	none()
}

// TestWaitForSlotEvent blocks: until a token comes, in a store that is not
// there yet, and until C_Finalize.
func TestWaitForSlotEvent(t *testing.T) {
	dir, s := filepath.Join(t.TempDir(), "not", "there"), memseal.New()
	m, other := NewModule(), NewModule()
	startWith(t, m, s, dir, nil)
	startWith(t, other, s, dir, nil)
	type answer struct {
		id  SlotID
		err error
	}
	answers := make(chan answer)
	wait := func() {
		id, err := m.WaitForSlotEvent(0)
		answers <- answer{id, err}
	}
	await := func() answer {
		t.Helper()
		select {
		case a := <-answers:
			return a
		case <-time.After(time.Minute):
			t.Fatal("it waits for ever")
			return answer{}
		}
	}
	go wait()
	must(t, os.Mkdir(filepath.Dir(dir), 0o700))
	must(t, other.InitToken(0, []byte(soPIN), label("first")))
	if a := await(); a.err != nil || a.id != 0 {
		t.Errorf("slot %d (%v), want 0", a.id, a.err)
	}
	go wait()
	_, err := other.GetSlotList(true, nil, true)
	must(t, err)
	must(t, other.InitToken(1, []byte(soPIN), label("second")))
	if a := await(); a.err != nil || a.id != 1 {
		t.Errorf("slot %d (%v), want 1", a.id, a.err)
	}

	go wait()
	// Whether it waits already does not matter: it never gets an event.
	must(t, m.Finalize())
	want(t, CKR_CRYPTOKI_NOT_INITIALIZED, await().err)
}
