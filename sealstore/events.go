package sealstore

import (
	"errors"
	"log/slog"
)

// Event is what happens to a token that is worth counting.
type Event int

const (
	EventLogin       Event = iota // the user has logged in
	EventSOLogin                  // the SO has
	EventWrongPIN                 // a user PIN was wrong
	EventWrongSOPIN               // an SO PIN was
	EventLockout                  // the TPM took no PIN
	EventPCRMismatch              // the platform was in no approved state
	EventUnseal                   // the secret of an object was unsealed
)

// Observe has f called at each event, on the goroutine that it happens on. f
// must be quick and must not call the store. It is set before the store is used.
func (s *Store) Observe(f func(serial string, e Event)) { s.observe = f }

func (t *Token) tell(e Event) {
	if t.store.observe != nil {
		t.store.observe(t.serial, e)
	}
}

// entered tells of a login.
func (t *Token) entered(r Role) {
	e := EventLogin
	if r == SO {
		e = EventSOLogin
	}
	t.tell(e)
	t.store.log.Info("login", "token", t.serial, "role", r.String())
}

// left tells of the end of a login.
func (t *Token) left() { t.store.log.Info("logout", "token", t.serial) }

// refused tells why a PIN did not open the token. tried says that the TPM has
// seen it, and may have counted it.
func (t *Token) refused(r Role, err error, tried bool) {
	switch {
	case errors.Is(err, ErrAuth):
		e := EventWrongPIN
		if r == SO {
			e = EventWrongSOPIN
		}
		t.tell(e)
		attrs := []any{"token", t.serial, "role", r.String()}
		if tried {
			// One command more, after a mistake that the TPM answers slowly anyway.
			if l, err := t.store.sealer.Lockout(); err == nil {
				attrs = append(attrs, "counter", l.Counter, "max", l.Max)
			}
		}
		t.store.log.Warn("wrong PIN", attrs...)
	case errors.Is(err, ErrLockout):
		t.tell(EventLockout)
		t.store.log.Warn("PIN refused in lockout", "token", t.serial, "role", r.String())
	}
	t.mismatched(err)
}

// mismatched tells of PCRs that keep the token closed.
func (t *Token) mismatched(err error) {
	if !errors.Is(err, ErrPCR) {
		return
	}
	t.tell(EventPCRMismatch)
	attrs := []any{"token", t.serial}
	var m *mismatch
	if errors.As(err, &m) {
		attrs = append(attrs, slog.String("bank", m.bank), slog.Any("pcrs", m.pcrs()))
	}
	t.store.log.Warn("PCR mismatch", attrs...)
}
