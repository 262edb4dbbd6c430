// Package tpm seals secrets to a TPM 2.0. It implements sealstore.Sealer over
// github.com/google/go-tpm.
//
// Section numbers are of the TCG's TPM 2.0 Library specification. Every
// secret crosses the bus encrypted: sessions are salted to the storage root
// key (SRK), whose Name the caller has recorded, and encrypt the first
// parameter in both directions (Part 1, 19 and 21).
package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// Config says which TPM, and how to use it.
type Config struct {
	// Device is a device_path: "/dev/tpmrm0", "device:PATH",
	// "swtpm:path=P", "swtpm:host=H,port=N" or "swtpm:H:N", the last three
	// with ",exclusive" where nobody else uses that TPM;
	// "mssim:host=H,port=N"; "tabrmd:bus_type=B,bus_name=N"; "cmd:PROGRAM
	// ARGS". Empty chooses /dev/tpmrm0, else /dev/tpm0.
	Device string
	// KeyHandle is where a persistent SRK is looked for.
	KeyHandle uint32
	Log       *slog.Logger
	// Timeout bounds one command, including the wait for other users of a
	// TPM without a resource manager. Zero is a minute.
	Timeout time.Duration
	// Idle is how long a connection, with what is loaded on it, is kept after
	// its last use: other processes may want the TPM's few slots. Zero is 15
	// seconds.
	Idle time.Duration
	// Observe, if it is set, is called after each operation, with what it is
	// called in the log. It must be quick and must not call the TPM.
	Observe func(op string, took time.Duration, err error)
}

const (
	defaultTimeout = time.Minute
	defaultIdle    = 15 * time.Second
	// slowUnseal is when the log points to auto_lock_timeout_secs.
	slowUnseal = time.Second
	// glance bounds what only informs, so that nobody waits long behind it.
	glance = 2 * time.Second
	// maxSecret is the largest sealed secret, in bytes (MAX_SYM_DATA).
	maxSecret = 128
	// authSize is the length of an authorisation value: the largest that
	// SHA-256 as nameAlg allows. It is text: go-tpm's sessions, and so other
	// programs that use them, cut a value at its first zero byte.
	authSize = 32
)

// TPM is one TPM. It is opened by the first command. All methods may be
// called from any goroutine; commands run one after the other, on the
// goroutine of the caller.
type TPM struct {
	cfg    Config
	opener opener

	mu       sync.Mutex
	link     *link // nil: not connected
	closed   bool
	commands uint64
	idle     *time.Timer // leaves the TPM when nothing more comes
	lastUse  time.Time
	// leaveNext has the TPM left after the transaction that is running.
	leaveNext atomic.Bool
	// counting is set while a command runs by which the TPM may count a wrong
	// PIN: it is not sent twice.
	counting bool

	srk        *rootKey // loaded on link, or persistent
	persistent *rootKey // what was found at KeyHandle; survives the link
	loaded     *loadedKey
	sessions   []*hmacSession // the one used last at the end

	slowOnce sync.Once
}

// rootKey is a storage root key. A transient one has to be flushed.
type rootKey struct {
	handle    tpm2.TPMHandle
	name      tpm2.TPM2BName
	public    tpm2.TPMTPublic
	transient bool
}

// loadedKey is the sealed object that was used last, kept loaded where the
// TPM is ours alone.
type loadedKey struct {
	id     [sha256.Size]byte
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	byAuth bool // its authorisation value alone opens it; otherwise its policy does
	counts bool // the TPM counts wrong values
}

// maxSessions is how many sessions are kept: TPMs hold at least three.
const maxSessions = 2

// New checks the configuration. It sends nothing.
func New(c Config) (*TPM, error) {
	o, err := parseDevice(c.Device)
	if err != nil {
		return nil, err
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	if c.Idle == 0 {
		c.Idle = defaultIdle
	}
	return &TPM{cfg: c, opener: o}, nil
}

// String names the device.
func (t *TPM) String() string { return t.opener.String() }

// Commands counts the commands that were sent, with repetitions.
func (t *TPM) Commands() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.commands
}

// do runs one transaction: it opens the TPM, runs f, and leaves nothing
// behind where others use the TPM too. f is run again where the connection
// broke, or handles that were kept have gone: all that this package does can
// be repeated, but for a PIN that may have been counted (TPM.counting).
func (t *TPM) do(op string, f func() error) error { return t.within(t.cfg.Timeout, op, f) }

