package sealstore

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// ID names an object in its token.
type ID [16]byte

func (id ID) compare(other ID) int { return bytes.Compare(id[:], other[:]) }

// Object is an object of a token.
type Object struct {
	ID      ID
	Private bool   // only there for the user who is logged in
	Body    []byte // not to be modified
	Sealed  bool   // carries a secret of its own, for Unseal, or
	Device  bool   // a key that the device has made, for Sign
	Stamp   uint64 // another one whenever the object has changed, in this process
}

// entry is what is known of an object's file. There may be many thousands, so
// that it holds no more of the file than it will be asked for.
type entry struct {
	id      fileID
	hash    [sha256.Size]byte
	stamp   uint64
	file    *objectFile // nil: an open public object without a seal, or a malformed file
	body    []byte
	bad     error // why the object cannot be used
	flags   byte  // of the file
	open    bool  // body is decrypted
	settled bool  // the times of the file can be trusted
}

func (e *entry) private() bool { return e.flags&flagPrivate != 0 }
func (e *entry) device() bool  { return e.flags&flagDevice != 0 }
func (e *entry) sealed() bool  { return e.flags&flagSealed != 0 && !e.device() }

// Objects lists the public objects, and the private ones while the user is
// logged in, by ID. Files that have not changed are not read again. Damaged
// ones are logged once and left out.
func (t *Token) Objects() ([]Object, error) {
	out, _, err := t.scan(false)
	return out, err
}

// Version stands for a list of objects, in this process. The zero Version
// stands for none.
type Version struct {
	changes uint64
	user    bool // with the private ones
}

// lookAgain is how long a directory that has not changed is taken as proof that
// no file in it has: nothing but a program that is not this one changes a file
// in its place.
const lookAgain = time.Second

// look is a look at all files of objects.
type look struct {
	dir  fileID
	at   time.Time
	user bool
}

// ObjectsSince is Objects, with the Version of the list. Where it still is the
// one that is given, the list is nil.
func (t *Token) ObjectsSince(last Version) ([]Object, Version, error) {
	v, err := t.begin(true)
	if err != nil {
		return nil, Version{}, err
	}
	defer v.end()
	t.cache.Lock()
	defer t.cache.Unlock()
	if now := v.version(); now == last && v.unchanged() {
		return nil, now, nil
	}
	out, _, err := v.scan(false)
	if now := v.version(); err != nil || now != last {
		return out, now, err
	}
	return nil, last, nil
}

// version tells which list of objects is known. Token.cache is held.
func (v *view) version() Version { return Version{v.t.changes + 1, v.userIn()} }

// unchanged tells whether the last look at the objects would show nothing new,
// were it repeated. Token.cache is held.
func (v *view) unchanged() bool {
	w := &v.t.whole
	if v.t.of != v.file.instance() || w.user != v.userIn() || !w.dir.settled(w.at) || time.Since(w.at) > lookAgain {
		return false
	}
	id, err := statAt(v.dir, objectsName)
	return err == nil && id == w.dir
}

// scan lists the objects, and the files that should be objects and are not. With
// reread, every file is read, whatever is known of it.
func (t *Token) scan(reread bool) (out []Object, left []Damage, err error) {
	v, err := t.begin(true)
	if err != nil {
		return nil, nil, err
	}
	defer v.end()
	t.cache.Lock()
	defer t.cache.Unlock()
	return v.scan(reread)
}

