// Package sealstore keeps identities on disk: tokens, each with its PINs, and
// the objects in them. Everything is sealed by a Sealer, a TPM, or encrypted
// under secrets that are, so the files are worth nothing on another machine.
//
// A Store may be used by any number of goroutines and processes at once.
// Reading takes no lock and writes nothing; writing is atomic and durable.
// docs/format.md describes the files.
package sealstore

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// Length of a new PIN in bytes.
const (
	MinPIN = 4
	MaxPIN = 255
)

// Names inside a store.
const (
	lockName    = "lock"
	tokensName  = "tokens"
	tokenName   = "token"
	objectsName = "objects"
)

// Store is a directory of tokens.
type Store struct {
	dir    string
	sealer Sealer
	log    *slog.Logger

	observe func(serial string, e Event) // nil: nobody counts

	mu       sync.Mutex
	tokens   map[string]*Token
	reported map[string]fileID // damaged files that the log has already
}

// TokenInfo is what can be known of a token without a PIN. It is authenticated
// only once somebody logs in.
type TokenInfo struct {
	Serial  string // 16 lower-case hexadecimal digits
	Label   string // at most 32 bytes of UTF-8
	Slot    uint32
	UserPIN bool // a user PIN is set
	NoPIN   bool // it needs none
	// Recoverable: its keys can be taken to another TPM, by backup or migration.
	Recoverable bool
	Created     time.Time
	Parent      []byte // Name of the storage root key that it is sealed under
}

// InitParams describes a token to create.
type InitParams struct {
	Label string
	SOPIN []byte  // the caller's, who wipes it
	Slot  *uint32 // where it is expected to appear; nil: the next free one
	// Reserved are slot numbers that are kept for other tokens.
	Reserved []uint32
	// Binding binds the token to the present state of the platform; nil does not.
	Binding *BindingSpec
	// NoPIN has the token open without a user PIN, as far as its binding lets it.
	NoPIN bool
	// Recoverable lets the keys of the token be taken out of its TPM with both
	// PINs, for a backup or another TPM. It is decided for good.
	Recoverable bool
}

// Open returns the store in dir, which need not exist. It touches neither the
// disk nor the Sealer.
func Open(dir string, s Sealer, log *slog.Logger) *Store {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Store{dir: dir, sealer: s, log: log, tokens: map[string]*Token{}, reported: map[string]fileID{}}
}

// Sealer returns what the store seals with.
func (s *Store) Sealer() Sealer { return s.sealer }

// Close logs all tokens out and wipes their secrets. The Sealer stays open.
func (s *Store) Close() {
	s.mu.Lock()
	tokens := s.tokens
	s.tokens = map[string]*Token{}
	s.mu.Unlock()
	for _, t := range tokens {
		t.drop()
	}
}

func (s *Store) tokensDir() string             { return filepath.Join(s.dir, tokensName) }
func (s *Store) tokenDir(serial string) string { return filepath.Join(s.dir, tokensName, serial) }

// ValidSerial tells whether a text is a serial number: 16 hexadecimal digits, in
// lower case. Nothing else gets into path names.
func ValidSerial(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == serialSize && s == strings.ToLower(s)
}

func (f *tokenFile) info() TokenInfo {
	return TokenInfo{
		Serial:      hex.EncodeToString(f.Serial[:]),
		Label:       f.label(),
		Slot:        f.Slot,
		UserPIN:     f.User != nil && !f.User.NoPIN,
		NoPIN:       f.User != nil && f.User.NoPIN,
		Recoverable: f.recoverable(),
		Created:     time.Unix(int64(f.Created), 0).UTC(),
		Parent:      bytes.Clone(f.Parent),
	}
}

// Tokens lists the tokens by slot number. It sends nothing to the Sealer and
// writes nothing. A token that cannot be used is logged and left out.
func (s *Store) Tokens() ([]TokenInfo, error) {
	c, err := s.Scan()
	return c.Tokens, err
}

// Census is what a store holds at one moment.
type Census struct {
	Tokens  []TokenInfo // by slot number
	LeftOut []LeftOut   // by serial number: those that cannot be used
	dir     string
	// taken are the slot numbers of all tokens by serial number, left out or not,
	// as far as they still tell theirs: it is theirs again when somebody restores
	// the file.
	taken map[string]uint32
}

