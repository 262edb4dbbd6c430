package p11

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// autoLogin logs the user in where that needs no application: the token needs
// no PIN, or the configuration names a source of it. It does nothing where
// somebody is logged in. The caller holds s.mu.
func (l *library) autoLogin(s *slot) error {
	l.endLost(s)
	if s.token == nil || s.user != nobody {
		return nil
	}
	t, err := s.token.Info()
	switch {
	case err != nil:
	case t.NoPIN:
		err = l.tryLogin(s, nil)
	case s.cfg.PINSource != nil:
		var pin *secmem.Buffer
		if pin, err = s.cfg.PINSource.Read("user PIN", false); err != nil {
			err = fmt.Errorf("%w: %w", errSource, err)
		} else {
			err = l.tryLogin(s, pin)
		}
	default:
		return nil
	}
	switch {
	case errors.Is(err, errRefused):
		return &coded{CKR_USER_NOT_LOGGED_IN, err}
	case errors.Is(err, sealstore.ErrAuth), errors.Is(err, sealstore.ErrLockout), errors.Is(err, sealstore.ErrNoPIN), errors.Is(err, errSource):
		l.log.Error("automatic login failed", "token", s.serial, "error", err)
		return &coded{CKR_USER_NOT_LOGGED_IN, err}
	case err != nil:
		return l.fail("automatic login", s.serial, err)
	}
	s.auto = true
	l.setUser(s, userIn)
	return nil
}

var (
	errSource  = errors.New("pin_source")
	errRefused = errors.New("the TPM has refused this login before")
)

// tryLogin logs in with a PIN, which it takes over, or without one. What the
// TPM refused is not tried again, so that a service does not use up the TPM's
// tries. A token without a PIN is no exception: a file that only claims to be
// of one leads to a seal whose tries are counted.
func (l *library) tryLogin(s *slot, pin *secmem.Buffer) error {
	l.mu.Lock()
	old, refused := l.refused[s.serial]
	delete(l.refused, s.serial)
	l.mu.Unlock()
	defer old.Destroy()
	err := errRefused
	if !refused || !bytes.Equal(old.Bytes(), pin.Bytes()) {
		err = s.token.Login(sealstore.User, pin.Bytes())
		l.lockout.forget()
		if refused = errors.Is(err, sealstore.ErrAuth); refused {
			err = fmt.Errorf("%w; it is not tried again before pin_source gives another PIN or the process calls C_Initialize", err)
		}
	}
	if !refused {
		pin.Destroy()
		return err
	}
	l.mu.Lock()
	l.refused[s.serial] = pin
	l.mu.Unlock()
	return err
}

// Variables names the environment variables that PIN sources of the
// configuration depend on.
func (m *Module) Variables() []string {
	l, err := m.enter(noSession)
	if err != nil {
		return nil
	}
	defer l.leave(noSession)
	var names []string
	for _, t := range l.cfg.Tokens {
		if t.PINSource != nil && t.PINSource.Variable() != "" {
			names = append(names, t.PINSource.Variable())
		}
	}
	return names
}