func (t *TPM) within(limit time.Duration, op string, f func() error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	start := time.Now()
	var err, lost error
	var tried trouble
	var full time.Time
	for {
		if lost = t.open(limit); lost != nil {
			err = lost
			break
		}
		err = f()
		was := t.recover(err, &full)
		t.counting = false
		if was == crowdedTPM {
			continue
		}
		if was == 0 || tried&was != 0 {
			break
		}
		if was == brokenConnection {
			tried &^= fullTPM // what was loaded on it is in the way now
		}
		tried |= was
	}
	switch {
	case t.link == nil:
	case t.link.broken != nil:
		t.drop()
	case t.leaveNext.Swap(false), !t.opener.keep():
		t.leave()
	default:
		t.keepFor(t.cfg.Idle)
	}
	t.report(op, time.Since(start), err)
	switch {
	case lost != nil:
		return lost // whatever it was wanted for, and it names the device
	case err != nil:
		return t.explain(op, err)
	}
	return nil
}

// report tells how an operation went.
func (t *TPM) report(op string, took time.Duration, err error) {
	attrs := []slog.Attr{slog.String("operation", op), slog.Duration("took", took)}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	t.cfg.Log.LogAttrs(context.Background(), slog.LevelDebug, "TPM operation", attrs...)
	if t.cfg.Observe != nil {
		t.cfg.Observe(op, took, err)
	}
}

// keepFor has the TPM left when it has not been used for so long.
func (t *TPM) keepFor(d time.Duration) {
	t.lastUse = time.Now()
	if t.idle != nil {
		t.idle.Reset(d)
		return
	}
	t.idle = time.AfterFunc(d, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.link != nil && time.Since(t.lastUse) >= d {
			t.leave()
		}
	})
}

// leave flushes what is loaded and closes the connection.
func (t *TPM) leave() {
	// Nobody waits long for a TPM that does not answer.
	t.link.timeout = min(t.link.timeout, glance)
	t.release()
	t.drop()
}

func (t *TPM) open(limit time.Duration) error {
	if t.closed {
		return &lostError{fmt.Errorf("%s was closed", t), false}
	}
	if t.link == nil {
		c, err := t.opener.open(limit)
		if err != nil {
			return err
		}
		t.link = &link{conn: c, startup: t.opener.startup(), count: &t.commands}
	}
	t.link.timeout = limit
	return nil
}

// trouble is what a second try may get past, each kind once.
type trouble uint

const (
	brokenConnection trouble = 1 << iota
	fullTPM
	crowdedTPM // again and again, for crowdWait
	changedPCR
	staleHandle
	lockedRoot
)

// crowdWait is how long others who use a TPM without a resource manager are
// given to flush what they have loaded. tpm2-tools leave a swtpm between two
// commands, so that what is loaded may be needed by somebody who lives.
const crowdWait = 500 * time.Millisecond

// recover decides whether another try can help, and prepares it. full is when
// the TPM was first found full.
func (t *TPM) recover(err error, full *time.Time) trouble {
	var lost *lostError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &lost):
		t.drop()
		// The TPM may have done what it was asked, and counted a wrong PIN.
		if !lost.retry || t.counting {
			return 0
		}
		return brokenConnection
	case errors.Is(err, tpm2.TPMRCObjectMemory), errors.Is(err, tpm2.TPMRCSessionMemory),
		errors.Is(err, tpm2.TPMRCSessionHandles), errors.Is(err, tpm2.TPMRCContextGap), errors.Is(err, tpm2.TPMRCObjectHandles):
		t.release()
		if full.IsZero() {
			*full = time.Now()
		}
		if !t.opener.keep() && time.Since(*full) < crowdWait {
			t.drop()
			time.Sleep(time.Millisecond + rand.N(20*time.Millisecond))
			return crowdedTPM
		}
		if t.opener.alone() {
			t.flushStale()
		}
		return fullTPM
	case errors.Is(err, tpm2.TPMRCPCRChanged):
		// A PCR was extended while the policy was being satisfied.
		return changedPCR
	case errors.Is(err, errRootPassword):
		t.unusable("has a password")
		t.release()
		t.persistent = &rootKey{}
		return lockedRoot
	case t.srk != nil && isStale(err):
		// The TPM was restarted, or somebody flushed our handles.
		t.release()
		t.persistent = nil
		return staleHandle
	}
	return 0
}

// isStale recognises the answers to handles that are gone, and to a session
// that was salted to a key that is no longer at its handle.
func isStale(err error) bool {
	for _, rc := range []tpm2.TPMRC{
		tpm2.TPMRCReferenceH0, tpm2.TPMRCReferenceH1, tpm2.TPMRCReferenceS0, tpm2.TPMRCHandle,
	} {
		if errors.Is(err, rc) {
			return true
		}
	}
	return false
}