// Scan tells at once what Tokens, LeftOut and FreeSlot do.
func (s *Store) Scan() (c Census, err error) {
	c.dir, c.taken = s.dir, map[string]uint32{}
	dir, err := openDir(unix.AT_FDCWD, s.tokensDir(), s.tokensDir())
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, readError(s.tokensDir(), err)
	}
	defer dir.Close()
	names, err := list(dir)
	if err != nil {
		return c, readError(s.tokensDir(), err)
	}
	s.expose(s.dir)
	s.expose(s.tokensDir())
	leave := func(serial string, id fileID, err error) {
		path := filepath.Join(s.tokenDir(serial), tokenName)
		s.report(path, id, "token left out", err)
		c.LeftOut = append(c.LeftOut, LeftOut{serial, Damage{path, err}})
	}
	for _, n := range names {
		if !ValidSerial(n) {
			continue
		}
		s.expose(s.tokenDir(n))
		s.expose(filepath.Join(s.tokenDir(n), objectsName))
		f, id, err := readToken(s.tokenDir(n), n)
		if f != nil {
			c.taken[n] = f.Slot
		}
		if err != nil {
			// A token that was removed since the listing is no news.
			if _, e := os.Lstat(s.tokenDir(n)); e == nil {
				leave(n, id, err)
			}
			continue
		}
		c.Tokens = append(c.Tokens, f.info())
	}
	slices.SortFunc(c.Tokens, func(a, b TokenInfo) int {
		if a.Slot != b.Slot {
			return int(int64(a.Slot) - int64(b.Slot))
		}
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.Serial, b.Serial)
	})
	// A token copied in from elsewhere may claim a slot that is in use. A slot
	// number stands for one identity, and the older one had it first.
	tokens := c.Tokens[:0]
	for _, t := range c.Tokens {
		if n := len(tokens); n > 0 && tokens[n-1].Slot == t.Slot {
			leave(t.Serial, fileID{}, advice.With(fmt.Errorf("%s: %w: slot %d is that of token %s",
				s.tokenDir(t.Serial), ErrSlotTaken, t.Slot, tokens[n-1].Serial), "keep them in stores of their own"))
			continue
		}
		tokens = append(tokens, t)
	}
	c.Tokens = tokens
	slices.SortFunc(c.LeftOut, func(a, b LeftOut) int { return strings.Compare(a.Serial, b.Serial) })
	return c, nil
}

// report logs a damaged file once for each version of it.
func (s *Store) report(path string, id fileID, what string, err error) {
	s.mu.Lock()
	old, seen := s.reported[path]
	s.reported[path] = id
	s.mu.Unlock()
	if !seen || old != id {
		s.log.Warn(what, "path", path, "error", err)
	}
}

// FreeSlot returns the slot number that the next token gets: none that is reserved.
func (s *Store) FreeSlot(reserved ...uint32) (uint32, error) {
	c, err := s.Scan()
	if err != nil {
		return 0, err
	}
	return c.FreeSlot(reserved...)
}

// FreeSlot returns the slot number that the next token gets: the lowest above
// those of all tokens that is not reserved.
func (c Census) FreeSlot(reserved ...uint32) (uint32, error) {
	var free uint32
	for _, slot := range c.taken {
		free = max(free, slot+1)
	}
	for slices.Contains(reserved, free) {
		free++
	}
	if free > MaxSlot {
		return 0, fmt.Errorf("%s: no slot number is left", c.dir)
	}
	return free, nil
}

// Token returns the token with a serial number, the same one each time.
func (s *Store) Token(serial string) (*Token, error) {
	if !ValidSerial(serial) {
		return nil, fmt.Errorf("token %q: %w", serial, ErrNotFound)
	}
	f, _, err := readToken(s.tokenDir(serial), serial)
	if err != nil {
		return nil, err
	}
	return s.token(serial, f.Serial), nil
}

func (s *Store) token(serial string, raw [serialSize]byte) *Token {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tokens[serial]
	if t == nil {
		t = &Token{store: s, serial: serial, raw: raw, path: s.tokenDir(serial)}
		s.tokens[serial] = t
	}
	return t
}

// readToken reads the token file in the directory path. When it fails it may
// return a file all the same, of which only the slot number counts.
func readToken(path, serial string) (*tokenFile, fileID, error) {
	dir, err := openDir(unix.AT_FDCWD, path, path)
	if err != nil {
		return nil, fileID{}, readError(path, err)
	}
	defer dir.Close()
	return readTokenAt(dir, path, serial)
}

func readTokenAt(dir *os.File, path, serial string) (*tokenFile, fileID, error) {
	path = filepath.Join(path, tokenName)
	p, id, err := readAt(dir, tokenName, maxTokenFile)
	if err != nil {
		return nil, id, readError(path, err)
	}
	f, err := decodeToken(p)
	if err != nil {
		return f, id, fmt.Errorf("%s: %w", path, err)
	}
	if hex.EncodeToString(f.Serial[:]) != serial {
		return f, id, fmt.Errorf("%s: %w: it is the file of token %x", path, ErrIntegrity, f.Serial)
	}
	return f, id, nil
}