// scan is Token.scan. Token.cache is held.
func (v *view) scan(reread bool) (out []Object, left []Damage, err error) {
	t := v.t
	seenAs := look{at: time.Now(), user: v.userIn()}
	if seenAs.dir, err = statAt(v.dir, objectsName); err != nil {
		seenAs.dir = fileID{} // is told below
	}
	t.whole = look{}
	dir, err := v.objects()
	if errors.Is(err, ErrNotFound) {
		t.objects = nil
		t.changes++
		return nil, []Damage{{filepath.Join(t.path, objectsName), err}}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer dir.Close()
	opened := func() {}
	if len(t.objects) == 0 && !reread {
		opened = beside(func() { v.saved = v.snapshot() })
	}
	ids, foreign, err := listObjects(dir)
	opened()
	if err != nil {
		return nil, nil, readError(dir.Name(), err)
	}
	for _, n := range foreign {
		t.store.report(filepath.Join(dir.Name(), n), fileID{}, "ignoring a foreign file", errors.New("its name is not an object's"))
	}
	if t.objects == nil {
		t.objects = make(map[ID]*entry, len(ids))
	}
	there := 0 // entries whose files are
	out = make([]Object, 0, len(ids))
	for _, l := range v.lookAll(dir, ids, reread) {
		e, err := v.enter(dir, l)
		if t.objects[l.id] != nil {
			there++
		}
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			left = append(left, Damage{filepath.Join(dir.Name(), idName(l.id)), err})
		case e.open && (!e.private() || v.userIn()):
			out = append(out, v.object(l.id, e))
		}
	}
	if there < len(t.objects) {
		for id, e := range t.objects {
			if _, found := slices.BinarySearchFunc(ids, id, ID.compare); !found {
				e.wipe()
				delete(t.objects, id)
				t.changes++
			}
		}
	}
	t.whole = seenAs
	return out, left, nil
}

func (v *view) userIn() bool { return v.t.root != nil && v.t.role == User }

// object makes a caller's Object of an entry. The body of a private object is a
// copy, since Logout wipes the original.
func (v *view) object(id ID, e *entry) Object {
	o := Object{ID: id, Private: e.private(), Sealed: e.sealed(), Device: e.device(), Stamp: e.stamp, Body: e.body}
	if o.Private {
		o.Body = bytes.Clone(e.body)
	}
	return o
}

// objects opens the directory of the objects. Token.cache is held.
func (v *view) objects() (*os.File, error) {
	t := v.t
	t.belong(v.file.instance())
	path := filepath.Join(t.path, objectsName)
	dir, err := openDir(int(v.dir.Fd()), objectsName, path)
	if err != nil {
		return nil, readError(path, err)
	}
	return dir, nil
}

// belong throws away what is known of another initialisation's objects.
func (t *Token) belong(in instance) {
	if t.of == in {
		return
	}
	for _, e := range t.objects {
		e.wipe()
	}
	t.objects, t.of = nil, in
	t.changes++
}

// refresh brings the entry of an object up to date, decrypting the body as far
// as the login allows. With reread, the file is read in any case. The entry may
// be bad, which is returned as the error too. Token.cache is held.
func (v *view) refresh(dir *os.File, id ID, reread bool) (*entry, error) {
	var l [1]looked
	v.look(dir, []ID{id}, l[:], new(shelf), reread)
	return v.enter(dir, l[0])
}

func (e *entry) wipe() {
	if e.private() {
		secmem.Wipe(e.body)
	}
	e.body, e.open = nil, false
}

// forgetPrivate wipes the bodies of private objects.
func (t *Token) forgetPrivate() {
	t.cache.Lock()
	defer t.cache.Unlock()
	t.checked = nil
	t.changes++
	for _, e := range t.objects {
		if e.private() {
			e.wipe()
		}
	}
}

// walk reads the file of every object with the keyring that it is under: root,
// or that of public objects, which it opens as f says. What fails of one does
// not keep it from the others; all errors are returned.
func (t *Token) walk(f *tokenFile, root *keyring, progress Progress, visit func(*objectFile, *keyring) error) error {
	public, err := t.unsealRing(f, f.Public, nil, false)
	if err != nil {
		return err
	}
	defer public.destroy()
	path := filepath.Join(t.path, objectsName)
	dir, err := openDir(unix.AT_FDCWD, path, path)
	if err != nil {
		return readError(path, err)
	}
	defer dir.Close()
	ids, _, err := listObjects(dir)
	if err != nil {
		return readError(path, err)
	}
	var failed []error
	for i, id := range ids {
		p, _, err := readAt(dir, idName(id), maxObjectFile)
		var o *objectFile
		if err == nil {
			o, err = decodeObject(p)
		}
		if err == nil {
			err = t.own(o, id)
		}
		if err == nil {
			k := public
			if o.private() {
				k = root
			}
			err = visit(o, k)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", filepath.Join(path, idName(id)), err))
		}
		progress.step(i+1, len(ids))
	}
	return errors.Join(failed...)
}