// drop closes the connection. What was loaded on it is gone or not ours any
// more.
func (t *TPM) drop() {
	if t.link != nil {
		t.link.conn.Close()
		t.link = nil
	}
	t.forget()
}

func (t *TPM) forget() {
	for _, s := range t.sessions {
		s.destroy()
	}
	t.srk, t.loaded, t.sessions = nil, nil, nil
}

// release flushes everything that is loaded. Errors do not matter: what
// cannot be flushed is gone, or will be found stale.
func (t *TPM) release() {
	for _, s := range t.sessions {
		t.closeSession(s)
	}
	if t.loaded != nil {
		t.flush(t.loaded.handle)
	}
	if t.srk != nil && t.srk.transient {
		t.flush(t.srk.handle)
	}
	t.forget()
}

func (t *TPM) flush(h tpm2.TPMHandle) {
	tpm2.FlushContext{FlushHandle: h}.Execute(t.link)
}

// flushStale frees every transient object and session of the TPM. It is for
// a TPM that nobody else can use while we hold the connection: what is there
// belongs to a client that died.
func (t *TPM) flushStale() {
	const first = 64
	for _, from := range []uint32{0x80000000, 0x02000000, 0x03000000} {
		r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: from, PropertyCount: first}.Execute(t.link)
		if err != nil {
			continue
		}
		handles, err := r.CapabilityData.Data.Handles()
		if err != nil {
			continue
		}
		for _, h := range handles.Handle {
			t.cfg.Log.Info("flushing a handle that a dead client left in the TPM", "device", t.String(), "handle", fmt.Sprintf("0x%08x", uint32(h)))
			t.flush(h)
		}
	}
}

// root finds the SRK whose Name is parent.
func (t *TPM) root(parent []byte) (*rootKey, error) {
	if t.srk != nil && bytes.Equal(t.srk.name.Buffer, parent) {
		return t.srk, nil
	}
	if t.srk != nil {
		t.release()
	}
	p, err := t.readPersistent()
	if err != nil {
		return nil, err
	}
	if p.handle != 0 && bytes.Equal(p.name.Buffer, parent) {
		t.srk = p
		return p, nil
	}
	k, err := t.derive(nil)
	if errors.Is(err, sealstore.ErrOwner) && p.handle != 0 {
		return nil, fmt.Errorf("the key at 0x%08x is not the token's, and: %w", t.cfg.KeyHandle, err)
	}
	if err != nil {
		return nil, err
	}
	t.srk = k
	if !bytes.Equal(k.name.Buffer, parent) {
		return nil, fmt.Errorf("%w: its Name is %x, the token's is %x",
			sealstore.ErrParent, k.name.Buffer, parent)
	}
	return t.srk, nil
}

// readPersistent looks for an SRK at KeyHandle, once until something shows
// that it has changed. A key of another template there is somebody else's: it
// is left alone, and a result with handle 0 says that there is none to use.
func (t *TPM) readPersistent() (*rootKey, error) {
	if t.persistent != nil {
		return t.persistent, nil
	}
	k, err := t.readRoot()
	if err != nil {
		return nil, err
	}
	if k != nil && !isRootTemplate(&k.public) {
		t.unusable("is not a storage root key of the template that is used here")
		k = nil
	}
	if k == nil {
		k = &rootKey{}
	}
	t.persistent = k
	return k, nil
}

// unusable tells that the object at KeyHandle is of no use.
func (t *TPM) unusable(why string) {
	t.cfg.Log.Warn("the object at key_handle "+why+"; a storage root key is created for each use instead, which takes time: set key_handle to another handle",
		"device", t.String(), "key_handle", fmt.Sprintf("0x%08x", t.cfg.KeyHandle))
}

// readRoot reads the object at KeyHandle; nil if there is none.
func (t *TPM) readRoot() (*rootKey, error) {
	if t.keyHandle() == 0 {
		return nil, nil
	}
	return t.readKey(t.keyHandle())
}

