package p11

import (
	"context"
	"time"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// slotEvents remembers in which slots a token has come or gone since
// C_Initialize without C_WaitForSlotEvent having told of it. A token that this
// process makes is no event, nor is the uninitialised token of the free slot.
// It is guarded by library.refresh.
type slotEvents struct {
	seen    map[SlotID]string // serial numbers, as of the last look at the store
	pending map[SlotID]bool
}

// notice compares the tokens that are there with those of the last look.
func (e *slotEvents) notice(there map[SlotID]string) {
	for id, serial := range e.seen {
		if there[id] != serial {
			e.pending[id] = true
		}
	}
	for id := range there {
		if _, known := e.seen[id]; !known {
			e.pending[id] = true
		}
	}
	e.seen = there
}

// take gives the slot of an event and clears it, the lowest first.
func (e *slotEvents) take() (SlotID, bool) {
	if len(e.pending) == 0 {
		return 0, false
	}
	var first *SlotID
	for id := range e.pending {
		if first == nil || id < *first {
			first = &id
		}
	}
	delete(e.pending, *first)
	return *first, true
}

// WaitForSlotEvent is C_WaitForSlotEvent (section 5.5.4).
func (m *Module) WaitForSlotEvent(flags uint) (SlotID, error) {
	l, err := m.enter(noSession)
	if err != nil {
		return 0, err
	}
	if flags&CKF_DONT_BLOCK != 0 {
		defer l.leave(noSession)
		if id, ok := l.slotEvent(); ok {
			return id, nil
		}
		return 0, CKR_NO_EVENT
	}
	// What happens from now on ends a wait, so it cannot be missed between
	// the look at the store and the wait.
	wait, done := l.storeChange()
	defer done()
	for {
		id, ok := l.slotEvent()
		l.leave(noSession) // C_Finalize need not wait for what waits for others
		if ok {
			return id, nil
		}
		wait()
		if err := l.again(noSession); err != nil {
			return 0, err
		}
	}
}

// slotEvent looks at the store and takes an event, if there is one.
func (l *library) slotEvent() (SlotID, bool) {
	l.refresh.Lock()
	defer l.refresh.Unlock()
	if _, err := l.rereadSlots(false); err != nil {
		l.log.Error("tokens cannot be listed", "error", err)
	}
	return l.events.take()
}

// lookForEvents is how often the store is looked at where it cannot be watched.
const lookForEvents = time.Second

// storeChange gives a function that waits until the store may have changed or
// C_Finalize begins, and one for who waits no more.
func (l *library) storeChange() (wait, done func()) {
	w, err := l.store.Watch()
	if err != nil {
		l.log.Warn("the store is looked at again and again, since it cannot be watched", "error", err)
		return func() { sleep(l.over, lookForEvents) }, func() {}
	}
	stop := context.AfterFunc(l.over, func() { w.Close() })
	wait = func() {
		if w.Wait() != nil {
			sleep(l.over, lookForEvents)
		}
	}
	return wait, func() {
		stop()
		w.Close()
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// there gives the serial number of each slot's token: of those that are
// served, and of those that cannot be read just now.
func (l *library) there(want map[SlotID]sealstore.TokenInfo, unread map[string]bool) map[SlotID]string {
	there := map[SlotID]string{}
	for id, t := range want {
		if t.Serial != "" {
			there[id] = t.Serial
		}
	}
	for id, serial := range l.events.seen {
		if unread[serial] {
			there[id] = serial
		}
	}
	return there
}
