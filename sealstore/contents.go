package sealstore

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// Progress is told how many of the steps of a long operation are done. It may
// be nil.
type Progress func(done, total int)

func (p Progress) step(done, total int) {
	if p != nil {
		p(done, total)
	}
}

// Contents is a recoverable token outside of its TPM: all that a backup holds
// and another TPM gets. Its secrets are in secret memory.
type Contents struct {
	Serial  string
	Label   string
	Slot    uint32
	Created time.Time
	UserPIN bool         // a user PIN is set
	NoPIN   bool         // the user needs none
	Binding *BindingSpec // nil: not bound to the platform
	Objects []Content    // by ID
	// Fixed are the objects that stay behind: keys that the device has made and
	// never gives out.
	Fixed []ID

	pages []*secmem.Buffer
	left  []byte // of the last page
}

// Content is an object of a Contents.
type Content struct {
	ID      ID
	Private bool
	Body    []byte
	Secret  []byte // of SecretBuffer; nil: it has none
	About   []byte // as CreateObject got it
}

// SecretBuffer gives n bytes of secret memory, 1 to [MaxSecret], which Destroy
// wipes.
func (c *Contents) SecretBuffer(n int) ([]byte, error) {
	if n < 1 || n > MaxSecret {
		return nil, fmt.Errorf("a secret of %d bytes: %w", n, ErrTooLarge)
	}
	if len(c.left) < n {
		page, err := secmem.New(secmem.Max)
		if err != nil {
			return nil, err
		}
		c.pages = append(c.pages, page)
		c.left = page.Bytes()
	}
	b := c.left[:n:n]
	c.left = c.left[n:]
	return b, nil
}

// Destroy wipes all that is secret. A nil Contents may be destroyed.
func (c *Contents) Destroy() {
	if c == nil {
		return
	}
	for i := range c.Objects {
		if o := &c.Objects[i]; o.Private {
			secmem.Wipe(o.Body)
		}
	}
	for _, p := range c.pages {
		p.Destroy()
	}
	c.Objects, c.pages, c.left = nil, nil, nil
}

// Check tells whether a Contents can be restored: all that the store would
// refuse of it.
func (c *Contents) Check() error {
	if !ValidSerial(c.Serial) {
		return fmt.Errorf("%w: serial number %q", ErrIntegrity, c.Serial)
	}
	if _, err := padLabel(c.Label); err != nil {
		return err
	}
	if s := c.Created.Unix(); c.Slot > MaxSlot || s < 0 || s > MaxCreated || c.UserPIN && c.NoPIN {
		return fmt.Errorf("%w: slot %d, created %d, PIN set %t and not needed %t", ErrIntegrity, c.Slot, s, c.UserPIN, c.NoPIN)
	}
	if c.Binding != nil {
		if err := c.Binding.Check(); err != nil {
			return err
		}
	}
	seen := map[ID]bool{}
	for _, o := range c.Objects {
		if seen[o.ID] {
			return fmt.Errorf("%w: two objects %x", ErrIntegrity, o.ID)
		}
		seen[o.ID] = true
		if err := checkObject(o.Body, o.Secret, o.About); err != nil {
			return err
		}
	}
	return nil
}

// openBoth opens the root secret with the SO's PIN, and makes sure of the
// user's where the token has one.
func (t *Token) openBoth(f *tokenFile, userPIN, soPIN []byte) (*keyring, error) {
	root, err := t.openRoot(f, SO, soPIN)
	if err != nil {
		return nil, err
	}
	if f.User == nil {
		return root, nil
	}
	if f.User.NoPIN {
		userPIN = nil
	}
	user, err := t.openRoot(f, User, userPIN)
	if err != nil {
		root.destroy()
		return nil, err
	}
	user.destroy()
	return root, nil
}

// still keeps writers out while several files are read. Of a store that cannot
// be written, where none is expected, no lock can be taken.
func (t *Token) still(read func() error) error {
	if t.Writable() == nil {
		l, err := t.lock()
		if err != nil {
			return err
		}
		defer l.unlock()
	}
	return read()
}