// readKey reads the persistent object at a handle; nil if there is none.
func (t *TPM) readKey(h tpm2.TPMHandle) (*rootKey, error) {
	r, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(t.link)
	if errors.Is(err, tpm2.TPMRCHandle) || errors.Is(err, tpm2.TPMRCValue) {
		return nil, nil
	}
	var public *tpm2.TPMTPublic
	if err == nil {
		public, err = r.OutPublic.Contents()
	}
	if err == nil {
		err = checkName(public, r.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the key at 0x%08x: %w", uint32(h), err)
	}
	return &rootKey{handle: h, name: r.Name, public: *public}, nil
}

// checkName computes the Name from the public area (Part 1, 16), so that the
// key that is salted to is the one that has the Name.
func checkName(public *tpm2.TPMTPublic, name tpm2.TPM2BName) error {
	n, err := tpm2.ObjectName(public)
	if err != nil {
		return err
	}
	if !bytes.Equal(n.Buffer, name.Buffer) {
		return fmt.Errorf("%w: its Name does not follow from its public area: somebody between the TPM and this machine has put another key in its place", sealstore.ErrParent)
	}
	return nil
}

// isRootTemplate compares everything but the key itself with the TCG's
// template of an ECC P-256 SRK.
func isRootTemplate(public *tpm2.TPMTPublic) bool {
	p, want := *public, tpm2.ECCSRKTemplate
	p.Unique, want.Unique = tpm2.TPMUPublicID{}, tpm2.TPMUPublicID{}
	if p.Type != want.Type {
		return false
	}
	p.Unique = tpm2.ECCSRKTemplate.Unique
	want.Unique = tpm2.ECCSRKTemplate.Unique
	return bytes.Equal(tpm2.Marshal(p), tpm2.Marshal(want))
}

// load loads a sealed object, or finds it loaded.
func (t *TPM) load(parent []byte, b sealstore.Blob) (*rootKey, *loadedKey, error) {
	srk, err := t.root(parent)
	if err != nil {
		return nil, nil, err
	}
	h := sha256.New()
	h.Write(b.Public)
	h.Write(b.Private)
	var id [sha256.Size]byte
	h.Sum(id[:0])
	if t.loaded != nil && t.loaded.id == id {
		return srk, t.loaded, nil
	}
	public := tpm2.BytesAs2B[tpm2.TPMTPublic](b.Public)
	p, err := public.Contents()
	if err != nil || p.Type != tpm2.TPMAlgKeyedHash && p.Type != tpm2.TPMAlgECC || !bytes.Equal(tpm2.Marshal(*p), b.Public) {
		return nil, nil, fmt.Errorf("%w: its public area is not that of a sealed object or a key", sealstore.ErrBlob)
	}
	t.unload()
	r, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: srk.handle, Name: srk.name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate:    tpm2.TPM2BPrivate{Buffer: b.Private},
		InPublic:     public,
	}.Execute(t.link)
	if err = t.rootError(srk, err); err != nil {
		return nil, nil, blobError(err)
	}
	t.loaded = &loadedKey{id, r.ObjectHandle, r.Name, p.ObjectAttributes.UserWithAuth, !p.ObjectAttributes.NoDA}
	return srk, t.loaded, nil
}

// blobError tells a blob that the TPM refuses from what else may go wrong when
// it is loaded or imported.
func blobError(err error) error {
	var fmt1 tpm2.TPMFmt1Error
	if errors.As(err, &fmt1) && !isStale(err) {
		return fmt.Errorf("%w: %w", sealstore.ErrBlob, err)
	}
	return fmt.Errorf("loading a sealed object: %w", err)
}

// session gives a session salted to the SRK, with one authorisation value. A
// kept one is used again; otherwise it ends with the transaction.
func (t *TPM) session(srk *rootKey, auth []byte, dir direction) (*hmacSession, error) {
	t.sessions = slices.DeleteFunc(t.sessions, func(s *hmacSession) bool {
		if s.useless {
			t.closeSession(s)
		}
		return s.useless
	})
	for i, s := range t.sessions {
		if s.dir == dir && s.knows(auth) {
			t.sessions = append(slices.Delete(t.sessions, i, i+1), s)
			return s, nil
		}
	}
	for len(t.sessions) >= maxSessions {
		t.dropSession(t.sessions[0])
	}
	s, err := startSession(t.link, srk, auth, dir)
	if err == nil {
		t.sessions = append(t.sessions, s)
	}
	return s, err
}

// authorise gives the session that opens a seal: one that knows its
// authorisation value, and for a bound seal also satisfies its policy. The
// answer is encrypted where it is a secret.
func (t *TPM) authorise(srk *rootKey, key *loadedKey, b *sealstore.Binding, auth []byte, secret bool) (*hmacSession, error) {
	byAuth, byPolicy := unencrypted, policyPlain
	if secret {
		byAuth, byPolicy = outOnly, policy
	}
	if key.byAuth {
		return t.session(srk, auth, byAuth)
	}
	if b == nil {
		return nil, fmt.Errorf("%w: it is bound to the platform, but its binding is missing", sealstore.ErrIntegrity)
	}
	s, err := t.session(srk, auth, byPolicy)
	if err != nil {
		return nil, err
	}
	if err := t.satisfy(s, b); err != nil {
		t.dropSession(s) // its policy is half done
		return nil, err
	}
	return s, nil
}

