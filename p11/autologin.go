package p11

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// autoLogin logs the user in with the PIN source that the configuration gives
// the token, if it does and nobody is logged in. A PIN that the TPM refused is
// not tried again, so that a service does not use up the TPM's tries. The
// caller holds s.mu.
func (l *library) autoLogin(s *slot) error {
	src := s.cfg.PINSource
	if src == nil || s.token == nil || s.user != nobody {
		return nil
	}
	failed := func(err error) error {
		l.log.Error("automatic login failed", "token", s.serial, "error", err)
		return &coded{CKR_USER_NOT_LOGGED_IN, err}
	}
	pin, err := src.Read("user PIN", false)
	if err != nil {
		return failed(err)
	}
	keep := false
	defer func() {
		if !keep {
			pin.Destroy()
		}
	}()
	l.mu.RLock()
	old := l.refused[s.serial]
	l.mu.RUnlock()
	if old != nil && bytes.Equal(old.Bytes(), pin.Bytes()) {
		return &coded{CKR_USER_NOT_LOGGED_IN, errRefused}
	}
	err = s.token.Login(sealstore.User, pin.Bytes())
	l.lockout.forget()
	switch {
	case errors.Is(err, sealstore.ErrAuth):
		keep = true
		l.mu.Lock()
		l.refused[s.serial] = pin
		l.mu.Unlock()
		old.Destroy()
		return failed(fmt.Errorf("%w; %w", err, errRefused))
	case errors.Is(err, sealstore.ErrLockout), errors.Is(err, sealstore.ErrNoPIN):
		return failed(err)
	case err != nil:
		return l.fail("automatic login", s.serial, err)
	}
	s.auto = true
	l.setUser(s, userIn)
	return nil
}

var errRefused = errors.New("the PIN of pin_source was refused: this process tries it again when the source gives another one, or after C_Initialize")

// Variables names the environment variables that PIN sources of the
// configuration depend on.
func (m *Module) Variables() []string {
	l, err := m.enter()
	if err != nil {
		return nil
	}
	defer l.leave()
	var names []string
	for _, t := range l.cfg.Tokens {
		if t.PINSource != nil && t.PINSource.Variable() != "" {
			names = append(names, t.PINSource.Variable())
		}
	}
	return names
}
