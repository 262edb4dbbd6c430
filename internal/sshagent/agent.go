// Package sshagent serves the Ed25519 keys of a token over the SSH agent
// protocol (OpenSSH, PROTOCOL.agent). What leaves it are signatures: keys are
// neither given away nor taken in.
package sshagent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/pinsource"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// Token is what signs. An Agent calls one method at a time.
type Token interface {
	// Login makes the keys usable. The PIN lies in secret memory; it is nil for
	// a token that needs none. One that was refused is an ErrPIN.
	Login(pin []byte) error
	// MayTry tells why no PIN should be tried that may be wrong: each wrong
	// one brings the TPM nearer to refusing everybody.
	MayTry() error
	// Logout wipes what Login has made usable.
	Logout() error
	// Keys lists the keys, between Login and Logout.
	Keys() ([]Key, error)
	// Sign makes an Ed25519 signature, between Login and Logout.
	Sign(key ed25519.PublicKey, message []byte) ([]byte, error)
}

// Key is the public half of a key that the agent serves.
type Key struct {
	Public  ed25519.PublicKey
	Comment string
}

// fingerprint is that of ssh-add -l.
func (k Key) fingerprint() string { return ssh.FingerprintSHA256(k.ssh()) }

func (k Key) ssh() ssh.PublicKey {
	s, err := ssh.NewPublicKey(k.Public)
	if err != nil {
		panic(err) // a Token gives Ed25519 keys
	}
	return s
}

// ErrPIN is a PIN that was refused.
var ErrPIN = errors.New("wrong PIN")

// Options are how an Agent behaves. The zero value signs for every process of
// the same user, and of root, without asking.
type Options struct {
	Name      string        // of the token, for questions
	PIN       bool          // the token needs one
	Timeout   time.Duration // the login ends after this time; 0: it does not
	LockAfter time.Duration // the login ends that long after the last signature; 0: it does not
	SSHOnly   bool          // sign SSH logins and SSH signatures alone
	UIDs      []uint32      // further users who may connect
	// Confirm asks a person before each signature, and gives an error unless
	// the answer is yes. Where it is nil, nobody is asked.
	Confirm func(ctx context.Context, question string) error
	Log     *slog.Logger
}

// Agent serves a token. It is in one of three states: unlocked; locked by a
// passphrase ("ssh-add -x"), by which the vault opens; or locked until the
// user PIN is given in place of a passphrase. The last is where it begins.
type Agent struct {
	token Token
	opt   Options
	log   *slog.Logger

	ctx  context.Context // ends with the agent
	stop context.CancelFunc

	asking sync.Mutex // held while a person is asked: one question at a time

	mu       sync.Mutex // guards what follows, and token
	unlocked bool
	pin      *secmem.Buffer // while unlocked, for the vault; nil: none is needed
	vault    *vault         // while locked by a passphrase
	since    time.Duration  // the login, by uptime
	used     time.Duration  // the last signature, or the login
	timer    *time.Timer    // looks whether the login has ended
	failures int            // to unlock, in a row
	notUntil time.Duration  // no further try to unlock before, by uptime
	pause    time.Duration  // after the first failure
	memory   uint32         // that a try to unlock takes, in KiB

	clients clients
	stall   time.Duration // the longest that a client may take over a request
}

// New gives an agent that is locked until [Agent.Login], or until somebody
// gives the PIN to "ssh-add -X".
func New(t Token, o Options) *Agent {
	a := &Agent{token: t, opt: o, log: o.Log, pause: firstPause, memory: vaultMemory, stall: maxStall}
	a.ctx, a.stop = context.WithCancel(context.Background())
	return a
}

// Errors of requests. The protocol has room for none, so they go to the log.
var (
	errLocked   = errors.New("the agent is locked")
	errUnlocked = errors.New("the agent is not locked")
	errNoKey    = errors.New("no such key")
	errGone     = errors.New("who asked has gone")
	errKeep     = errors.New("the keys are the token's: \"icn-p11 key\" adds and deletes them")
)

// A wrong passphrase or PIN costs a pause, each time twice as long.
const (
	firstPause = time.Second
	maxPause   = 5 * time.Minute
)

// goneTick is how often it is seen whether who asked is still there.
const goneTick = 200 * time.Millisecond

// look is the longest time between looks at whether the login has ended: Go's
// timers stand still while the machine is suspended.
const look = 15 * time.Second

// uptime is the time since the machine was started, also that in which it was
// suspended; nobody sets it.
func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // Linux has had it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

// Login unlocks the agent. It takes over the PIN, which is nil for a token
// that needs none.
func (a *Agent) Login(pin *secmem.Buffer) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.login(pin)
}

func (a *Agent) login(pin *secmem.Buffer) error {
	if err := a.token.Login(pin.Bytes()); err != nil {
		pin.Destroy()
		return err
	}
	a.vault.destroy()
	a.vault, a.pin, a.unlocked, a.failures = nil, pin, true, 0
	a.since = uptime()
	a.used = a.since
	a.watch()
	return nil
}

// logout wipes what the login has brought, PIN and keys.
func (a *Agent) logout() {
	if !a.unlocked {
		return
	}
	a.unlocked = false
	if a.timer != nil {
		a.timer.Stop()
	}
	a.pin.Destroy()
	a.pin = nil
	if err := a.token.Logout(); err != nil {
		a.log.Error("logout failed", "error", err)
	}
}

