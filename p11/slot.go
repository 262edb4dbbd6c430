package p11

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/config"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// slot is a place for one identity. The free slot has no token.
type slot struct {
	id  SlotID
	cfg config.Token // of when the slot appeared

	// mu serialises what changes the token or its login state; TPM commands
	// run under it. It is taken before library.mu.
	mu     sync.Mutex
	token  *sealstore.Token // these three are also read under library.mu,
	serial string           // and so written under both
	user   loginState
	auto   bool    // the login is the module's own: no application has logged in
	objs   objects // guarded by library.mu
	keys   keyring

	writable recently // found so for C_OpenSession; what writes looks again
}

// recently remembers for lookAgain that something was so.
type recently struct{ until atomic.Int64 } // in nanoseconds since 1970

func (r *recently) found()      { r.until.Store(time.Now().Add(lookAgain).UnixNano()) }
func (r *recently) fresh() bool { return time.Now().UnixNano() < r.until.Load() }

type loginState int

const (
	nobody loginState = iota
	userIn
	soIn
)

// SlotIDs tells in which slot the module serves each token, by serial number:
// the one that its table in the configuration fixes, else the one recorded in
// it. A slot id stands for one identity, so a token whose recorded number is
// fixed for another has no slot; the error says so. Of several tokens with one
// label the first gets the fixed slot. Hidden tokens have none. Tokens in kept
// stay where they are.
func SlotIDs(cfg *config.Config, tokens []sealstore.TokenInfo, kept map[string]SlotID) (map[string]SlotID, []error) {
	ids := map[string]SlotID{}
	owner := map[SlotID]sealstore.TokenInfo{}
	put := func(t sealstore.TokenInfo, id SlotID) { ids[t.Serial], owner[id] = id, t }
	for _, t := range tokens {
		if id, ok := kept[t.Serial]; ok {
			put(t, id)
		}
	}
	tokens = slices.DeleteFunc(slices.Clone(tokens), func(t sealstore.TokenInfo) bool {
		_, ok := ids[t.Serial]
		return ok || cfg.Token(t.Label).Hide
	})
	for _, t := range tokens {
		if n := cfg.Token(t.Label).Slot; n != nil && owner[SlotID(*n)].Serial == "" {
			put(t, SlotID(*n))
		}
	}
	var conflicts []error
	for _, t := range tokens {
		if _, ok := ids[t.Serial]; ok {
			continue
		}
		id := SlotID(t.Slot)
		if o := owner[id]; o.Serial != "" {
			conflicts = append(conflicts, advice.With(fmt.Errorf("token %s (%q) has no slot: slot %d, recorded in it, is fixed for token %s at %s",
				t.Serial, t.Label, id, o.Serial, cfg.Token(o.Label).Where), "fix another slot for one of them"))
			continue
		}
		put(t, id)
	}
	return ids, conflicts
}

// refreshSlots brings the slots in line with the tokens that are on disk now.
// Slot numbers come from the configuration and the tokens themselves, so they
// are the same in every process; the free slot has the number that the next
// token will get. A token that has a slot keeps it.
//
// What the store says is applied before anybody asks it again: an older answer
// would take back what a newer one, or C_InitToken, has just entered.
func (l *library) refreshSlots() error {
	l.refresh.Lock()
	gone, err := l.rereadSlots(true)
	l.refresh.Unlock()
	for _, s := range gone {
		l.closeSlot(s)
	}
	return err
}

// rereadSlots looks which tokens there are, and has a slot for each. It gives
// the slots that are there no more: all of them where the application asks for
// the list, since a slot that it was told of stays valid until then (section
// 5.5.1); otherwise only the free slot, where another process has made a token
// in it. The caller holds l.refresh.
func (l *library) rereadSlots(all bool) (gone []*slot, err error) {
	census, err := l.store.Scan()
	if err != nil {
		return nil, err
	}
	free := SlotID(0)
	if l.cfg.FreeSlot {
		n, err := census.FreeSlot(l.cfg.FixedSlots()...)
		if err != nil {
			return nil, err
		}
		free = SlotID(n)
	}
	kept := map[string]SlotID{}
	l.mu.RLock()
	for id, s := range l.slots {
		if s.serial != "" {
			kept[s.serial] = id
		}
	}
	l.mu.RUnlock()
	ids, conflicts := SlotIDs(l.cfg, census.Tokens, kept)
	for _, err := range conflicts {
		if _, known := l.reported.LoadOrStore(err.Error(), true); !known {
			l.log.Error("token left out", "error", err)
		}
	}
	want := map[SlotID]sealstore.TokenInfo{}
	for _, t := range census.Tokens {
		if id, ok := ids[t.Serial]; ok {
			want[id] = t
		}
	}
	if l.cfg.FreeSlot {
		want[free] = sealstore.TokenInfo{}
	}
	// A token that could not be read just now, for want of descriptors or
	// rights, is still there.
	unread := map[string]bool{}
	for _, d := range census.LeftOut {
		unread[d.Serial] = !d.Lost()
	}
	l.events.notice(l.there(want, unread))
	l.mu.Lock()
	for id, s := range l.slots {
		t, ok := want[id]
		if (!ok || t.Serial != s.serial) && !unread[s.serial] && (all || s.serial == "" && ok) {
			gone = append(gone, s)
			delete(l.slots, id)
		}
	}
	for id, t := range want {
		if l.slots[id] != nil {
			continue
		}
		s := &slot{id: id, serial: t.Serial, cfg: l.cfg.Token(t.Label)}
		s.keys.tell = l.kept(s)
		if t.Serial != "" {
			if s.token, err = l.store.Token(t.Serial); err != nil {
				l.log.Error("token cannot be opened", "token", t.Serial, "error", err)
				continue
			}
		}
		l.slots[id] = s
	}
	if all {
		l.listed = slices.Sorted(maps.Keys(l.slots))
	}
	l.mu.Unlock()
	return gone, nil
}