// own makes sure that a file is that of an object of the token.
func (t *Token) own(o *objectFile, id ID) error {
	switch {
	case o.ID != id:
		return fmt.Errorf("%w: it is the file of object %x", ErrIntegrity, o.ID)
	case o.Serial != t.raw:
		return fmt.Errorf("%w: it belongs to token %x", ErrIntegrity, o.Serial)
	}
	return nil
}

// find returns the entry of an object that can be used now. Token.cache is held.
func (v *view) find(id ID, reread bool) (*entry, error) {
	dir, err := v.objects()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	e, err := v.refresh(dir, id, reread)
	if err != nil {
		return nil, err
	}
	if !e.open {
		_, err := v.ring(e.private())
		return nil, err
	}
	return e, nil
}

// Has tells whether an object's file is there, without reading it.
func (t *Token) Has(id ID) bool {
	var st unix.Stat_t
	return unix.Lstat(filepath.Join(t.path, objectsName, idName(id)), &st) == nil
}

// CreateObject stores an object. A secret, of 1 to 128 bytes, gets a seal of
// its own. about is a public statement on it, at most 64 bytes, that the Sealer
// records with the seal; it may be empty.
func (t *Token) CreateObject(private bool, body, secret, about []byte) (Object, error) {
	if err := checkObject(body, secret, about); err != nil {
		return Object{}, err
	}
	for {
		o, err := t.create(private, body, func(f *tokenFile, o *objectFile, k *keyring) error {
			if secret == nil {
				return nil
			}
			return t.store.sealObject(f, o, k, secret, about)
		})
		if !errors.Is(err, errRebound) {
			return o, err
		}
	}
}

// sweepAgain is how long what killed writers leave behind may lie there, while
// one writer writes on and on: to look takes longer the more objects there are.
const sweepAgain = time.Minute

// sweep is removeTemps for the directory of objects. The token's lock is held.
func (t *Token) sweep(objects string) {
	t.cache.Lock()
	due := time.Since(t.swept) > sweepAgain
	if due {
		t.swept = time.Now()
	}
	t.cache.Unlock()
	if due {
		removeTemps(objects)
	}
}

func checkObject(body, secret, about []byte) error {
	switch {
	case len(body) > MaxBody:
		return fmt.Errorf("object: %w: a body of %d bytes, at most %d", ErrTooLarge, len(body), MaxBody)
	case secret != nil && (len(secret) == 0 || len(secret) > MaxSecret):
		return fmt.Errorf("object: %w: a secret of %d bytes, 1 to %d are possible", ErrTooLarge, len(secret), MaxSecret)
	case len(about) > MaxAbout || secret == nil && len(about) > 0:
		return fmt.Errorf("object: %w: %d bytes about a secret, at most %d", ErrTooLarge, len(about), MaxAbout)
	}
	return nil
}

// errRebound: the token was bound or unbound while an object was sealed.
var errRebound = errors.New("the token's binding changed meanwhile")

// create stores an object; seal makes its seal, if it shall have one.
func (t *Token) create(private bool, body []byte, seal func(*tokenFile, *objectFile, *keyring) error) (Object, error) {
	f, in, err := t.encrypt(private, body, seal)
	if err != nil {
		return Object{}, err
	}
	l, err := t.lock()
	if err != nil {
		return Object{}, err
	}
	defer l.unlock()
	now, _, err := readToken(t.path, t.serial)
	if err != nil {
		return Object{}, err
	}
	if now.instance() != in {
		return Object{}, fmt.Errorf("token %s: %w: it was initialised anew", t.serial, ErrChanged)
	}
	if f.sealed() && !sameApprover(now.Binding, f.Seal.Binding) {
		return Object{}, errRebound
	}
	objects := filepath.Join(t.path, objectsName)
	t.sweep(objects)
	data := f.encode()
	if err := writeObject(objects, f.ID, data); err != nil {
		return Object{}, err
	}
	return t.remember(f, in, data, body)
}