func checkPIN(pin []byte) error {
	if len(pin) < MinPIN || len(pin) > MaxPIN {
		return ErrPINLength
	}
	return nil
}

// Create makes a token with an SO PIN, whose user PIN is not set yet.
func (s *Store) Create(p InitParams) (TokenInfo, error) {
	info, err := s.create(p)
	if err != nil {
		return TokenInfo{}, fmt.Errorf("creating a token: %w", err)
	}
	return info, nil
}

func (s *Store) create(p InitParams) (TokenInfo, error) {
	if err := checkPIN(p.SOPIN); err != nil {
		return TokenInfo{}, err
	}
	f := &tokenFile{Created: uint64(time.Now().Unix())}
	if p.Recoverable {
		f.Flags = flagRecoverable
	}
	var err error
	if f.Label, err = padLabel(p.Label); err != nil {
		return TokenInfo{}, err
	}
	if _, err = rand.Read(f.Serial[:]); err != nil {
		return TokenInfo{}, err
	}
	// What cannot work shall fail before the TPM is troubled.
	if err := s.prepare(); err != nil {
		return TokenInfo{}, err
	}
	l, err := s.lock()
	if err != nil {
		return TokenInfo{}, err
	}
	defer l.unlock()
	removeTemps(s.tokensDir())
	if f.Slot, err = s.FreeSlot(p.Reserved...); err != nil {
		return TokenInfo{}, err
	}
	if p.Slot != nil && *p.Slot != f.Slot {
		return TokenInfo{}, fmt.Errorf("slot %d: %w", *p.Slot, ErrSlotTaken)
	}
	temp, err := s.buildNew(f, pinsOf{so: p.SOPIN, noPIN: p.NoPIN}, p.Binding)
	if err != nil {
		return TokenInfo{}, err
	}
	info := f.info()
	if err := s.installNew(temp, s.tokenDir(info.Serial)); err != nil {
		return TokenInfo{}, err
	}
	return info, nil
}

// installNew puts a token that was built under a temporary name in its place,
// which is free, or removes it.
func (s *Store) installNew(temp, path string) error {
	if err := renameNew(temp, path); err != nil {
		os.RemoveAll(temp)
		return writeError(path, err)
	}
	if err := syncDir(s.tokensDir()); err != nil {
		os.RemoveAll(path)
		return writeError(path, err)
	}
	return nil
}

// prepare makes the directory for tokens, and fails where none can be made.
func (s *Store) prepare() error {
	if err := s.ours(); err != nil {
		return err
	}
	if _, err := os.Stat(s.tokensDir()); err == nil {
		return nil
	}
	err := makeDir(s.tokensDir())
	if err == nil {
		err = inherit(s.dir, s.tokensDir())
	}
	if err != nil {
		return writeError(s.tokensDir(), err)
	}
	return nil
}

// lock takes the lock under which tokens are made.
func (s *Store) lock() (*fileLock, error) {
	if err := s.ours(); err != nil {
		return nil, err
	}
	path := filepath.Join(s.dir, lockName)
	l, err := lock(path)
	if err != nil {
		return nil, writeError(path, err)
	}
	return l, nil
}

// pinsOf are the PINs that a token is made with.
type pinsOf struct {
	so    []byte
	user  []byte // nil: not set
	noPIN bool   // the user needs none
}

// initialise gives f fresh secrets, sealed under its PINs, and returns them.
func (s *Store) initialise(f *tokenFile, pins pinsOf, spec *BindingSpec) (root, public *keyring, err error) {
	defer func() {
		if err != nil {
			root.destroy()
			public.destroy()
			root, public = nil, nil
		}
	}()
	if f.Parent, err = s.sealer.Parent(); err != nil {
		return nil, nil, err
	}
	if len(f.Parent) == 0 || len(f.Parent) > maxName {
		return nil, nil, fmt.Errorf("%w: a Name of %d bytes", ErrParent, len(f.Parent))
	}
	if f.Device, err = s.sealer.Device(); err != nil {
		// It only serves to say, later, which TPM is the wrong one.
		s.log.Info("the TPM's endorsement key is not known", "error", err)
		f.Device = nil
	}
	f.User = nil
	if root, err = newSecret(s.sealer, true); err != nil {
		return
	}
	if public, err = newSecret(s.sealer, false); err != nil {
		return
	}
	if f.Public, err = s.sealer.Seal(f.Parent, public.secret(), nil, SealOptions{}); err != nil {
		return root, public, fmt.Errorf("sealing the public secret: %w", err)
	}
	if err = s.verifySeal(f.Parent, f.Public, nil, public.secret()); err != nil {
		return root, public, fmt.Errorf("sealing the public secret: %w", err)
	}
	if f.SO, err = s.sealRoot(f, root, SO, pins.so); err != nil {
		return
	}
	if spec != nil {
		if f.Binding, err = s.newBinding(*spec, root.approver()); err != nil {
			return
		}
	}
	if pins.noPIN || pins.user != nil {
		pin := pins.user
		if pins.noPIN {
			pin = nil
		}
		var u pinSeal
		if u, err = s.sealRoot(f, root, User, pin); err != nil {
			return
		}
		f.User = &u
	}
	f.MAC = root.mac(f)
	return root, public, nil
}

