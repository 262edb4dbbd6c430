package sealstore

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// Role is who a PIN belongs to.
type Role int

const (
	User Role = iota // uses the objects
	SO               // the security officer: sets the user PIN
)

func (r Role) String() string {
	if r == SO {
		return "SO"
	}
	return "user"
}

// Token is an identity of a Store: its PINs and its objects.
//
// Locks are taken in this order: the file lock, Token.loading, Token.mu,
// Token.cache. No TPM command is sent while cache is held.
type Token struct {
	store  *Store
	serial string
	raw    [serialSize]byte
	path   string

	loading sync.Mutex // held while the public secret is unsealed

	// mu guards the secrets. Who uses one holds it for reading until done.
	mu   sync.RWMutex
	root *keyring // nil: logged out
	role Role     // of the login
	// loggedIn is whether root is there, for who cannot wait for mu.
	loggedIn atomic.Bool
	public   *keyring // nil: not needed so far

	cache   sync.Mutex // guards what follows
	file    *tokenFile // the version read last, with
	fileID  fileID
	fileAt  time.Time
	checked *keyring // the root under which file's MAC was found right
	objects map[ID]*entry
	of      instance // that the objects belong to
	stamps  uint64
	changes uint64 // counts what could make another list of objects
	unsaved int    // how many objects were read that a snapshot could have had
	whole   look   // the last one at all of them
	swept   time.Time
}

// Info tells what can be known of the token without a PIN, as it is on disk. It
// only looks whether that has changed, which each record of a signature asks.
func (t *Token) Info() (TokenInfo, error) {
	dir, err := openDir(unix.AT_FDCWD, t.path, t.path)
	if err != nil {
		return TokenInfo{}, readError(t.path, err)
	}
	defer dir.Close()
	f, err := t.read(dir)
	if err != nil {
		return TokenInfo{}, err
	}
	return f.info(), nil
}

// lock takes the lock under which the token's files are written.
func (t *Token) lock() (*fileLock, error) {
	if err := t.store.ours(); err != nil {
		return nil, err
	}
	path := filepath.Join(t.path, lockName)
	l, err := lock(path)
	if err != nil {
		return nil, writeError(path, err)
	}
	return l, nil
}

// read returns the current token file, which it only reads again if it is
// another than last time.
func (t *Token) read(dir *os.File) (*tokenFile, error) {
	t.cache.Lock()
	defer t.cache.Unlock()
	now := time.Now()
	if t.file != nil && t.fileID.settled(t.fileAt) {
		if id, err := statAt(dir, tokenName); err == nil && id == t.fileID {
			return t.file, nil
		}
	}
	f, id, err := readTokenAt(dir, t.path, t.serial)
	if err != nil {
		return nil, err
	}
	if !f.same(t.file) {
		t.file, t.checked = f, nil
	}
	t.fileID, t.fileAt = id, now
	return t.file, nil
}

// view is the token as it is on disk at one moment, with the secrets that fit.
// It holds Token.mu for reading until end.
type view struct {
	t     *Token
	dir   *os.File // nil where nothing more is read
	file  *tokenFile
	saved *snapshot // nil where objects are known
}

func (v *view) end() {
	v.t.mu.RUnlock()
	if v.dir != nil {
		v.dir.Close()
	}
}

// begin brings the login in line with what is on disk: when the token has been
// removed or initialised anew, it is over. With public, the public secret is
// made ready.
func (t *Token) begin(public bool) (*view, error) {
	for {
		dir, err := openDir(unix.AT_FDCWD, t.path, t.path)
		if err != nil {
			err = readError(t.path, err)
			if errors.Is(err, ErrNotFound) {
				t.drop()
			}
			return nil, err
		}
		f, err := t.read(dir)
		if err != nil {
			dir.Close()
			return nil, err
		}
		t.mu.RLock()
		ok, err := t.fits(f)
		if err == nil && ok && (!public || t.public != nil) {
			return &view{t: t, dir: dir, file: f}, nil
		}
		t.mu.RUnlock()
		dir.Close()
		if err != nil {
			t.drop()
			return nil, fmt.Errorf("%s: %w", filepath.Join(t.path, tokenName), err)
		}
		if !ok {
			t.shed(f.instance())
			continue
		}
		if err := t.loadPublic(f); err != nil {
			return nil, err
		}
	}
}

