package p11

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/InterCooperative-Network/icn-p11/internal/audit"
	"github.com/InterCooperative-Network/icn-p11/internal/config"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/internal/stats"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// PIN limits of every token, in bytes, as C_GetTokenInfo tells them.
const (
	minPIN = sealstore.MinPIN
	maxPIN = sealstore.MaxPIN
)

// Module is one Cryptoki library: what C_Initialize starts and C_Finalize
// ends. The zero value is not initialised. All methods may be called from any
// number of threads; their errors carry an [RV].
type Module struct {
	mu      sync.Mutex // serialises Initialize and Finalize
	lib     atomic.Pointer[library]
	handles atomic.Uint64 // the last handle that was given out
}

// NewModule returns a module on which C_Initialize was not called yet.
func NewModule() *Module { return new(Module) }

// library is what exists between C_Initialize and C_Finalize.
type library struct {
	// life is held for reading by every running call, so that C_Finalize
	// wipes and closes only when the last one has left.
	life   shardedRWMutex
	closed bool

	cfg   *config.Config
	log   *slog.Logger
	logTo io.Closer
	tpm   sealstore.Sealer
	store *sealstore.Store
	stats *stats.Recorder // nil: nothing is counted
	audit *audit.Log      // nil: nothing is recorded
	pool  entropyPool

	lockout lockoutCache

	reported sync.Map // errors that the log has once already

	handles *atomic.Uint64  // the module's
	over    context.Context // done when C_Finalize has begun
	end     context.CancelFunc
	stamp   stateKey // of saved operation states

	refresh sync.Mutex // held from asking the store for its tokens until the slots are as it says; taken before a slot's lock
	events  slotEvents // guarded by refresh

	mu       shardedRWMutex // guards what follows; taken after a slot's and a session's lock
	slots    map[SlotID]*slot
	listed   []SlotID // what C_GetSlotList shows
	sessions map[SessionHandle]*session
	refused  map[string]*secmem.Buffer // by serial number: the PIN of an automatic login that was wrong
}

// enter finds the running library for a call in a session, or noSession, and
// keeps it alive until leave.
func (m *Module) enter(h SessionHandle) (*library, error) {
	l := m.lib.Load()
	if l == nil {
		return nil, CKR_CRYPTOKI_NOT_INITIALIZED
	}
	if err := l.again(h); err != nil {
		return nil, err
	}
	return l, nil
}

// again is enter for a call that has left the library meanwhile.
func (l *library) again(h SessionHandle) error {
	life := l.life.of(h)
	life.RLock()
	if l.closed {
		life.RUnlock()
		return CKR_CRYPTOKI_NOT_INITIALIZED
	}
	return nil
}

func (l *library) leave(h SessionHandle) { l.life.of(h).RUnlock() }

// Initialize is C_Initialize (section 5.4.1). It reads the configuration and
// the names of the tokens, and sends no TPM command.
//
// CKF_LIBRARY_CANT_CREATE_OS_THREADS is accepted: Go's threads exist before
// the first call, and GnuTLS and NSS always set the flag. Mutex callbacks are
// never called, so they are accepted beside CKF_OS_LOCKING_OK alone: without
// it they ask for their use, of which this module is not capable.
func (m *Module) Initialize(a InitArgs) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lib.Load() != nil {
		return CKR_CRYPTOKI_ALREADY_INITIALIZED
	}
	if a.Given {
		if a.Reserved {
			return CKR_ARGUMENTS_BAD
		}
		n := 0
		for _, given := range []bool{a.CreateMutex, a.DestroyMutex, a.LockMutex, a.UnlockMutex} {
			if given {
				n++
			}
		}
		switch {
		case n != 0 && n != 4:
			return CKR_ARGUMENTS_BAD
		case n == 4 && a.Flags&CKF_OS_LOCKING_OK == 0:
			return CKR_CANT_LOCK
		}
	}
	cfg, err := config.Load()
	if err != nil {
		// There is no log to configure without a configuration: the
		// default one (syslog) takes the reason.
		if log, to, lerr := config.Default().Logger(); lerr == nil {
			log.Error("configuration refused", "error", err)
			to.Close()
		}
		return &coded{CKR_FUNCTION_FAILED, err}
	}
	return m.open(cfg)
}

// Open is Initialize for a program that has read the configuration itself.
func (m *Module) Open(cfg *config.Config) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lib.Load() != nil {
		return CKR_CRYPTOKI_ALREADY_INITIALIZED
	}
	return m.open(cfg)
}

// open opens what the configuration names. The caller holds m.mu.
func (m *Module) open(cfg *config.Config) error {
	log, to, err := cfg.Logger()
	if err != nil {
		return &coded{CKR_FUNCTION_FAILED, err}
	}
	counts := stats.New(cfg.Statistics, log)
	dev, err := tpm.New(tpm.Config{Device: cfg.DevicePath, KeyHandle: cfg.KeyHandle, Log: log, Observe: counts.Operation})
	if err != nil {
		log.Error("configuration refused", "error", err)
		to.Close()
		return &coded{CKR_FUNCTION_FAILED, err}
	}
	m.start(cfg, log, to, dev, counts)
	return nil
}