// Export opens a recoverable token, with both its PINs, and takes out all that
// is in it. The caller destroys the result. It fails with ErrNotRecoverable,
// and where a single object cannot be read.
func (t *Token) Export(userPIN, soPIN []byte, progress Progress) (c *Contents, err error) {
	err = t.still(func() error {
		f, _, err := readToken(t.path, t.serial)
		if err != nil {
			return err
		}
		if !f.recoverable() {
			return fmt.Errorf("token %s: %w", t.serial, ErrNotRecoverable)
		}
		root, err := t.openBoth(f, userPIN, soPIN)
		if err != nil {
			return err
		}
		defer root.destroy()
		i := f.info()
		c = &Contents{Serial: i.Serial, Label: i.Label, Slot: i.Slot, Created: i.Created, UserPIN: i.UserPIN, NoPIN: i.NoPIN}
		if f.Binding != nil {
			c.Binding = &BindingSpec{Bank: f.Binding.Bank, PCRs: slices.Clone(f.Binding.PCRs)}
		}
		return t.walk(f, root, progress, func(o *objectFile, k *keyring) error {
			if o.device() {
				c.Fixed = append(c.Fixed, o.ID)
				return nil
			}
			x := Content{ID: o.ID, Private: o.private(), About: o.about()}
			err := k.with(o, func(body []byte) error {
				x.Body = slices.Clone(body)
				return nil
			})
			if err != nil {
				return err
			}
			c.Objects = append(c.Objects, x)
			if !o.sealed() {
				return nil
			}
			secret, err := c.SecretBuffer(MaxSecret)
			if err != nil {
				return err
			}
			n, err := t.unsealObject(f, o, k, secret)
			if err != nil {
				return err
			}
			c.Objects[len(c.Objects)-1].Secret = secret[:n:n]
			return nil
		})
	})
	if err != nil {
		c.Destroy()
		return nil, fmt.Errorf("taking out token %s: %w", t.serial, err)
	}
	return c, nil
}

// RestoreParams says how a token is put into a store.
type RestoreParams struct {
	// The PINs: of Restore, those that the token gets; of RestoreFiles, those
	// that it has. The user's is nil where the token has or needs none.
	UserPIN, SOPIN []byte
	Label          string   // the token's label from now on; empty: as it was
	Reserved       []uint32 // slot numbers that are kept for other tokens
	// Replace lets the token take the place of one with its serial number. The
	// one that was there is gone afterwards, with all that was in it.
	Replace  bool
	Progress Progress
}

// Restore makes a token of a Contents: under a storage root key and PINs of
// its own, and bound to the present state of the platform where it was bound.
// Serial number, objects and their IDs are what they were, and the slot number
// where it is free. Every seal is opened once before the token is put in its
// place; whatever happens, the whole token is there afterwards or none of it.
// It fails with ErrExists unless the token is to be replaced.
func (s *Store) Restore(c *Contents, p RestoreParams) (TokenInfo, error) {
	info, err := s.restore(c, p)
	if err != nil {
		return TokenInfo{}, fmt.Errorf("restoring token %s: %w", c.Serial, err)
	}
	return info, nil
}

func (s *Store) restore(c *Contents, p RestoreParams) (TokenInfo, error) {
	if err := c.Check(); err != nil {
		return TokenInfo{}, err
	}
	pins := pinsOf{so: p.SOPIN, noPIN: c.NoPIN}
	if c.UserPIN {
		pins.user = p.UserPIN
		if err := checkPIN(pins.user); err != nil {
			return TokenInfo{}, err
		}
	}
	if err := checkPIN(pins.so); err != nil {
		return TokenInfo{}, err
	}
	f := &tokenFile{Slot: c.Slot, Created: uint64(c.Created.Unix()), Flags: flagRecoverable}
	hex.Decode(f.Serial[:], []byte(c.Serial))
	f.Label, _ = padLabel(c.Label)
	return s.put(f, p, func() (string, error) {
		root, public, err := s.initialise(f, pins, c.Binding)
		if err != nil {
			return "", err
		}
		defer root.destroy()
		defer public.destroy()
		return s.build(f, func(objects string) error {
			for i, x := range c.Objects {
				k, o := public, &objectFile{ID: x.ID, Serial: f.Serial}
				if x.Private {
					k, o.Flags = root, flagPrivate
				}
				if err := s.restoreObject(f, o, k, x); err != nil {
					return err
				}
				if err := writeObject(objects, x.ID, o.encode()); err != nil {
					return err
				}
				p.Progress.step(i+1, len(c.Objects))
			}
			return nil
		})
	})
}

