// Package backup writes a token into one file that is encrypted with age
// (age-encryption.org/v1), and reads it back.
//
// A backup of a recoverable token holds its keys, and restores it onto any TPM.
// That of any other holds the sealed files as they lie on disk. docs/format.md
// describes what is inside of the encryption.
package backup

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"

	"filippo.io/age"
	"filippo.io/age/armor"

	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// MaxFile is the size of the largest file that is read, in bytes: a backup with
// age's header, in armor.
const MaxFile = (maxBackup+maxManifest)/3*4 + maxBackup/16

// Backup is what a file holds: contents or files, never both.
type Backup struct {
	Manifest Manifest
	Contents *sealstore.Contents // of a recoverable token
	Files    *sealstore.Files    // of any other
}

// Destroy wipes the secrets.
func (b *Backup) Destroy() {
	if b != nil && b.Contents != nil {
		b.Contents.Destroy()
	}
}

// ErrKey: a seed is not the one of the public key that stands beside it.
var ErrKey = errors.New("the private key does not fit its public key")

// Check makes sure that a backup is worth keeping: each key is the one that it
// is said to be, and sealed files are those of a token.
func (b *Backup) Check() error {
	if b.Files != nil {
		return b.Files.Check()
	}
	if err := b.Contents.Check(); err != nil {
		return err
	}
	held := map[string]bool{}
	for _, o := range b.Contents.Objects {
		if len(o.Secret) != eddsa.SeedSize || len(o.About) != eddsa.PublicKeySize {
			continue
		}
		public, err := eddsa.PublicOf(o.Secret)
		if err != nil {
			return err
		}
		if !bytes.Equal(public[:], o.About) {
			return fmt.Errorf("object %x: %w", o.ID, ErrKey)
		}
		held[did.Encode(public)] = true
	}
	for _, k := range b.Manifest.Keys {
		if !held[k.DID] {
			return malformed("the manifest lists %s, whose key is not in it", k.DID)
		}
	}
	return nil
}

// Written is an encrypted backup.
type Written struct {
	Data []byte // the file
	of   *Backup
	to   *Recipients
	key  fileKey
}

// Destroy wipes the key of the file. The backup stays.
func (w *Written) Destroy() { w.key.destroy() }

// Check makes sure that data, as the disk gives it back, is the backup that was
// written. A passphrase is tried; where the file is for the keys of others, it
// is opened by its own key, which leaves open only whether theirs are right.
func (w *Written) Check(data []byte) error {
	by := func() ([]age.Identity, error) { return []age.Identity{&w.key}, nil }
	if len(w.to.passphrase) > 0 {
		by = WithPassphrase(w.to.passphrase).identities
	}
	got, err := decrypt(data, by)
	if err == nil {
		if !w.of.same(got) {
			err = errors.New("it is not what was written")
		}
		got.Destroy()
	}
	if err != nil {
		return fmt.Errorf("reading the backup again: %w", err)
	}
	return nil
}

// same compares two backups by what they encode to.
func (b *Backup) same(c *Backup) bool {
	p, ps, err := b.encode()
	defer secmem.Wipe(p)
	q, qs, cerr := c.encode()
	defer secmem.Wipe(q)
	return err == nil && cerr == nil && bytes.Equal(p, q) &&
		slices.EqualFunc(ps, qs, func(x, y []byte) bool { return subtle.ConstantTimeCompare(x, y) == 1 })
}

// Encrypt writes a backup for those who shall be able to read it, in armor
// where it has to be text.
//
// age collects 64 KiB of plaintext on the Go heap and encrypts them in place.
// The secrets are the last that is written, when the collecting buffer has its
// final size, so that none stays behind where it grew.
func Encrypt(b *Backup, to *Recipients, text bool) (*Written, error) {
	b.Manifest.Created = now()
	p, secrets, err := b.encode()
	if err != nil {
		return nil, err
	}
	defer secmem.Wipe(p)
	if err := b.Check(); err != nil {
		return nil, err
	}
	out := &Written{of: b, to: to}
	var data bytes.Buffer
	secmem.Compute(func() {
		var w io.WriteCloser
		if w, err = age.Encrypt(&data, to.recipients(&out.key)...); err == nil {
			err = write(w, p, secrets)
		}
	})
	reclaim()
	out.Data = data.Bytes()
	if err == nil && text {
		out.Data, err = enarmor(out.Data)
	}
	if err != nil {
		out.Destroy()
		return nil, err
	}
	return out, nil
}

// chunk is what age encrypts at a time.
const chunk = 64 << 10

func write(w io.WriteCloser, p []byte, secrets [][]byte) error {
	total := len(p)
	for _, s := range secrets {
		total += len(s)
	}
	// age's buffer, a bytes.Buffer, doubles when the second piece comes, which
	// is then room for a chunk and its tag.
	half := min((min(total, chunk)+17)/2, len(p))
	for _, s := range append([][]byte{p[:half], p[half:]}, secrets...) {
		if _, err := w.Write(s); err != nil {
			return err
		}
	}
	return w.Close()
}

// reclaim gives the memory back to the system that age has collected plaintext
// in, which neither it nor we can wipe where the toolchain does not. The
// buffers are large enough to have pages of their own.
func reclaim() { debug.FreeOSMemory() }

func enarmor(data []byte) ([]byte, error) {
	var out bytes.Buffer
	w := armor.NewWriter(&out)
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// open gives the reader of a file with or without armor.
func open(data []byte) io.Reader {
	if bytes.HasPrefix(bytes.TrimSpace(data[:min(len(data), 1<<10)]), []byte(armor.Header)) {
		return armor.NewReader(bytes.NewReader(data))
	}
	return bytes.NewReader(data)
}

// Decrypt reads a backup and checks it. The caller destroys it.
func Decrypt(data []byte, by *Identity) (*Backup, error) {
	b, err := decrypt(data, by.identities)
	if err != nil {
		return nil, err
	}
	if err := b.Check(); err != nil {
		b.Destroy()
		return nil, err
	}
	return b, nil
}

func decrypt(data []byte, by func() ([]age.Identity, error)) (*Backup, error) {
	defer reclaim()
	return read(data, by)
}

func read(data []byte, by func() ([]age.Identity, error)) (b *Backup, err error) {
	secmem.Compute(func() {
		var ids []age.Identity
		if ids, err = by(); err != nil {
			return
		}
		var r io.Reader
		if r, err = age.Decrypt(open(data), ids...); err != nil {
			err = refused(err)
			return
		}
		b, err = decode(payload{r})
	})
	return b, err
}

// payload tells a file that is cut off from a backup that is.
type payload struct{ io.Reader }

func (p payload) Read(dst []byte) (int, error) {
	n, err := p.Reader.Read(dst)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%w: %v", ErrDamaged, err)
	}
	return n, err
}