// start makes the library that the calls from now on use. The caller holds m.mu.
func (m *Module) start(cfg *config.Config, log *slog.Logger, to io.Closer, dev sealstore.Sealer, counts *stats.Recorder) {
	l := &library{
		cfg: cfg, log: log, logTo: to, tpm: dev,
		store:    sealstore.Open(cfg.SealedBlobDir, dev, log),
		stats:    counts,
		audit:    audit.New(cfg.AuditLog),
		slots:    map[SlotID]*slot{},
		sessions: map[SessionHandle]*session{},
		refused:  map[string]*secmem.Buffer{},
		handles:  &m.handles,
		stamp:    newStateKey(),
		events:   slotEvents{seen: map[SlotID]string{}, pending: map[SlotID]bool{}},
	}
	l.stats.Watch(l.store)
	l.over, l.end = context.WithCancel(context.Background())
	if err := l.refreshSlots(); err != nil {
		log.Error("tokens cannot be listed", "error", err)
	}
	clear(l.events.pending)
	m.lib.Store(l)
}

// Finalize is C_Finalize (section 5.4.2): it wakes C_WaitForSlotEvent, waits
// for the other running calls, wipes every secret and closes the TPM.
func (m *Module) Finalize() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.lib.Load()
	if l == nil {
		return CKR_CRYPTOKI_NOT_INITIALIZED
	}
	l.end() // before it waits, for whoever waits in C_WaitForSlotEvent
	l.life.Lock()
	l.closed = true
	l.life.Unlock()
	for _, s := range l.slots {
		l.closeSlot(s)
	}
	for _, pin := range l.refused {
		pin.Destroy()
	}
	l.store.Close()
	l.pool.wipe()
	if err := l.tpm.Close(); err != nil {
		l.log.Warn("TPM not closed cleanly", "error", err)
	}
	l.stats.Close()
	l.audit.Close()
	l.logTo.Close()
	m.lib.Store(nil)
	return nil
}

// LogPanic writes down a panic that the boundary caught on its way to the host.
func (m *Module) LogPanic(function string, cause any, stack []byte) {
	if l := m.lib.Load(); l != nil {
		l.log.Error("internal error", "function", function, "panic", fmt.Sprint(cause), "stack", string(stack))
	}
}

// LibraryVersion is what CK_INFO tells; the build sets it from the release.
var LibraryVersion = Version{0, 1}

const (
	manufacturer = "InterCooperative Network"
	description  = "Ed25519 keys sealed to a TPM 2.0"
	model        = "icn-p11 TPM 2.0"
)

// GetInfo is C_GetInfo (section 5.4.3).
func (m *Module) GetInfo() (Info, error) {
	l, err := m.enter(noSession)
	if err != nil {
		return Info{}, err
	}
	defer l.leave(noSession)
	return Info{
		CryptokiVersion:    Version{3, 2},
		ManufacturerID:     manufacturer,
		LibraryDescription: description,
		LibraryVersion:     LibraryVersion,
	}, nil
}

// fail turns an error from below into a return code, and logs what the
// application cannot be told. It is the only place where store errors become
// codes.
func (l *library) fail(op string, serial string, err error) error {
	if err == nil {
		return nil
	}
	var rv RV
	if errors.As(err, &rv) {
		return err
	}
	level := slog.LevelError
	switch {
	case errors.Is(err, sealstore.ErrAuth):
		rv, level = CKR_PIN_INCORRECT, slog.LevelInfo // the store has warned of it
	case errors.Is(err, sealstore.ErrLockout):
		rv = CKR_PIN_LOCKED
	case errors.Is(err, sealstore.ErrNoPIN):
		rv, level = CKR_USER_PIN_NOT_INITIALIZED, slog.LevelWarn
	case errors.Is(err, sealstore.ErrPINLength):
		rv, level = CKR_PIN_LEN_RANGE, slog.LevelWarn
	case errors.Is(err, sealstore.ErrLocked):
		rv, level = CKR_USER_NOT_LOGGED_IN, slog.LevelWarn
	case errors.Is(err, sealstore.ErrNotFound):
		// The token was removed; a missing object is told by whoever was given its handle.
		rv, level = CKR_DEVICE_REMOVED, slog.LevelWarn
	case errors.Is(err, sealstore.ErrReadOnly):
		rv = CKR_TOKEN_WRITE_PROTECTED
	case errors.Is(err, sealstore.ErrFull):
		rv = CKR_DEVICE_MEMORY
	case errors.Is(err, sealstore.ErrTooLarge):
		rv, level = CKR_ATTRIBUTE_VALUE_INVALID, slog.LevelWarn
	case errors.Is(err, sealstore.ErrCurve):
		rv, level = CKR_CURVE_NOT_SUPPORTED, slog.LevelWarn
	case errors.Is(err, sealstore.ErrPCR):
		rv = CKR_FUNCTION_FAILED
	case errors.Is(err, sealstore.ErrUnavailable), errors.Is(err, sealstore.ErrParent), errors.Is(err, sealstore.ErrOwner),
		errors.Is(err, sealstore.ErrBlob), errors.Is(err, sealstore.ErrIntegrity):
		rv = CKR_DEVICE_ERROR
	default:
		rv = CKR_FUNCTION_FAILED
	}
	attrs := []any{"token", serial, "code", rv.Error(), "error", err}
	if errors.Is(err, sealstore.ErrLockout) {
		attrs = append(attrs, "wait", l.wait())
	}
	l.log.Log(context.Background(), level, op+" failed", attrs...)
	return &coded{rv, err}
}

// wait tells for how long the TPM will refuse PINs.
func (l *library) wait() string {
	state, err := l.tpm.Lockout()
	switch {
	case err != nil:
		return "unknown"
	case state.Interval == 0:
		return "until the TPM's lockout is reset"
	}
	return fmt.Sprintf("at most %v, until the TPM forgives a wrong PIN; \"icn-p11 lockout reset\" ends it", state.Interval)
}