// fits reports whether the secrets held are those of f, and fails if f has
// been altered by somebody who does not know the root secret. Token.mu is held.
func (t *Token) fits(f *tokenFile) (bool, error) {
	for _, k := range []*keyring{t.root, t.public} {
		if k != nil && k.instance != f.instance() {
			return false, nil
		}
	}
	if t.root == nil {
		return true, nil
	}
	t.cache.Lock()
	defer t.cache.Unlock()
	if t.file == f && t.checked == t.root {
		return true, nil
	}
	if err := t.root.checkMAC(f); err != nil {
		return false, err
	}
	if t.file == f {
		t.checked = t.root
	}
	return true, nil
}

// loadPublic unseals the public secret, once for all that wait for it.
func (t *Token) loadPublic(f *tokenFile) error {
	t.loading.Lock()
	defer t.loading.Unlock()
	t.mu.RLock()
	done := t.public != nil
	t.mu.RUnlock()
	if done {
		return nil
	}
	k, err := t.unsealRing(f, f.Public, nil, false)
	if err != nil {
		return fmt.Errorf("token %s: unsealing the public secret: %w", t.serial, err)
	}
	t.mu.Lock()
	t.public = k
	t.mu.Unlock()
	return nil
}

// unsealRing opens one of the token's seals and derives the keys.
func (t *Token) unsealRing(f *tokenFile, b Blob, auth []byte, private bool) (*keyring, error) {
	k, err := newKeyring()
	if err != nil {
		return nil, err
	}
	// The SO's seal holds the approver's secret too.
	secret, err := secmem.New(MaxSecret)
	if err != nil {
		k.destroy()
		return nil, fmt.Errorf("secret memory: %w", err)
	}
	defer secret.Destroy()
	n, err := t.store.sealer.Unseal(f.Parent, b, auth, secret.Bytes())
	err = t.store.parentDamage(f, err)
	if err == nil && n != secretSize && n != 2*secretSize {
		err = fmt.Errorf("%w: the seal holds %d bytes, not %d", ErrIntegrity, n, secretSize)
	}
	if err == nil {
		secmem.Copy(k.secret(), secret.Bytes()[:secretSize])
		secmem.Copy(k.approver(), secret.Bytes()[secretSize:n])
		err = k.derive(private)
	}
	if err != nil {
		k.destroy()
		return nil, err
	}
	k.instance = f.instance()
	return k, nil
}

// openRoot opens the root secret with a PIN, an empty one where the token needs
// none, and checks the token file with it.
func (t *Token) openRoot(f *tokenFile, r Role, pin []byte) (_ *keyring, err error) {
	tried := false
	defer func() { t.refused(r, err, tried) }()
	s := &f.SO
	if r == User {
		if s = f.User; s == nil {
			return nil, fmt.Errorf("token %s: %w", t.serial, ErrNoPIN)
		}
	}
	var auth *secmem.Buffer
	with := fmt.Sprintf("with the %s PIN", r)
	switch {
	case s.NoPIN && len(pin) != 0:
		return nil, fmt.Errorf("token %s: %w, and needs none", t.serial, ErrNoPIN)
	case s.NoPIN:
		with = "without a PIN"
	case checkPIN(pin) != nil:
		// No such PIN was ever set, so that none of the TPM's tries is spent on it.
		return nil, fmt.Errorf("token %s: %w", t.serial, ErrAuth)
	default:
		if auth, err = pinAuth(r, s.KDF, pin); err != nil {
			return nil, err
		}
		defer auth.Destroy()
	}
	tried = true
	k, err := t.unsealRing(f, s.Blob, auth.Bytes(), true)
	if err != nil {
		return nil, fmt.Errorf("token %s: unsealing the root secret %s: %w", t.serial, with, err)
	}
	if err := k.checkMAC(f); err != nil {
		k.destroy()
		return nil, fmt.Errorf("%s: %w", filepath.Join(t.path, tokenName), err)
	}
	return k, nil
}

