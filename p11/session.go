package p11

import (
	"errors"
	"sync"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// session is an open session. Its operations are guarded by mu, so two
// threads may share one.
type session struct {
	handle SessionHandle
	slot   *slot
	rw     bool

	mu      sync.Mutex
	find    *findOp
	digest  *digestOp
	encrypt *cipherOp
	decrypt *cipherOp
	sign    *messageOp
	verify  *messageOp

	verifySig *messageOp // of C_VerifySignatureInit
	// What these point to: either of the last two has verification.
	signature, verification messageOp

	signing   *process // message-based
	verifying *process

	_ [shardSpace]byte // keeps what another session writes out of these cache lines
}

// signs tells whether a function makes signatures; else it checks them.
func signs(function uint) bool { return function&(CKF_SIGN|CKF_MESSAGE_SIGN) != 0 }

// busy tells whether an operation keeps another of a function from starting: a
// session makes one signature at a time, however it was begun, and checks one.
func (s *session) busy(function uint) bool {
	if signs(function) {
		return s.sign != nil || s.signing != nil
	}
	return s.verify != nil || s.verifySig != nil || s.verifying != nil
}

// cancel ends the operations of the functions in flags.
func (s *session) cancel(flags uint) {
	if flags&CKF_FIND_OBJECTS != 0 {
		s.find = nil
	}
	if flags&CKF_DIGEST != 0 {
		s.digest = nil
	}
	if flags&CKF_ENCRYPT != 0 {
		s.encrypt.end(s.slot)
		s.encrypt = nil
	}
	if flags&CKF_DECRYPT != 0 {
		s.decrypt.end(s.slot)
		s.decrypt = nil
	}
	if flags&CKF_SIGN != 0 {
		s.sign, s.signature = nil, messageOp{}
	}
	if flags&CKF_VERIFY != 0 {
		s.verify, s.verifySig, s.verification = nil, nil, messageOp{}
	}
	if flags&CKF_MESSAGE_SIGN != 0 {
		s.signing = nil
	}
	if flags&CKF_MESSAGE_VERIFY != 0 {
		s.verifying = nil
	}
}

// Refuse answers a call whose arguments are none: CKR_SESSION_HANDLE_INVALID
// goes before CKR_ARGUMENTS_BAD (section 5.1.7). The operations in flags end,
// as they do with most errors of the functions that continue them.
func (m *Module) Refuse(h SessionHandle, flags uint) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	sess.cancel(flags)
	return CKR_ARGUMENTS_BAD
}

// RefuseSlot is Refuse for the functions that are given a slot.
func (m *Module) RefuseSlot(id SlotID) error {
	l, err := m.enter(noSession)
	if err != nil {
		return err
	}
	defer l.leave(noSession)
	if _, err := l.slot(id); err != nil {
		return err
	}
	return CKR_ARGUMENTS_BAD
}