// sealRoot seals a root secret under a PIN, for a user also without one, if pin
// is nil. The user's seal is under the token's binding, the SO's under none and
// with the approver's secret beside the root secret, so that the SO can always
// let the token open again.
func (s *Store) sealRoot(f *tokenFile, root *keyring, r Role, pin []byte) (pinSeal, error) {
	p := pinSeal{NoPIN: r == User && pin == nil}
	var auth *secmem.Buffer
	var err error
	if !p.NoPIN {
		if p.KDF, err = newKDF(); err != nil {
			return p, err
		}
		if auth, err = pinAuth(r, p.KDF, pin); err != nil {
			return p, err
		}
		defer auth.Destroy()
	}
	secret, err := secmem.New(2 * secretSize)
	if err != nil {
		return p, fmt.Errorf("secret memory: %w", err)
	}
	defer secret.Destroy()
	payload := secret.Bytes()[:secretSize]
	o := SealOptions{DictionaryAttack: !p.NoPIN, Binding: f.Binding}
	if r == SO {
		payload, o.Binding = secret.Bytes(), nil
		secmem.Copy(payload[secretSize:], root.approver())
	}
	secmem.Copy(payload, root.secret())
	if p.Blob, err = s.sealer.Seal(f.Parent, payload, auth.Bytes(), o); err == nil {
		err = s.verifySeal(f.Parent, p.Blob, auth.Bytes(), payload)
	}
	if err != nil {
		return p, fmt.Errorf("sealing the root secret for the %s: %w", r, err)
	}
	return p, nil
}

// verifySeal opens a new seal again before anything depends on it: a token
// whose secret does not come back is lost with all that is in it. want may be
// the beginning of what is sealed.
func (s *Store) verifySeal(parent []byte, b Blob, auth, want []byte) error {
	if err := checkBlob(b); err != nil {
		return err
	}
	got, err := secmem.New(MaxSecret)
	if err != nil {
		return fmt.Errorf("secret memory: %w", err)
	}
	defer got.Destroy()
	n, err := s.sealer.Unseal(parent, b, auth, got.Bytes())
	if err != nil {
		return err
	}
	if n < len(want) || subtle.ConstantTimeCompare(got.Bytes()[:len(want)], want) != 1 {
		return fmt.Errorf("%w: the new seal does not give its secret back", ErrIntegrity)
	}
	return nil
}

// buildNew is build for a token that gets its secrets, and has no objects yet.
func (s *Store) buildNew(f *tokenFile, pins pinsOf, binding *BindingSpec) (string, error) {
	root, public, err := s.initialise(f, pins, binding)
	if err != nil {
		return "", err
	}
	root.destroy()
	public.destroy()
	return s.build(f, nil)
}

// build writes a complete token under a temporary name, or nothing. fill adds
// the objects to their directory; nil: there are none.
func (s *Store) build(f *tokenFile, fill func(objects string) error) (string, error) {
	temp := filepath.Join(s.tokensDir(), tempName())
	if err := os.Mkdir(temp, 0o700); err != nil {
		return "", writeError(temp, err)
	}
	err := inherit(s.tokensDir(), temp)
	if err == nil {
		err = fillDir(temp, f)
	}
	if err != nil {
		err = writeError(temp, err)
	} else if fill != nil {
		err = fill(filepath.Join(temp, objectsName))
	}
	if err != nil {
		os.RemoveAll(temp)
		return "", err
	}
	return temp, nil
}