// dropSession ends a session whose state is of no use any more.
func (t *TPM) dropSession(s *hmacSession) {
	t.sessions = slices.DeleteFunc(t.sessions, func(v *hmacSession) bool { return v == s })
	t.closeSession(s)
}

func (t *TPM) closeSession(s *hmacSession) {
	t.flush(s.handle)
	s.destroy()
}

func checkAuth(auth []byte) error {
	if len(auth) != 0 && len(auth) != authSize {
		return fmt.Errorf("an authorisation value has %d bytes, not 0 or %d", len(auth), authSize)
	}
	for _, c := range auth {
		if c < 0x21 || c > 0x7e {
			return errors.New("an authorisation value must be printable ASCII")
		}
	}
	return nil
}

// Parent implements sealstore.Sealer. New tokens are sealed under the key that
// this TPM creates, wherever it can tell which one that is.
func (t *TPM) Parent() (name []byte, err error) {
	err = t.do("reading the storage root key", func() error {
		k, err := t.derive(nil)
		if err == nil {
			t.flush(k.handle)
		}
		if errors.Is(err, sealstore.ErrOwner) {
			p, e := t.readPersistent()
			if e != nil {
				return e
			}
			if p.handle != 0 {
				k, err = p, nil
			}
		}
		if err == nil {
			name = k.name.Buffer
		}
		return err
	})
	return name, err
}

// Device implements sealstore.Sealer: the endorsement key is made of a seed
// that stays when the TPM is cleared (Part 1, 14.3.4 and 24.6).
func (t *TPM) Device() (name []byte, err error) {
	err = t.do("reading the endorsement key", func() error {
		r, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.TPMRHEndorsement,
			InPublic:      tpm2.New2B(tpm2.ECCEKTemplate),
		}.Execute(t.link)
		if err != nil {
			return fmt.Errorf("creating the endorsement key: %w", err)
		}
		t.flush(r.ObjectHandle)
		public, err := r.OutPublic.Contents()
		if err == nil {
			err = checkName(public, r.Name)
		}
		name = r.Name.Buffer
		return err
	})
	return name, err
}

// sealTemplate is that of a sealed object. A movable one is not said to exist
// in this TPM alone, though without a policy for it no TPM duplicates it.
func sealTemplate(o sealstore.SealOptions) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:             tpm2.TPMAlgKeyedHash,
		NameAlg:          tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: !o.Movable, FixedParent: !o.Movable, UserWithAuth: true, NoDA: !o.DictionaryAttack},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull},
		}),
	}
}

// Seal implements sealstore.Sealer with TPM2_Create.
func (t *TPM) Seal(parent []byte, secret, auth []byte, o sealstore.SealOptions) (b sealstore.Blob, err error) {
	if err := checkAuth(auth); err != nil {
		return b, err
	}
	if len(secret) < 1 || len(secret) > maxSecret {
		return b, fmt.Errorf("a sealed secret has 1 to %d bytes, not %d", maxSecret, len(secret))
	}
	if len(o.About) > sealstore.MaxAbout {
		return b, fmt.Errorf("a seal records at most %d bytes about its secret, not %d", sealstore.MaxAbout, len(o.About))
	}
	return t.createUnder(parent, secret, auth, sealTemplate(o), o)
}

// createUnder makes an object of a template under the storage root key, bound
// where o says so. Its authorisation value and secret cross the bus encrypted.
func (t *TPM) createUnder(parent, secret, auth []byte, template tpm2.TPMTPublic, o sealstore.SealOptions) (b sealstore.Blob, err error) {
	var policy tpm2.TPM2BDigest
	if o.Binding != nil {
		approver := tpm2.BytesAs2B[tpm2.TPMTPublic](o.Binding.Approver)
		p, err := approver.Contents()
		if err != nil {
			return b, fmt.Errorf("the approver's key is malformed: %w", err)
		}
		if policy, err = authorizePolicy(p); err != nil {
			return b, err
		}
		b.Binding = o.Binding
	}
	// UserWithAuth lets the authorisation value alone open the seal.
	template.ObjectAttributes.UserWithAuth = o.Binding == nil
	template.AuthPolicy = policy
	err = t.do("sealing", func() error {
		srk, err := t.root(parent)
		if err != nil {
			return err
		}
		s, err := t.session(srk, nil, inOut)
		if err != nil {
			return err
		}
		made, err := t.create(srk, s, template, secret, auth, o.About)
		if err = t.rootError(srk, err); err != nil {
			return err
		}
		b.Public, b.Private, b.Creation = made.Public, made.Private, made.Creation
		return nil
	})
	return b, err
}