// OpenSession is C_OpenSession (section 5.6.1).
func (m *Module) OpenSession(id SlotID, flags uint) (SessionHandle, error) {
	l, err := m.enter(noSession)
	if err != nil {
		return 0, err
	}
	defer l.leave(noSession)
	if _, err := l.slot(id); err != nil {
		return 0, err
	}
	switch {
	case flags&CKF_SERIAL_SESSION == 0:
		return 0, CKR_SESSION_PARALLEL_NOT_SUPPORTED
	case flags&CKF_ASYNC_SESSION != 0:
		return 0, CKR_SESSION_ASYNC_NOT_SUPPORTED
	}
	s, err := l.initialised(id)
	if err != nil {
		return 0, err
	}
	rw := flags&CKF_RW_SESSION != 0
	if rw && !s.writable.fresh() {
		if err := l.mayWrite(s); err != nil {
			return 0, err
		}
		s.writable.found()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.slots[id] != s {
		return 0, CKR_TOKEN_NOT_PRESENT
	}
	if !rw && s.user == soIn {
		return 0, CKR_SESSION_READ_WRITE_SO_EXISTS
	}
	h := SessionHandle(l.handle())
	l.sessions[h] = &session{handle: h, slot: s, rw: rw}
	return h, nil
}

// handle counts up: no session or object handle is ever used twice in a
// process, C_Finalize or not.
func (l *library) handle() uint { return uint(l.handles.Add(1)) }

// noSession is CK_INVALID_HANDLE (section 3.3).
const noSession SessionHandle = 0

func (l *library) session(h SessionHandle) (*session, error) {
	mu := l.mu.of(h)
	mu.RLock()
	defer mu.RUnlock()
	if s := l.sessions[h]; s != nil {
		return s, nil
	}
	return nil, CKR_SESSION_HANDLE_INVALID
}

// withSession is how nearly every function starts: library, then session.
// The caller leaves the library it gets.
func (m *Module) withSession(h SessionHandle) (*library, *session, error) {
	l, err := m.enter(h)
	if err != nil {
		return nil, nil, err
	}
	s, err := l.session(h)
	if err != nil {
		l.leave(h)
		return nil, nil, err
	}
	return l, s, nil
}

// lockSession is withSession for functions that start, continue or end an
// operation of the session, of which one runs at a time. The caller unlocks the
// session that it gets.
func (m *Module) lockSession(h SessionHandle) (*library, *session, error) {
	l, sess, err := m.withSession(h)
	if err != nil {
		return nil, nil, err
	}
	sess.mu.Lock()
	return l, sess, nil
}

// unlockSession is what follows lockSession: it leaves the library as well.
func (l *library) unlockSession(sess *session) {
	sess.mu.Unlock()
	l.leave(sess.handle)
}

// dropSession ends a session and its session objects. The caller holds l.mu.
func (l *library) dropSession(h SessionHandle, s *session) {
	delete(l.sessions, h)
	s.slot.keys.endSession(s)
	if s.slot.objs.ofSessions == 0 {
		return
	}
	for _, o := range s.slot.objs.byHandle {
		if !o.token && o.session == h {
			s.slot.objs.remove(o)
			o.live.destroy()
		}
	}
}

// lastSession tells whether a slot has no session left.
func (l *library) lastSession(s *slot) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, sess := range l.sessions {
		if sess.slot == s {
			return false
		}
	}
	return true
}

// CloseSession is C_CloseSession (section 5.6.2). The last session of a token
// logs the user out.
func (m *Module) CloseSession(h SessionHandle) error {
	l, sess, err := m.withSession(h)
	if err != nil {
		return err
	}
	defer l.leave(h)
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	l.mu.Lock()
	if l.sessions[h] == nil {
		l.mu.Unlock()
		return CKR_SESSION_HANDLE_INVALID
	}
	l.dropSession(h, sess)
	l.mu.Unlock()
	if l.lastSession(s) {
		l.logout(s)
	}
	return nil
}

// CloseAllSessions is C_CloseAllSessions (section 5.6.3).
func (m *Module) CloseAllSessions(id SlotID) error {
	l, err := m.enter(noSession)
	if err != nil {
		return err
	}
	defer l.leave(noSession)
	s, err := l.slot(id)
	if err != nil {
		return err
	}
	l.closeSlot(s)
	return nil
}

// GetSessionInfo is C_GetSessionInfo (section 5.6.4).
func (m *Module) GetSessionInfo(h SessionHandle) (SessionInfo, error) {
	l, sess, err := m.withSession(h)
	if err != nil {
		return SessionInfo{}, err
	}
	defer l.leave(h)
	info := SessionInfo{Slot: sess.slot.id, State: l.stateOf(sess), Flags: CKF_SERIAL_SESSION}
	if sess.rw {
		info.Flags |= CKF_RW_SESSION
	}
	return info, nil
}