// encrypt makes the file of a new object. The TPM is only asked here, so that
// its slowness keeps no other process waiting for the lock.
func (t *Token) encrypt(private bool, body []byte, seal func(*tokenFile, *objectFile, *keyring) error) (*objectFile, instance, error) {
	v, err := t.begin(!private)
	if err != nil {
		return nil, instance{}, err
	}
	defer v.end()
	k, err := v.ring(private)
	if err != nil {
		return nil, instance{}, err
	}
	f := &objectFile{Serial: t.raw}
	if private {
		f.Flags |= flagPrivate
	}
	if _, err := rand.Read(f.ID[:]); err != nil {
		return nil, instance{}, err
	}
	if err := seal(v.file, f, k); err != nil {
		return nil, instance{}, fmt.Errorf("token %s: sealing an object: %w", t.serial, err)
	}
	if err := k.seal(f, body); err != nil {
		return nil, instance{}, err
	}
	return f, v.file.instance(), nil
}

// sealObject seals the secret of an object as its token wants it.
func (s *Store) sealObject(f *tokenFile, o *objectFile, k *keyring, secret, about []byte) error {
	// The authorisation value has 192 random bits, so nothing is won by
	// counting wrong ones, and a key stays usable while PINs are locked out.
	b, err := s.sealer.Seal(f.Parent, secret, k.auth(), SealOptions{Binding: f.Binding, Movable: f.recoverable(), About: about})
	if err == nil {
		err = checkBlob(b)
	}
	if err == nil {
		o.setSeal(b)
	}
	return err
}

// remember enters a file that was just written, under the token's lock.
func (t *Token) remember(f *objectFile, in instance, data, body []byte) (Object, error) {
	path := filepath.Join(t.path, objectsName)
	dir, err := openDir(unix.AT_FDCWD, path, path)
	if err != nil {
		return Object{}, readError(path, err)
	}
	defer dir.Close()
	id, err := statAt(dir, idName(f.ID))
	if err != nil {
		return Object{}, readError(filepath.Join(path, idName(f.ID)), err)
	}
	t.cache.Lock()
	defer t.cache.Unlock()
	if old := t.objects[f.ID]; old != nil {
		old.wipe()
	}
	t.stamps++
	e := &entry{id: id, hash: sha256.Sum256(data), stamp: t.stamps, file: f, flags: f.Flags}
	t.belong(in)
	if t.objects == nil {
		t.objects = map[ID]*entry{}
	}
	t.objects[f.ID] = e
	t.changes++
	return Object{ID: f.ID, Private: f.private(), Sealed: f.sealed() && !f.device(), Device: f.device(), Stamp: e.stamp, Body: bytes.Clone(body)}, nil
}

// UpdateObject replaces the body of an object, provided that it still is what
// it was when it got stamp. The seal stays.
func (t *Token) UpdateObject(id ID, stamp uint64, body []byte) (Object, error) {
	if len(body) > MaxBody {
		return Object{}, fmt.Errorf("object: %w: a body of %d bytes, at most %d", ErrTooLarge, len(body), MaxBody)
	}
	l, err := t.lock()
	if err != nil {
		return Object{}, err
	}
	defer l.unlock()
	f, in, err := t.reencrypt(id, stamp, body)
	if err != nil {
		return Object{}, err
	}
	objects := filepath.Join(t.path, objectsName)
	t.sweep(objects)
	data := f.encode()
	if err := t.dropSnapshot(); err != nil {
		return Object{}, err
	}
	if err := writeFile(objects, idName(id), data, true); err != nil {
		return Object{}, writeError(filepath.Join(objects, idName(id)), err)
	}
	return t.remember(f, in, data, body)
}

func (t *Token) reencrypt(id ID, stamp uint64, body []byte) (*objectFile, instance, error) {
	v, err := t.begin(true)
	if err != nil {
		return nil, instance{}, err
	}
	defer v.end()
	t.cache.Lock()
	defer t.cache.Unlock()
	e, err := v.find(id, true)
	if err != nil {
		return nil, instance{}, err
	}
	if e.stamp != stamp {
		return nil, instance{}, fmt.Errorf("object %s of token %s: %w", idName(id), t.serial, ErrChanged)
	}
	k, err := v.ring(e.private())
	if err != nil {
		return nil, instance{}, err
	}
	f := objectFile{Flags: e.flags, ID: id, Serial: t.raw}
	if e.file != nil {
		f = *e.file
	}
	return &f, v.file.instance(), k.seal(&f, body)
}