// left is how long the login still lasts; limited tells whether it ends at all.
func (a *Agent) left() (left time.Duration, limited bool) {
	now := uptime()
	for _, l := range []struct{ since, limit time.Duration }{{a.since, a.opt.Timeout}, {a.used, a.opt.LockAfter}} {
		if l.limit <= 0 {
			continue
		}
		if rest := l.since + l.limit - now; !limited || rest < left {
			left, limited = rest, true
		}
	}
	return left, limited
}

// watch looks after the login's end.
func (a *Agent) watch() {
	left, limited := a.left()
	if !limited {
		return
	}
	if a.timer != nil {
		a.timer.Stop()
	}
	a.timer = time.AfterFunc(min(max(left, 0), look), func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.usable() {
			a.watch()
		}
	})
}

// usable tells whether keys may be used, and ends a login whose time is over.
func (a *Agent) usable() bool {
	if left, limited := a.left(); a.unlocked && limited && left <= 0 {
		a.logout()
		a.log.Info("locked: the time of the login is over; the user PIN unlocks")
	}
	return a.unlocked
}

// keys lists the keys; there are none while the agent is locked, as the
// protocol has it.
func (a *Agent) keys() ([]Key, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.usable() {
		return nil, nil
	}
	return a.token.Keys()
}

// key finds a key by its encoding.
func (a *Agent) key(blob []byte) (Key, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.usable() {
		return Key{}, errLocked
	}
	all, err := a.token.Keys()
	for _, k := range all {
		if bytes.Equal(k.ssh().Marshal(), blob) {
			return k, nil
		}
	}
	if err == nil {
		err = errNoKey
	}
	return Key{}, err
}

// sign signs for a request that was understood, and allowed.
func (a *Agent) sign(k Key, message []byte) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	// It may have been locked while a person was asked.
	if !a.usable() {
		return nil, errLocked
	}
	sig, err := a.token.Sign(k.Public, message)
	if err == nil {
		a.used = uptime()
	}
	return sig, err
}

// confirm asks a person where that is wanted, and only then has the question put
// into words. One whose asker has gone is not put, and one that is open ends.
func (a *Agent) confirm(question func() string, gone func() bool) error {
	if a.opt.Confirm == nil {
		return nil
	}
	a.asking.Lock()
	defer a.asking.Unlock()
	// Others may have been asked about meanwhile, and the agent been locked.
	a.mu.Lock()
	ok := a.usable()
	a.mu.Unlock()
	if !ok {
		return errLocked
	}
	ctx, cancel := context.WithCancelCause(a.ctx)
	defer cancel(nil)
	go func() {
		tick := time.NewTicker(goneTick)
		defer tick.Stop()
		for ctx.Err() == nil {
			if gone() {
				cancel(errGone)
			}
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	}()
	if gone() {
		return errGone
	}
	return a.opt.Confirm(ctx, question())
}

// lock locks the agent by a passphrase, which lies in secret memory. The PIN
// is kept encrypted under it; where it is the PIN itself, nothing is kept.
func (a *Agent) lock(passphrase []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.usable() {
		return errLocked
	}
	if len(passphrase) == 0 {
		return errors.New("an empty passphrase")
	}
	pin := a.pin.Bytes()
	if pin != nil && subtle.ConstantTimeCompare(pin, passphrase) == 1 {
		a.logout()
		return nil
	}
	v, err := newVault(passphrase, pin, a.memory)
	if err != nil {
		return err
	}
	a.logout()
	a.vault = v
	return nil
}

// unlock ends a lock by the passphrase that it was made with, or by the PIN
// where there is none.
func (a *Agent) unlock(passphrase []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.usable() {
		return errUnlocked
	}
	if wait := a.notUntil - uptime(); wait > 0 {
		return fmt.Errorf("no try before %v have passed, after %d wrong ones", wait.Round(time.Millisecond), a.failures)
	}
	err := a.tryUnlock(passphrase)
	if errors.Is(err, errPassphrase) || errors.Is(err, ErrPIN) {
		a.failures++
		wait := maxPause
		if n := a.failures - 1; n < 20 {
			wait = min(a.pause<<n, maxPause)
		}
		a.notUntil = uptime() + wait
	}
	return err
}

func (a *Agent) tryUnlock(passphrase []byte) error {
	if a.vault == nil {
		return a.unlockByPIN(passphrase)
	}
	pin, err := a.vault.open(passphrase)
	if err != nil {
		return err
	}
	if err := a.login(pin); errors.Is(err, ErrPIN) {
		// The vault's will not get right again, and each try costs the TPM one.
		a.vault.destroy()
		a.vault = nil
		return fmt.Errorf("%w: it was changed since the agent was locked; the one of now unlocks", err)
	} else if err != nil {
		return err
	}
	return nil
}

func (a *Agent) unlockByPIN(passphrase []byte) error {
	if !a.opt.PIN {
		return errors.New("the token has no PIN")
	}
	if n := len(passphrase); n < pinsource.MinPIN || n > pinsource.MaxPIN {
		return fmt.Errorf("%w: it has %d to %d bytes, and was not tried", errPassphrase, pinsource.MinPIN, pinsource.MaxPIN)
	}
	if err := a.token.MayTry(); err != nil {
		return err
	}
	pin, err := secmem.New(len(passphrase))
	if err != nil {
		return err
	}
	secmem.Copy(pin.Bytes(), passphrase)
	return a.login(pin)
}

// Close ends the agent, and wipes.
func (a *Agent) Close() {
	a.stop()
	a.clients.close()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.logout()
	a.vault.destroy()
	a.vault = nil
}