// LoggedIn tells whether the root secret of a login is still held: it is
// dropped when the token turns out to be another one, or gone.
func (t *Token) LoggedIn() bool {
	return t.loggedIn.Load()
}

// setRoot begins or ends a login. Token.mu is held.
func (t *Token) setRoot(k *keyring, r Role) {
	t.root, t.role = k, r
	t.loggedIn.Store(k != nil)
}

// Login checks a PIN with the TPM and keeps the root secret until Logout.
func (t *Token) Login(r Role, pin []byte) error {
	f, _, err := readToken(t.path, t.serial)
	if err != nil {
		return err
	}
	k, err := t.openRoot(f, r, pin)
	if err != nil {
		return err
	}
	t.mu.Lock()
	old := t.root
	t.setRoot(k, r)
	t.mu.Unlock()
	old.destroy()
	if r != User {
		t.forgetPrivate()
	}
	t.entered(r)
	return nil
}

// Closed tells whether the token holds private objects that only a login
// opens, as far as Objects has seen them.
func (t *Token) Closed() bool {
	t.cache.Lock()
	defer t.cache.Unlock()
	for _, e := range t.objects {
		if e.bad == nil && !e.open {
			return true
		}
	}
	return false
}

// Logout wipes the root secret and what was decrypted with it, after the
// operations that are using it at the moment.
func (t *Token) Logout() {
	t.mu.Lock()
	t.root.destroy()
	out := t.root != nil
	t.setRoot(nil, User)
	t.mu.Unlock()
	t.forgetPrivate()
	if out {
		t.left()
		t.store.sealer.Release()
	}
}

// drop wipes all secrets.
func (t *Token) drop() {
	t.mu.Lock()
	t.public.destroy()
	t.public = nil
	t.mu.Unlock()
	t.Logout()
}

// shed wipes the secrets that are of another initialisation than in.
func (t *Token) shed(in instance) {
	t.mu.Lock()
	if t.public != nil && t.public.instance != in {
		t.public.destroy()
		t.public = nil
	}
	out := t.root != nil && t.root.instance != in
	if out {
		t.root.destroy()
		t.setRoot(nil, User)
	}
	t.mu.Unlock()
	if out {
		t.forgetPrivate()
		t.left()
		t.store.sealer.Release()
	}
}

// errPublic: the public secret has to be made ready first.
var errPublic = errors.New("the public secret is not unsealed")

// ring returns the keys for a class of objects. Token.mu is held.
func (v *view) ring(private bool) (*keyring, error) {
	if !private {
		if v.t.public == nil {
			return nil, errPublic
		}
		return v.t.public, nil
	}
	if v.t.root == nil || v.t.role != User {
		return nil, fmt.Errorf("token %s: %w as user", v.t.serial, ErrLocked)
	}
	return v.t.root, nil
}

// SetPIN replaces a PIN by another. The TPM checks the old one; no login is
// needed, and one that exists goes on.
func (t *Token) SetPIN(r Role, old, new []byte) error {
	if err := checkPIN(new); err != nil {
		return err
	}
	return t.rewrite(func(f *tokenFile) (*keyring, error) {
		root, err := t.openRoot(f, r, old)
		if err != nil {
			return nil, err
		}
		s := &f.SO
		if r == User {
			s = f.User
		}
		if s.NoPIN {
			root.destroy()
			return nil, fmt.Errorf("token %s: %w, and needs none", t.serial, ErrNoPIN)
		}
		if err := t.changePIN(f.Parent, root, r, s, old, new); err != nil {
			root.destroy()
			return nil, fmt.Errorf("token %s: changing the %s PIN: %w", t.serial, r, err)
		}
		return root, nil
	})
}