// stateOf is the state of a session, which follows from who is logged in.
func (l *library) stateOf(sess *session) State {
	switch user := l.user(sess); {
	case user == soIn:
		return CKS_RW_SO_FUNCTIONS
	case user == userIn && sess.rw:
		return CKS_RW_USER_FUNCTIONS
	case user == userIn:
		return CKS_RO_USER_FUNCTIONS
	case sess.rw:
		return CKS_RW_PUBLIC_SESSION
	}
	return CKS_RO_PUBLIC_SESSION
}

// SessionCancel is C_SessionCancel (section 5.6.5).
func (m *Module) SessionCancel(h SessionHandle, flags uint) error {
	l, sess, err := m.lockSession(h)
	if err != nil {
		return err
	}
	defer l.unlockSession(sess)
	sess.cancel(flags)
	return nil
}

// GetSessionValidationFlags is C_GetSessionValidationFlags (v3.2, section
// 5.6.11). Nobody has validated this module, so no operation is a validated one.
func (m *Module) GetSessionValidationFlags(h SessionHandle, what uint) (uint, error) {
	l, _, err := m.withSession(h)
	if err != nil {
		return 0, err
	}
	defer l.leave(h)
	if what != CKS_LAST_VALIDATION_OK {
		return 0, CKR_ARGUMENTS_BAD
	}
	return 0, nil
}

// user tells who is logged in.
func (l *library) user(sess *session) loginState {
	mu := l.mu.of(sess.handle)
	mu.RLock()
	defer mu.RUnlock()
	if sess.slot.loginLost() {
		return nobody
	}
	return sess.slot.user
}

// loginLost tells whether a login is over without C_Logout, since another
// process has initialised the token anew or removed it. The caller holds s.mu
// or l.mu.
func (s *slot) loginLost() bool { return s.user != nobody && !s.token.LoggedIn() }

// endLost ends a login that was lost. The caller holds s.mu.
func (l *library) endLost(s *slot) {
	if s.loginLost() {
		l.logout(s)
	}
}

func (l *library) setUser(s *slot, u loginState) {
	l.mu.Lock()
	s.user = u
	l.mu.Unlock()
}

// pinError is fail for the functions that take a PIN: a PIN that cannot be
// right because of its length is wrong, and costs no try in the TPM.
func (l *library) pinError(op string, s *slot, err error) error {
	if errors.Is(err, sealstore.ErrPINLength) {
		return &coded{CKR_PIN_INCORRECT, err}
	}
	return l.fail(op, s.serial, err)
}

// Login is C_Login (section 5.6.8).
func (m *Module) Login(h SessionHandle, user UserType, pin []byte) error {
	l, sess, err := m.withSession(h)
	if err != nil {
		return err
	}
	defer l.leave(h)
	if user != CKU_SO && user != CKU_USER && user != CKU_CONTEXT_SPECIFIC {
		return CKR_USER_TYPE_INVALID
	}
	// There is no protected authentication path, so a PIN there must be, but for
	// a token that needs none: some clients give NULL for an empty one.
	if pin == nil {
		token, _ := l.tokenIn(sess.slot)
		if t, err := token.Info(); err != nil || user == CKU_SO || !t.NoPIN {
			return CKR_ARGUMENTS_BAD
		}
	}
	if user == CKU_CONTEXT_SPECIFIC {
		return l.contextLogin(sess, pin)
	}
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	l.endLost(s)
	role, state := sealstore.User, userIn
	if user == CKU_SO {
		role, state = sealstore.SO, soIn
	}
	switch {
	case s.user == nobody, s.auto:
	case s.user == state:
		return CKR_USER_ALREADY_LOGGED_IN
	default:
		return CKR_USER_ANOTHER_ALREADY_LOGGED_IN
	}
	if user == CKU_SO && l.hasReadOnly(s) {
		return CKR_SESSION_READ_ONLY_EXISTS
	}
	if user == CKU_SO && s.auto {
		l.logout(s)
	}
	err = s.token.Login(role, pin)
	l.lockout.forget()
	if err != nil {
		return l.pinError("login", s, err)
	}
	l.setUser(s, state)
	s.auto = false
	return nil
}