// DeleteObject removes an object.
func (t *Token) DeleteObject(id ID) error {
	l, err := t.lock()
	if err != nil {
		return err
	}
	defer l.unlock()
	v, err := t.begin(true)
	if err != nil {
		return err
	}
	defer v.end()
	t.cache.Lock()
	defer t.cache.Unlock()
	if _, err := v.find(id, true); err != nil {
		return err
	}
	objects := filepath.Join(t.path, objectsName)
	removeTemps(objects)
	if err := t.dropSnapshot(); err != nil {
		return err
	}
	if err := removeFile(objects, idName(id)); err != nil {
		return err
	}
	t.objects[id].wipe()
	delete(t.objects, id)
	t.changes++
	return nil
}

// Unseal writes the secret of an object to dst, which is secret memory, and
// returns its length.
func (t *Token) Unseal(id ID, dst []byte) (int, error) {
	n, err := t.unseal(id, dst, false)
	if errors.Is(err, errPublic) {
		n, err = t.unseal(id, dst, true)
	}
	return n, err
}

func (t *Token) unseal(id ID, dst []byte, public bool) (int, error) {
	v, f, err := t.beginSealed(id, public, false)
	if err != nil {
		return 0, err
	}
	defer v.end()
	k, err := v.ring(f.private())
	if err != nil {
		return 0, err
	}
	n, err := t.unsealObject(v.file, f, k, dst)
	if err != nil {
		t.mismatched(err)
		return 0, fmt.Errorf("object %s of token %s: unsealing: %w", idName(id), t.serial, err)
	}
	t.tell(EventUnseal)
	return n, nil
}

// beginSealed is begin, and finds the seal of an object, or the key that the
// device has made.
func (t *Token) beginSealed(id ID, public, device bool) (*view, *objectFile, error) {
	if v, f := t.known(id, public, device); v != nil {
		return v, f, nil
	}
	v, err := t.begin(public)
	if err != nil {
		return nil, nil, err
	}
	f, err := v.sealed(id, device)
	if err != nil {
		v.end()
		return nil, nil, err
	}
	return v, f, nil
}

// known is beginSealed where nothing has changed: two files that are those that
// were read need no look into their directories. It gives nil where that is not
// so, and where something is wrong.
func (t *Token) known(id ID, public, device bool) (*view, *objectFile) {
	t.mu.RLock()
	f, o := t.knownFiles(id)
	if f != nil && o.sealed() && o.device() == device && (!public || t.public != nil) {
		if ok, err := t.fits(f); ok && err == nil {
			return &view{t: t, file: f}, o
		}
	}
	t.mu.RUnlock()
	return nil, nil
}

// knownFiles gives the token's file and an object's as they were read, if they
// are still those.
func (t *Token) knownFiles(id ID) (*tokenFile, *objectFile) {
	t.cache.Lock()
	defer t.cache.Unlock()
	e := t.objects[id]
	if t.file == nil || e == nil || e.file == nil || !e.open || e.bad != nil || !t.fileID.settled(t.fileAt) || !e.settled {
		return nil, nil
	}
	if now, err := statPath(filepath.Join(t.path, tokenName)); err != nil || now != t.fileID {
		return nil, nil
	}
	if now, err := statPath(filepath.Join(t.path, objectsName, idName(id))); err != nil || now != e.id {
		return nil, nil
	}
	return t.file, e.file
}

// sealed finds the seal of an object, or the key that the device has made.
func (v *view) sealed(id ID, device bool) (*objectFile, error) {
	v.t.cache.Lock()
	defer v.t.cache.Unlock()
	e, err := v.find(id, false)
	if err != nil {
		return nil, err
	}
	if e.flags&flagSealed == 0 || e.device() != device {
		return nil, fmt.Errorf("object %s of token %s: a sealed secret: %w", idName(id), v.t.serial, ErrNotFound)
	}
	return e.file, nil
}