func (s *Store) restoreObject(f *tokenFile, o *objectFile, k *keyring, x Content) error {
	if x.Secret != nil {
		if err := s.sealObject(f, o, k, x.Secret, x.About); err != nil {
			return fmt.Errorf("sealing object %x: %w", x.ID, err)
		}
		if err := s.verifySeal(f.Parent, o.Seal, k.auth(), x.Secret); err != nil {
			return fmt.Errorf("sealing object %x: %w", x.ID, err)
		}
	}
	return k.seal(o, x.Body)
}

// writeObject stores the file of a new object.
func writeObject(dir string, id ID, data []byte) error {
	if err := writeFile(dir, idName(id), data, false); err != nil {
		return writeError(filepath.Join(dir, idName(id)), err)
	}
	return nil
}

// put puts a token in its place, under the lock of the store. build makes the
// directory under a temporary name, once f has label and slot number.
func (s *Store) put(f *tokenFile, p RestoreParams, build func() (temp string, err error)) (TokenInfo, error) {
	if p.Label != "" {
		var err error
		if f.Label, err = padLabel(p.Label); err != nil {
			return TokenInfo{}, err
		}
	}
	if err := s.prepare(); err != nil {
		return TokenInfo{}, err
	}
	all, err := s.lock()
	if err != nil {
		return TokenInfo{}, err
	}
	defer all.unlock()
	removeTemps(s.tokensDir())
	serial := hex.EncodeToString(f.Serial[:])
	path := s.tokenDir(serial)
	_, err = os.Lstat(path)
	exists := !errors.Is(err, fs.ErrNotExist)
	if exists && !p.Replace {
		return TokenInfo{}, fmt.Errorf("%s: %w", path, ErrExists)
	}
	if f.Slot, err = s.slotFor(serial, f.Slot, p.Reserved); err != nil {
		return TokenInfo{}, err
	}
	temp, err := build()
	if err != nil {
		return TokenInfo{}, err
	}
	defer os.RemoveAll(temp) // holds what was there once they have changed places
	if !exists {
		err = s.installNew(temp, path)
	} else {
		err = s.replace(temp, path, serial, f)
	}
	if err != nil {
		return TokenInfo{}, err
	}
	return f.info(), nil
}

func (s *Store) replace(temp, path, serial string, f *tokenFile) error {
	t := s.token(serial, f.Serial)
	l, err := t.lock()
	if err != nil {
		return err
	}
	defer l.unlock()
	err = s.exchange(temp, path)
	if unsupported(err) {
		return advice.With(fmt.Errorf("%s: this file system cannot exchange directories", path), "delete the token there first")
	}
	if err != nil {
		return writeError(path, err)
	}
	t.drop()
	return nil
}

// slotFor finds the slot of a token that comes from elsewhere: the one that it
// had, unless that is another's here.
func (s *Store) slotFor(serial string, want uint32, reserved []uint32) (uint32, error) {
	c, err := s.Scan()
	if err != nil {
		return 0, err
	}
	used := slices.Contains(reserved, want)
	for other, slot := range c.taken {
		used = used || other != serial && slot == want
	}
	if !used {
		return want, nil
	}
	return c.FreeSlot(reserved...)
}

// Files are those of a token as they lie on disk. They serve the TPM that they
// were sealed by, and no other.
type Files struct {
	Serial  string
	Label   string
	Token   []byte
	BootLog []byte // of the state that the token was bound to; nil: none
	Objects []File // by ID
}

// File is one object's.
type File struct {
	ID   ID
	Data []byte
}