func (t *Token) changePIN(parent []byte, root *keyring, r Role, s *pinSeal, old, new []byte) error {
	oldAuth, err := pinAuth(r, s.KDF, old)
	if err != nil {
		return err
	}
	defer oldAuth.Destroy()
	k, err := newKDF()
	if err != nil {
		return err
	}
	newAuth, err := pinAuth(r, k, new)
	if err != nil {
		return err
	}
	defer newAuth.Destroy()
	b, err := t.store.sealer.ChangeAuth(parent, s.Blob, oldAuth.Bytes(), newAuth.Bytes())
	if err != nil {
		return err
	}
	if err := t.store.verifySeal(parent, b, newAuth.Bytes(), root.secret()); err != nil {
		return err
	}
	*s = pinSeal{KDF: k, Blob: b}
	return nil
}

// InitUserPIN sets the user PIN, whatever it was, for the SO who is logged in.
// A token that needed none needs this one from now on.
func (t *Token) InitUserPIN(pin []byte) error {
	if err := checkPIN(pin); err != nil {
		return err
	}
	return t.rewrite(func(f *tokenFile) (*keyring, error) {
		v, err := t.begin(false)
		if err != nil {
			return nil, err
		}
		defer v.end()
		if t.root == nil || t.role != SO {
			return nil, fmt.Errorf("token %s: %w as SO", t.serial, ErrLocked)
		}
		if !f.same(v.file) {
			return nil, fmt.Errorf("token %s: %w", t.serial, ErrChanged)
		}
		s, err := t.store.sealRoot(f, t.root, User, pin)
		if err != nil {
			return nil, fmt.Errorf("token %s: %w", t.serial, err)
		}
		f.User = &s
		// A copy, because the MAC is made after the view has ended.
		k, err := newKeyring()
		if err != nil {
			return nil, err
		}
		secmem.Copy(k.buf.Bytes(), t.root.buf.Bytes())
		return k, nil
	})
}

// rewrite changes the token file under the token's lock. change returns the
// root secret, which rewrite destroys.
func (t *Token) rewrite(change func(*tokenFile) (*keyring, error)) error {
	return t.locked(func(f *tokenFile) error {
		root, err := change(f)
		if err != nil {
			return err
		}
		defer root.destroy()
		return t.write(f, root)
	})
}

// locked runs change on the token file as it is, under the token's lock.
func (t *Token) locked(change func(*tokenFile) error) error {
	l, err := t.lock()
	if err != nil {
		return err
	}
	defer l.unlock()
	removeTemps(t.path)
	f, _, err := readToken(t.path, t.serial)
	if err != nil {
		return err
	}
	return change(f)
}

// write replaces the token file. The token's lock is held.
func (t *Token) write(f *tokenFile, root *keyring) error {
	f.MAC = root.mac(f)
	if err := writeFile(t.path, tokenName, f.encode(), true); err != nil {
		return writeError(filepath.Join(t.path, tokenName), err)
	}
	return nil
}

// Rename gives a token another label, for the SO.
func (t *Token) Rename(soPIN []byte, label string) error {
	padded, err := padLabel(label)
	if err != nil {
		return err
	}
	return t.rewrite(func(f *tokenFile) (*keyring, error) {
		root, err := t.openRoot(f, SO, soPIN)
		if err != nil {
			return nil, err
		}
		f.Label = padded
		return root, nil
	})
}

func idName(id ID) string { return hex.EncodeToString(id[:]) }

// parseID takes an object's file name apart.
func parseID(name string) (id ID, ok bool) {
	if len(name) != 2*len(id) || strings.ContainsAny(name, "ABCDEF") {
		return id, false
	}
	if _, err := hex.Decode(id[:], []byte(name)); err != nil {
		return ID{}, false
	}
	return id, true
}