func fillDir(dir string, f *tokenFile) error {
	objects := filepath.Join(dir, objectsName)
	if err := os.Mkdir(objects, 0o700); err != nil {
		return err
	}
	if err := inherit(dir, objects); err != nil {
		return err
	}
	l, err := os.OpenFile(filepath.Join(dir, lockName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := l.Close(); err != nil {
		return err
	}
	if err := writeFile(dir, tokenName, f.encode(), false); err != nil {
		return err
	}
	return syncDir(objects)
}

// Reinit makes a token anew in its place: same serial number, slot and SO PIN,
// new secrets, no user PIN, no objects. The TPM checks the SO PIN. Whatever
// happens meanwhile, the old token is there or the new one. Its binding is the
// one given.
func (s *Store) Reinit(serial, label string, soPIN []byte, binding *BindingSpec) (TokenInfo, error) {
	info, err := s.reinit(serial, label, soPIN, binding)
	if err != nil {
		return TokenInfo{}, fmt.Errorf("initialising token %s: %w", serial, err)
	}
	return info, nil
}

func (s *Store) reinit(serial, label string, soPIN []byte, binding *BindingSpec) (TokenInfo, error) {
	t, err := s.Token(serial)
	if err != nil {
		return TokenInfo{}, err
	}
	padded, err := padLabel(label)
	if err != nil {
		return TokenInfo{}, err
	}
	all, err := s.lock()
	if err != nil {
		return TokenInfo{}, err
	}
	defer all.unlock()
	l, err := t.lock()
	if err != nil {
		return TokenInfo{}, err
	}
	defer l.unlock()
	old, _, err := readToken(t.path, serial)
	if err != nil {
		return TokenInfo{}, err
	}
	known, err := t.openRoot(old, SO, soPIN)
	if err != nil {
		return TokenInfo{}, err
	}
	known.destroy()

	removeTemps(s.tokensDir())
	f := &tokenFile{Serial: old.Serial, Slot: old.Slot, Created: uint64(time.Now().Unix()), Label: padded}
	temp, err := s.buildNew(f, pinsOf{so: soPIN}, binding)
	if err != nil {
		return TokenInfo{}, err
	}
	defer os.RemoveAll(temp) // holds the old token once they have changed places
	if err = s.exchange(temp, t.path); unsupported(err) {
		err = t.replaceInPlace(f)
	}
	if err != nil {
		return TokenInfo{}, writeError(t.path, err)
	}
	t.drop()
	return f.info(), nil
}

// exchange has a token that was built change places with one that is there.
func (s *Store) exchange(temp, path string) error {
	swap := func() error {
		return retry(func() error {
			return renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
		})
	}
	err := swap()
	if err != nil {
		return err
	}
	if err = syncDir(s.tokensDir()); err != nil {
		// The caller removes temp, and reports that nothing has changed.
		swap()
	}
	return err
}

// Delete removes a token with all that is in it. The TPM checks the SO PIN.
// Whatever happens meanwhile, the whole token is there or none of it is seen.
func (s *Store) Delete(serial string, soPIN []byte) error {
	return s.delete(serial, soPIN, func(*Token) error { return nil })
}

// delete is Delete where check, which runs under the token's lock, lets it.
func (s *Store) delete(serial string, soPIN []byte, check func(*Token) error) error {
	t, err := s.Token(serial)
	if err != nil {
		return err
	}
	all, err := s.lock()
	if err != nil {
		return err
	}
	defer all.unlock()
	l, err := t.lock()
	if err != nil {
		return err
	}
	defer l.unlock()
	f, _, err := readToken(t.path, serial)
	if err == nil {
		err = check(t)
	}
	if err != nil {
		return err
	}
	root, err := t.openRoot(f, SO, soPIN)
	if err != nil {
		return err
	}
	root.destroy()
	removeTemps(s.tokensDir())
	gone := filepath.Join(s.tokensDir(), tempName())
	if err := os.Rename(t.path, gone); err != nil {
		return writeError(t.path, err)
	}
	t.drop()
	if err := syncDir(s.tokensDir()); err != nil {
		return writeError(t.path, err)
	}
	if err := os.RemoveAll(gone); err != nil {
		return writeError(gone, err)
	}
	return nil
}

// replaceInPlace is for file systems that cannot exchange directories. The
// token file decides which token is there; the old objects have become
// unreadable with the old one and are removed after it.
func (t *Token) replaceInPlace(f *tokenFile) error {
	if err := writeFile(t.path, tokenName, f.encode(), true); err != nil {
		return err
	}
	if err := t.dropSnapshot(); err != nil {
		return err
	}
	objects := filepath.Join(t.path, objectsName)
	names, err := os.ReadDir(objects)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := os.Remove(filepath.Join(objects, n.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncDir(objects)
}

// same reports that two token files are one and the same version.
func (f *tokenFile) same(g *tokenFile) bool {
	return f == g || f != nil && g != nil && bytes.Equal(f.encode(), g.encode())
}