// create runs TPM2_Create, authorised and encrypted by s.
func (t *TPM) create(parent *rootKey, s tpm2.Session, template tpm2.TPMTPublic, secret, auth, about []byte) (b sealstore.Blob, err error) {
	params, err := secmem.New(secmem.Max)
	if err != nil {
		return b, err
	}
	defer params.Destroy()
	w := writer{buf: params.Bytes()}
	w.u16(2 + len(auth) + 2 + len(secret)) // TPM2B_SENSITIVE_CREATE (Part 2, 11.1.15)
	w.sized(auth)
	w.sized(secret)
	w.raw(tpm2.Marshal(tpm2.New2B(template)))
	w.sized(about) // outsideInfo
	w.u32(0)       // creationPCR
	if w.full {
		return b, errors.New("sealed secret too large")
	}
	out, err := t.exec(command{
		code: tpm2.TPMCCCreate, handles: []tpm2.TPMHandle{parent.handle}, names: []tpm2.TPM2BName{parent.name},
		params: w.buf[:w.n],
	}, s, params.Bytes())
	if err != nil {
		return b, err
	}
	r := reader{out}
	b.Private, b.Public = bytes.Clone(r.sized()), bytes.Clone(r.sized())
	data := bytes.Clone(r.sized())
	r.sized() // creationHash
	ticket := bytes.Clone(r.buf)
	if r.buf == nil || len(b.Private) == 0 || len(b.Public) == 0 || len(data) == 0 || len(ticket) == 0 {
		return b, errFrame
	}
	if len(about) > 0 {
		b.Creation = &sealstore.Creation{About: bytes.Clone(about), Data: data, Ticket: ticket}
	}
	return b, nil
}

// Unseal implements sealstore.Sealer with TPM2_Unseal.
func (t *TPM) Unseal(parent []byte, b sealstore.Blob, auth []byte, dst []byte) (n int, err error) {
	if err := checkAuth(auth); err != nil {
		return 0, err
	}
	start := time.Now()
	err = t.do("unsealing", func() (err error) {
		n, err = t.unseal(parent, b, auth, dst)
		return err
	})
	if took := time.Since(start); err == nil && took > slowUnseal {
		t.slowOnce.Do(func() {
			t.cfg.Log.Warn("unsealing is slow on this TPM; auto_lock_timeout_secs keeps keys unlocked between signatures",
				"device", t.String(), "took", took)
		})
	}
	return n, err
}

// unseal opens a sealed object with its authorisation value.
func (t *TPM) unseal(parent []byte, b sealstore.Blob, auth, dst []byte) (int, error) {
	srk, key, err := t.load(parent, b)
	if err != nil {
		return 0, err
	}
	s, err := t.authorise(srk, key, b.Binding, auth, true)
	if err != nil {
		return 0, err
	}
	n, err := t.unsealWith(key, s, dst)
	if err != nil && !key.byAuth || key.counts {
		// A PIN is not kept: what follows needs none.
		t.dropSession(s)
	}
	return n, err
}

// unsealWith runs TPM2_Unseal, authorised and encrypted by s.
func (t *TPM) unsealWith(key *loadedKey, s *hmacSession, dst []byte) (int, error) {
	page, err := secmem.New(secmem.Max)
	if err != nil {
		return 0, err
	}
	defer page.Destroy()
	t.counting = key.counts
	out, err := t.exec(command{
		code: tpm2.TPMCCUnseal, handles: []tpm2.TPMHandle{key.handle}, names: []tpm2.TPM2BName{key.name},
	}, s, page.Bytes())
	if err != nil {
		return 0, err
	}
	r := reader{out}
	secret := r.sized()
	if r.buf == nil || len(r.buf) != 0 {
		return 0, errFrame
	}
	if len(secret) > len(dst) {
		return 0, fmt.Errorf("%w: it holds %d bytes, at most %d are expected", sealstore.ErrBlob, len(secret), len(dst))
	}
	return secmem.Copy(dst, secret), nil
}

// TryLoad implements sealstore.Sealer with TPM2_Load.
func (t *TPM) TryLoad(parent []byte, b sealstore.Blob) error {
	return t.do("loading a sealed object", func() error {
		_, _, err := t.load(parent, b)
		return err
	})
}