// closeSlot ends every session of a slot and wipes what it had unlocked.
func (l *library) closeSlot(s *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.mu.Lock()
	for h, sess := range l.sessions {
		if sess.slot == s {
			l.dropSession(h, sess)
		}
	}
	l.mu.Unlock()
	l.logout(s)
}

func (l *library) slot(id SlotID) (*slot, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if s := l.slots[id]; s != nil {
		return s, nil
	}
	return nil, CKR_SLOT_ID_INVALID
}

// initialised finds a slot that holds a token.
func (l *library) initialised(id SlotID) (*slot, error) {
	s, err := l.slot(id)
	if err != nil {
		return nil, err
	}
	if t, _ := l.tokenIn(s); t == nil {
		return nil, CKR_TOKEN_NOT_RECOGNIZED
	}
	return s, nil
}

// tokenIn reads what C_InitToken in another thread may just be setting.
func (l *library) tokenIn(s *slot) (*sealstore.Token, string) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return s.token, s.serial
}

// GetSlotList is C_GetSlotList (section 5.5.1). The list changes only when
// the application asks for its length. Every slot holds a token, the free one
// an uninitialised one, so tokenPresent makes no difference.
func (m *Module) GetSlotList(tokenPresent bool, out []SlotID, query bool) (int, error) {
	l, err := m.enter(noSession)
	if err != nil {
		return 0, err
	}
	defer l.leave(noSession)
	if query {
		if err := l.refreshSlots(); err != nil {
			// The free slot and the tokens known so far are still true.
			l.log.Error("tokens cannot be listed", "error", err)
		}
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	switch n := len(l.listed); {
	case query:
		return n, nil
	case len(out) < n:
		return n, CKR_BUFFER_TOO_SMALL
	}
	return copy(out, l.listed), nil
}

// GetSlotInfo is C_GetSlotInfo (section 5.5.2).
func (m *Module) GetSlotInfo(id SlotID) (SlotInfo, error) {
	l, err := m.enter(noSession)
	if err != nil {
		return SlotInfo{}, err
	}
	defer l.leave(noSession)
	s, err := l.slot(id)
	if err != nil {
		return SlotInfo{}, err
	}
	what := "free slot"
	if _, serial := l.tokenIn(s); serial != "" {
		what = "token " + serial
	}
	return SlotInfo{
		SlotDescription: "icn-p11 " + what,
		ManufacturerID:  manufacturer,
		Flags:           CKF_TOKEN_PRESENT,
		FirmwareVersion: LibraryVersion,
	}, nil
}

// GetTokenInfo is C_GetTokenInfo (section 5.5.3). The PIN flags come from the
// TPM's lockout counters, which all users of the TPM share.
func (m *Module) GetTokenInfo(id SlotID) (TokenInfo, error) {
	l, err := m.enter(noSession)
	if err != nil {
		return TokenInfo{}, err
	}
	defer l.leave(noSession)
	s, err := l.slot(id)
	if err != nil {
		return TokenInfo{}, err
	}
	token, serial := l.tokenIn(s)
	info := TokenInfo{
		ManufacturerID:     manufacturer,
		Model:              model,
		SerialNumber:       serial,
		Flags:              CKF_RNG | CKF_RESTORE_KEY_NOT_NEEDED | CKF_DUAL_CRYPTO_OPERATIONS,
		MaxPinLen:          maxPIN,
		MinPinLen:          minPIN,
		TotalPublicMemory:  Unavailable,
		FreePublicMemory:   Unavailable,
		TotalPrivateMemory: Unavailable,
		FreePrivateMemory:  Unavailable,
		FirmwareVersion:    LibraryVersion,
	}
	if l.writeProtected(s) != nil {
		info.Flags |= CKF_WRITE_PROTECTED
	}
	if token == nil {
		info.Flags |= CKF_LOGIN_REQUIRED
		return info, nil
	}
	t, err := token.Info()
	if err != nil {
		l.log.Error("token cannot be read", "token", serial, "error", err)
		return TokenInfo{}, &coded{CKR_TOKEN_NOT_PRESENT, err}
	}
	info.Label = t.Label
	info.Flags |= CKF_TOKEN_INITIALIZED
	if s.cfg.PINSource == nil && !t.NoPIN {
		info.Flags |= CKF_LOGIN_REQUIRED
	}
	if t.UserPIN {
		info.Flags |= CKF_USER_PIN_INITIALIZED
	}
	info.Flags |= l.lockout.flags(l.tpm)
	l.mu.RLock()
	for _, sess := range l.sessions {
		if sess.slot == s {
			info.SessionCount++
			if sess.rw {
				info.RwSessionCount++
			}
		}
	}
	l.mu.RUnlock()
	return info, nil
}

// lockoutCache asks the TPM for its dictionary-attack counters at most once a
// second, for all its tokens, and lets nobody who only lists wait for a TPM
// that hangs: a question that was not answered is not put again for a while.
type lockoutCache struct {
	mu      sync.Mutex
	until   time.Time // the flag may be told until then without asking
	flag    uint
	asked   time.Time
	pending chan struct{} // closed when the question under way is answered; nil: none is
	stale   bool          // a PIN was tried since that question was put
}

const (
	lockoutFresh  = time.Second
	lockoutFailed = 10 * time.Second
	lockoutWait   = 500 * time.Millisecond
)

func (c *lockoutCache) flags(s sealstore.Sealer) uint {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == nil {
		if time.Now().Before(c.until) {
			return c.flag
		}
		c.asked = time.Now()
		c.pending = make(chan struct{})
		go c.ask(s, c.pending)
	}
	done, wait := c.pending, time.Until(c.asked.Add(lockoutWait))
	c.mu.Unlock()
	timer := time.NewTimer(wait)
	select {
	case <-done:
	case <-timer.C:
	}
	timer.Stop()
	c.mu.Lock()
	return c.flag
}

func (c *lockoutCache) ask(s sealstore.Sealer, done chan struct{}) {
	state, err := s.Lockout()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flag, c.until = 0, time.Now().Add(lockoutFailed)
	if err == nil {
		c.flag, c.until = pinFlags(state), time.Now().Add(lockoutFresh)
	}
	if c.stale {
		c.until, c.stale = time.Time{}, false
	}
	c.pending = nil
	close(done)
}

// forget makes the next question go to the TPM: a PIN was just tried.
func (c *lockoutCache) forget() {
	c.mu.Lock()
	c.until, c.stale = time.Time{}, c.pending != nil
	c.mu.Unlock()
}

// pinFlags derives CK_TOKEN_INFO's PIN flags. The TPM has one counter for
// every PIN, so the user's and the SO's flags always agree.
func pinFlags(s sealstore.Lockout) uint {
	if s.InLockout || s.Max > 0 && s.Counter >= s.Max {
		return CKF_USER_PIN_LOCKED | CKF_SO_PIN_LOCKED
	}
	var f uint
	if s.Counter > 0 {
		f |= CKF_USER_PIN_COUNT_LOW | CKF_SO_PIN_COUNT_LOW
	}
	if s.Max-s.Counter == 1 {
		f |= CKF_USER_PIN_FINAL_TRY | CKF_SO_PIN_FINAL_TRY
	}
	return f
}

// InitToken is C_InitToken (section 5.5.7). On the free slot it makes a
// token, which keeps that slot; on a token it checks the SO PIN and makes the
// token anew with the same serial number and slot, destroying its objects.
func (m *Module) InitToken(id SlotID, pin []byte, label [32]byte) error {
	l, err := m.enter(noSession)
	if err != nil {
		return err
	}
	defer l.leave(noSession)
	s, err := l.slot(id)
	if err != nil {
		return err
	}
	if pin == nil {
		return CKR_ARGUMENTS_BAD
	}
	name := strings.TrimRight(string(label[:]), " ")
	if !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
		return CKR_ARGUMENTS_BAD
	}
	// Until the slot is known to hold the new token.
	l.refresh.Lock()
	defer l.refresh.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := l.mayWrite(s); err != nil {
		return err
	}
	l.mu.RLock()
	for _, sess := range l.sessions {
		if sess.slot == s {
			l.mu.RUnlock()
			return CKR_SESSION_EXISTS
		}
	}
	l.mu.RUnlock()
	if s.token == nil {
		n := uint32(id)
		info, err := l.store.Create(sealstore.InitParams{Label: name, SOPIN: pin, Slot: &n, Reserved: l.cfg.FixedSlots(), Binding: l.cfg.Binding()})
		if err != nil {
			return l.fail("making a token", "", err)
		}
		t, err := l.store.Token(info.Serial)
		if err != nil {
			return l.fail("opening the new token", info.Serial, err)
		}
		l.mu.Lock()
		s.token, s.serial = t, info.Serial
		l.mu.Unlock()
		l.events.seen[id] = info.Serial
		return nil
	}
	_, err = l.store.Reinit(s.serial, name, pin, l.cfg.Binding())
	l.lockout.forget()
	if err != nil {
		return l.pinError("making a token anew", s, err)
	}
	l.logout(s)
	return nil
}