// LoginUser is C_LoginUser (section 5.6.9). The users of this token have no
// names, so it is C_Login where none is given.
func (m *Module) LoginUser(h SessionHandle, user UserType, pin, name []byte) error {
	if len(name) != 0 {
		return m.Refuse(h, 0)
	}
	return m.Login(h, user, pin)
}

func (l *library) hasReadOnly(s *slot) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, sess := range l.sessions {
		if sess.slot == s && !sess.rw {
			return true
		}
	}
	return false
}

// contextLogin authorises the one operation that is active on a key with
// CKA_ALWAYS_AUTHENTICATE. The TPM checks the PIN again.
func (l *library) contextLogin(sess *session, pin []byte) error {
	sess.mu.Lock()
	defer sess.mu.Unlock()
	op := sess.sign
	if sess.signing != nil {
		op = &sess.signing.op
	}
	if op == nil || !op.key.bool(CKA_ALWAYS_AUTHENTICATE) {
		return CKR_OPERATION_NOT_INITIALIZED
	}
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.user != userIn {
		return CKR_USER_NOT_LOGGED_IN
	}
	err := s.token.Login(sealstore.User, pin)
	l.lockout.forget()
	if err != nil {
		if errors.Is(err, sealstore.ErrLockout) {
			l.logout(s) // section 4.9
		}
		return l.pinError("login for one operation", s, err)
	}
	op.authenticated = true
	return nil
}

// Logout is C_Logout (section 5.6.10).
func (m *Module) Logout(h SessionHandle) error {
	l, sess, err := m.withSession(h)
	if err != nil {
		return err
	}
	defer l.leave(h)
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.user == nobody {
		return CKR_USER_NOT_LOGGED_IN
	}
	l.logout(s)
	return nil
}

// logout wipes what a login had opened: the token's root secret, unlocked
// keys, private session objects, and every handle of a private object. The
// caller holds s.mu.
func (l *library) logout(s *slot) {
	s.auto = false
	l.mu.Lock()
	s.user = nobody
	s.objs.version = sealstore.Version{}
	for _, o := range s.objs.byHandle {
		if o.private {
			s.objs.remove(o)
			if !o.token {
				o.live.destroy()
			}
		}
	}
	l.mu.Unlock()
	s.keys.wipe()
	if s.token != nil {
		s.token.Logout()
	}
	l.stats.Flush()
}

// InitPIN is C_InitPIN (section 5.5.8): the SO sets the user's PIN.
func (m *Module) InitPIN(h SessionHandle, pin []byte) error {
	l, sess, err := m.withSession(h)
	if err != nil {
		return err
	}
	defer l.leave(h)
	s := sess.slot
	if pin == nil {
		return CKR_ARGUMENTS_BAD
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := l.mayWrite(s); err != nil {
		return err
	}
	if s.user != soIn {
		return CKR_USER_NOT_LOGGED_IN
	}
	return l.fail("setting the user PIN", s.serial, s.token.InitUserPIN(pin))
}

// SetPIN is C_SetPIN (section 5.5.9): it changes the PIN of the user who is
// logged in, or the user's where nobody is.
func (m *Module) SetPIN(h SessionHandle, old, new []byte) error {
	l, sess, err := m.withSession(h)
	if err != nil {
		return err
	}
	defer l.leave(h)
	if old == nil || new == nil {
		return CKR_ARGUMENTS_BAD
	}
	if err := l.mayChange(sess); err != nil {
		return err
	}
	if len(new) < minPIN || len(new) > maxPIN {
		return CKR_PIN_LEN_RANGE
	}
	if len(old) < minPIN || len(old) > maxPIN {
		return CKR_PIN_INCORRECT
	}
	s := sess.slot
	s.mu.Lock()
	defer s.mu.Unlock()
	role := sealstore.User
	if s.user == soIn {
		role = sealstore.SO
	}
	err = s.token.SetPIN(role, old, new)
	l.lockout.forget()
	return l.fail("changing a PIN", s.serial, err)
}