// ChangeAuth implements sealstore.Sealer with TPM2_ObjectChangeAuth.
func (t *TPM) ChangeAuth(parent []byte, b sealstore.Blob, oldAuth, newAuth []byte) (changed sealstore.Blob, err error) {
	if err := errors.Join(checkAuth(oldAuth), checkAuth(newAuth)); err != nil {
		return changed, err
	}
	err = t.do("changing a PIN", func() error {
		srk, key, err := t.load(parent, b)
		if err != nil {
			return err
		}
		s, err := t.session(srk, oldAuth, inOut)
		if err != nil {
			return err
		}
		defer t.dropSession(s) // as for Unseal
		page, err := secmem.New(secmem.Max)
		if err != nil {
			return err
		}
		defer page.Destroy()
		w := writer{buf: page.Bytes()}
		w.sized(newAuth)
		t.counting = key.counts
		out, err := t.exec(command{
			code:    tpm2.TPMCCObjectChangeAuth,
			handles: []tpm2.TPMHandle{key.handle, srk.handle}, names: []tpm2.TPM2BName{key.name, srk.name},
			params: w.buf[:w.n],
		}, s, page.Bytes())
		if err != nil {
			return err
		}
		r := reader{out}
		changed = sealstore.Blob{Public: bytes.Clone(b.Public), Private: bytes.Clone(r.sized()), Binding: b.Binding}
		if r.buf == nil || len(r.buf) != 0 || len(changed.Private) == 0 {
			return errFrame
		}
		return nil
	})
	return changed, err
}

// Random implements sealstore.Sealer. The bytes cross the bus in the clear:
// they are meant to be mixed with others, never used alone.
func (t *TPM) Random(p []byte) error {
	return t.do("reading random numbers", func() error {
		for rest := p; len(rest) > 0; {
			r, err := tpm2.GetRandom{BytesRequested: uint16(min(len(rest), 32))}.Execute(t.link)
			if err != nil {
				return err
			}
			n := copy(rest, r.RandomBytes.Buffer)
			if n == 0 {
				return errFrame
			}
			secmem.Wipe(r.RandomBytes.Buffer)
			rest = rest[n:]
		}
		return nil
	})
}

// Lockout implements sealstore.Sealer with one TPM2_GetCapability.
func (t *TPM) Lockout() (l sealstore.Lockout, err error) {
	err = t.within(min(glance, t.cfg.Timeout), "reading the lockout counters", func() error {
		// From TPM_PT_PERMANENT to TPM_PT_LOCKOUT_RECOVERY (Part 2, 6.13).
		props, err := t.properties(tpm2.TPMPTPermanent, 18)
		if err != nil {
			return err
		}
		l = sealstore.Lockout{
			InLockout: props[tpm2.TPMPTPermanent]&permanentInLockout != 0,
			Password:  props[tpm2.TPMPTPermanent]&permanentLockoutAuth != 0,
			Counter:   props[tpm2.TPMPTLockoutCounter],
			Max:       props[tpm2.TPMPTMaxAuthFail],
			Interval:  time.Duration(props[tpm2.TPMPTLockoutInterval]) * time.Second,
			Recovery:  time.Duration(props[tpm2.TPMPTLockoutRecovery]) * time.Second,
		}
		// The bit is set by the next try only.
		l.InLockout = l.InLockout || l.Max > 0 && l.Counter >= l.Max
		return nil
	})
	return l, err
}

// ResetLockout forgets the wrong tries (TPM2_DictionaryAttackLockReset, Part 3,
// 25.2). password is that of the lockout hierarchy; after a wrong one the TPM
// takes none for the recovery time.
func (t *TPM) ResetLockout(password []byte) error {
	l, err := t.Lockout()
	if err != nil {
		return err
	}
	if err := checkPassword("lockout password", l.Password, password); err != nil {
		return err
	}
	if l.Password && len(password) == 0 {
		return errors.New("the TPM has a lockout password, which was not given")
	}
	err = t.do("resetting the lockout", func() error {
		return t.withPassword(password, func(s tpm2.Session) error {
			page, err := secmem.New(secmem.Max)
			if err != nil {
				return err
			}
			defer page.Destroy()
			t.counting = true
			_, err = t.exec(command{
				code: tpm2.TPMCCDictionaryAttackLockReset, handles: []tpm2.TPMHandle{tpm2.TPMRHLockout},
				names: []tpm2.TPM2BName{tpm2.HandleName(tpm2.TPMRHLockout)},
			}, s, page.Bytes())
			switch {
			case isWrongAuth(err):
				return verdict{fmt.Errorf("wrong lockout password: the TPM takes none now for %v", l.Recovery)}
			case errors.Is(err, tpm2.TPMRCLockout):
				return verdict{fmt.Errorf("the TPM takes no lockout password at present: one that was wrong keeps it from that for %v", l.Recovery)}
			}
			return err
		})
	})
	return err
}