// Files reads the files of a token, with both its PINs, which the TPM checks.
// It fails where a single object cannot be read.
func (t *Token) Files(userPIN, soPIN []byte) (x *Files, err error) {
	err = t.still(func() error {
		f, _, err := readToken(t.path, t.serial)
		if err != nil {
			return err
		}
		x = &Files{Serial: t.serial, Label: f.label(), Token: f.encode()}
		if x.BootLog, err = t.BootLog(); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		root, err := t.openBoth(f, userPIN, soPIN)
		if err != nil {
			return err
		}
		defer root.destroy()
		return t.walk(f, root, nil, func(o *objectFile, k *keyring) error {
			return k.with(o, func([]byte) error {
				x.Objects = append(x.Objects, File{o.ID, o.encode()})
				return nil
			})
		})
	})
	if err != nil {
		return nil, fmt.Errorf("reading token %s: %w", t.serial, err)
	}
	return x, nil
}

// Check decodes the files, as far as that goes without the TPM.
func (x *Files) Check() error {
	_, _, err := x.decode()
	return err
}

func (x *Files) decode() (*tokenFile, []*objectFile, error) {
	f, err := decodeToken(x.Token)
	if err != nil {
		return nil, nil, fmt.Errorf("the token file: %w", err)
	}
	if hex.EncodeToString(f.Serial[:]) != x.Serial || f.label() != x.Label || len(x.BootLog) > maxBootLog {
		return nil, nil, fmt.Errorf("%w: the files are not those of token %s", ErrIntegrity, x.Serial)
	}
	t := Token{raw: f.Serial}
	objects := make([]*objectFile, len(x.Objects))
	seen := map[ID]bool{}
	for i, o := range x.Objects {
		if objects[i], err = decodeObject(o.Data); err == nil {
			err = t.own(objects[i], o.ID)
		}
		if err == nil && seen[o.ID] {
			err = fmt.Errorf("%w: it is there twice", ErrIntegrity)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("object %x: %w", o.ID, err)
		}
		seen[o.ID] = true
	}
	return f, objects, nil
}

// RestoreFiles puts a token's files back. Both PINs, every object and every
// seal are checked before: it fails with ErrParent on another TPM than the
// token's. It is all or nothing, as Restore is, and fails with ErrExists
// unless the token is to be replaced.
func (s *Store) RestoreFiles(x *Files, p RestoreParams) (TokenInfo, error) {
	info, err := s.restoreFiles(x, p)
	if err != nil {
		return TokenInfo{}, fmt.Errorf("restoring token %s: %w", x.Serial, err)
	}
	return info, nil
}

func (s *Store) restoreFiles(x *Files, p RestoreParams) (TokenInfo, error) {
	f, objects, err := x.decode()
	if err != nil {
		return TokenInfo{}, err
	}
	// Not the one that the store may have: it is not there yet.
	t := &Token{store: s, serial: x.Serial, raw: f.Serial, path: s.tokenDir(x.Serial)}
	original := *f // with the slot number and label that its MAC covers
	return s.put(f, p, func() (string, error) {
		root, err := t.openBoth(&original, p.UserPIN, p.SOPIN)
		if err != nil {
			return "", err
		}
		defer root.destroy()
		public, err := t.unsealRing(f, f.Public, nil, false)
		if err != nil {
			return "", err
		}
		defer public.destroy()
		f.MAC = root.mac(f)
		return s.build(f, func(dir string) error {
			for i, o := range objects {
				k := public
				if o.private() {
					k = root
				}
				if err := k.with(o, func([]byte) error { return nil }); err != nil {
					return fmt.Errorf("object %x: %w", o.ID, err)
				}
				if o.sealed() {
					if err := s.sealer.TryLoad(f.Parent, o.Seal); err != nil {
						return fmt.Errorf("object %x: %w", o.ID, err)
					}
				}
				if err := writeObject(dir, o.ID, x.Objects[i].Data); err != nil {
					return err
				}
				p.Progress.step(i+1, len(objects))
			}
			if x.BootLog == nil {
				return nil
			}
			token := filepath.Dir(dir)
			if err := writeFile(token, bootLogName, x.BootLog, false); err != nil {
				return writeError(filepath.Join(token, bootLogName), err)
			}
			return nil
		})
	})
}