func (t *TPM) properties(first tpm2.TPMPT, n uint32) (map[tpm2.TPMPT]uint32, error) {
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(first), PropertyCount: n}.Execute(t.link)
	if err != nil {
		return nil, err
	}
	list, err := r.CapabilityData.Data.TPMProperties()
	if err != nil {
		return nil, err
	}
	m := map[tpm2.TPMPT]uint32{}
	for _, p := range list.TPMProperty {
		m[p.Property] = p.Value
	}
	return m, nil
}

// Release implements sealstore.Sealer: it leaves the TPM until the next
// command. Where one is running, it is left after that.
func (t *TPM) Release() {
	if !t.mu.TryLock() {
		t.leaveNext.Store(true)
		return
	}
	defer t.mu.Unlock()
	if t.link != nil {
		t.leave()
	}
}

// Close implements sealstore.Sealer.
func (t *TPM) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.link != nil {
		t.leave()
	}
	if t.idle != nil {
		t.idle.Stop()
	}
	return nil
}

// explain adds what failed and where, and the sealstore error it amounts to.
func (t *TPM) explain(op string, err error) error {
	var lost *lostError
	kind := error(nil)
	switch {
	case errors.Is(err, tpm2.TPMRCAuthFail), errors.Is(err, tpm2.TPMRCBadAuth):
		kind = sealstore.ErrAuth
	case errors.Is(err, tpm2.TPMRCLockout):
		kind = sealstore.ErrLockout
	case errors.As(err, &lost), errors.Is(err, errFrame):
		kind = sealstore.ErrUnavailable
	case undecodable(err):
		kind, err = sealstore.ErrUnavailable, fmt.Errorf("%w: %w", errFrame, err)
	case errors.Is(err, tpm2.TPMRCFailure):
		err = advice.With(err, "the TPM has failed its self test: restart the machine")
		kind = sealstore.ErrUnavailable
	}
	if kind == nil || errors.Is(err, kind) {
		return fmt.Errorf("%s: %s: %w", t, op, err)
	}
	return fmt.Errorf("%s: %s: %w: %w", t, op, kind, err)
}

// undecodable recognises what go-tpm says of an answer that it cannot decode,
// which has no type of its own: all else has.
func undecodable(err error) bool {
	var rc tpm2.TPMRC
	var fmt1 tpm2.TPMFmt1Error
	var system syscall.Errno
	if errors.As(err, &rc) || errors.As(err, &fmt1) || errors.As(err, &system) || errors.As(err, new(verdict)) {
		return false
	}
	if _, cure := advice.Split(err); cure != "" {
		return false
	}
	return !slices.ContainsFunc([]error{sealstore.ErrParent, sealstore.ErrOwner, sealstore.ErrBlob, sealstore.ErrIntegrity, sealstore.ErrPCR, errNoPCR, ErrEndorsement, ErrCredential},
		func(known error) bool { return errors.Is(err, known) })
}

// verdict is what an answer of the TPM means, in this package's own words.
type verdict struct{ error }

func (v verdict) Unwrap() error { return v.error }

// Report is what the doctor wants to know about a TPM.
type Report struct {
	Manufacturer    string // four letters, as the TPM spells them
	Firmware        string
	ResourceManager bool
	Lockout         sealstore.Lockout
	Root            RootState
}

// Check asks the TPM about itself.
func (t *TPM) Check() (Report, error) {
	r := Report{ResourceManager: t.opener.managed()}
	var err error
	if r.Lockout, err = t.Lockout(); err != nil {
		return r, err
	}
	if r.Root, err = t.RootKey(nil); err != nil {
		return r, err
	}
	err = t.do("reading properties", func() error {
		props, err := t.properties(tpm2.TPMPTManufacturer, 8)
		if err != nil {
			return err
		}
		m := props[tpm2.TPMPTManufacturer]
		r.Manufacturer = string(bytes.Trim([]byte{byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)}, " \x00"))
		v := props[tpm2.TPMPTFirmwareVersion1]
		r.Firmware = fmt.Sprintf("%d.%d", v>>16, v&0xffff)
		return nil
	})
	return r, err
}
