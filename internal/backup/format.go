package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// The layout of what is encrypted is described byte by byte in docs/format.md:
// magic, version, manifest, records, and last the secrets, apart from all else
// so that they need no memory but secret memory of ours.

const (
	magic         = "ICNP11B"
	formatVersion = 1

	maxFile   = 4 << 20 // the largest is the firmware's event log
	maxObject = 3 + sealstore.MaxAbout + sealstore.MaxBody
	maxBackup = 256 << 20
)

// Flags of an object's record.
const (
	flagPrivate = 1 << iota
	flagSecret
)

// ErrMalformed: what was decrypted is no backup that this program can read.
var ErrMalformed = errors.New("not a backup of this program")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

func tooLarge(n int) error { return fmt.Errorf("%d bytes; a backup has at most %d", n, maxBackup) }

// encode completes the manifest and writes everything but the secrets, which it
// gives apart.
func (b *Backup) encode() (p []byte, secrets [][]byte, err error) {
	m := &b.Manifest
	m.Version, m.Records = formatVersion, []Record{}
	if m.Keys == nil {
		m.Keys = []Key{}
	}
	// Private bodies are in it, so it is wiped, and made large enough at once.
	records := make([]byte, 0, b.size())
	defer func() { secmem.Wipe(records) }()
	add := func(name string, data ...[]byte) {
		at := len(records)
		for _, d := range data {
			records = append(records, d...)
		}
		sum := sha256.Sum256(records[at:])
		m.Records = append(m.Records, Record{name, len(records) - at, hex.EncodeToString(sum[:])})
	}
	switch {
	case b.Contents != nil && b.Files == nil:
		m.Kind = Recoverable
		m.Token.take(b.Contents)
		for _, o := range slices.SortedFunc(slices.Values(b.Contents.Objects), func(x, y sealstore.Content) int { return bytes.Compare(x.ID[:], y.ID[:]) }) {
			head, err := objectHead(o)
			if err != nil {
				return nil, nil, fmt.Errorf("object %x: %w", o.ID, err)
			}
			add(hex.EncodeToString(o.ID[:]), head, o.About, o.Body)
			if o.Secret != nil {
				secrets = append(secrets, o.Secret)
			}
		}
	case b.Files != nil && b.Contents == nil:
		m.Kind = Sealed
		m.Token.Serial, m.Token.Label = b.Files.Serial, b.Files.Label
		add(tokenName, b.Files.Token)
		if b.Files.BootLog != nil {
			add(bootLogName, b.Files.BootLog)
		}
		for _, f := range slices.SortedFunc(slices.Values(b.Files.Objects), func(x, y sealstore.File) int { return bytes.Compare(x.ID[:], y.ID[:]) }) {
			add(hex.EncodeToString(f.ID[:]), f.Data)
		}
	default:
		return nil, nil, errors.New("a backup has either contents or files")
	}
	if err := m.check(); err != nil {
		return nil, nil, err
	}
	manifest, err := m.encode()
	if err != nil {
		return nil, nil, err
	}
	p = make([]byte, 0, len(magic)+1+4+len(manifest)+len(records))
	p = append(append(p, magic...), formatVersion)
	p = binary.BigEndian.AppendUint32(p, uint32(len(manifest)))
	p = append(append(p, manifest...), records...)
	return p, secrets, nil
}

// take fills in what of a manifest the contents know.
func (t *Token) take(c *sealstore.Contents) {
	t.Serial, t.Label, t.Slot, t.Created = c.Serial, c.Label, c.Slot, c.Created
	t.UserPIN, t.NoPIN, t.Binding = c.UserPIN, c.NoPIN, nil
	if c.Binding != nil {
		pcrs := slices.Sorted(slices.Values(c.Binding.PCRs))
		t.Binding = &Binding{c.Binding.Bank, pcrs}
	}
}

func (t *Token) contents() *sealstore.Contents {
	c := &sealstore.Contents{Serial: t.Serial, Label: t.Label, Slot: t.Slot, Created: t.Created, UserPIN: t.UserPIN, NoPIN: t.NoPIN}
	if t.Binding != nil {
		spec := sealstore.BindingSpec(*t.Binding)
		c.Binding = &spec
	}
	return c
}

// size is that of all records.
func (b *Backup) size() (n int) {
	if b.Contents != nil {
		for _, o := range b.Contents.Objects {
			n += 3 + len(o.About) + len(o.Body)
		}
	}
	if b.Files != nil {
		n += len(b.Files.Token) + len(b.Files.BootLog)
		for _, f := range b.Files.Objects {
			n += len(f.Data)
		}
	}
	return n
}

// objectHead is the beginning of an object's record.
func objectHead(o sealstore.Content) ([]byte, error) {
	switch {
	case len(o.Body) > sealstore.MaxBody:
		return nil, fmt.Errorf("a body of %d bytes", len(o.Body))
	case len(o.About) > sealstore.MaxAbout:
		return nil, fmt.Errorf("%d bytes about its secret", len(o.About))
	case len(o.Secret) > sealstore.MaxSecret, o.Secret != nil && len(o.Secret) == 0, o.Secret == nil && len(o.About) > 0:
		return nil, fmt.Errorf("a secret of %d bytes", len(o.Secret))
	}
	var flags byte
	if o.Private {
		flags |= flagPrivate
	}
	if o.Secret != nil {
		flags |= flagSecret
	}
	return []byte{flags, byte(len(o.Secret)), byte(len(o.About))}, nil
}

// decodeObject reads an object's record, and the length of its secret.
func decodeObject(r []byte) (o sealstore.Content, secret int, err error) {
	if len(r) < 3 {
		return o, 0, errors.New("ends too early")
	}
	flags, about := r[0], int(r[2])
	secret = int(r[1])
	switch {
	case flags&^(flagPrivate|flagSecret) != 0:
		return o, 0, fmt.Errorf("unknown flags %#x", flags)
	case secret > sealstore.MaxSecret || flags&flagSecret != 0 != (secret > 0):
		return o, 0, fmt.Errorf("a secret of %d bytes", secret)
	case about > sealstore.MaxAbout || 3+about > len(r) || about > 0 && secret == 0:
		return o, 0, fmt.Errorf("%d bytes about its secret", about)
	case len(r)-3-about > sealstore.MaxBody:
		return o, 0, fmt.Errorf("a body of %d bytes", len(r)-3-about)
	}
	o.Private = flags&flagPrivate != 0
	if about > 0 {
		o.About = bytes.Clone(r[3 : 3+about])
	}
	o.Body = bytes.Clone(r[3+about:])
	return o, secret, nil
}

// decode reads what encode has written, to the end. The secrets go from r
// straight into secret memory.
func decode(r io.Reader) (*Backup, error) {
	head := make([]byte, len(magic)+1+4)
	if err := fill(r, head); err != nil {
		return nil, err
	}
	if string(head[:len(magic)]) != magic {
		return nil, malformed("does not start with %s", magic)
	}
	if v := head[len(magic)]; v != formatVersion {
		return nil, malformed("format version %d, but this program knows %d only", v, formatVersion)
	}
	size := binary.BigEndian.Uint32(head[len(magic)+1:])
	if size > maxManifest {
		return nil, malformed("a manifest of %d bytes", size)
	}
	p := make([]byte, size)
	if err := fill(r, p); err != nil {
		return nil, err
	}
	m, err := decodeManifest(p)
	if err != nil {
		return nil, err
	}
	b := &Backup{Manifest: *m}
	if m.Kind == Sealed {
		err = b.readFiles(r)
	} else {
		err = b.readContents(r)
	}
	if err == nil {
		err = end(r)
	}
	if err != nil {
		b.Destroy()
		return nil, err
	}
	return b, nil
}

// fill reads as many bytes as dst has.
func fill(r io.Reader, dst []byte) error {
	_, err := io.ReadFull(r, dst)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return malformed("ends too early")
	}
	return err
}

func end(r io.Reader) error {
	var one [1]byte
	switch n, err := io.ReadFull(r, one[:]); {
	case n > 0:
		return malformed("something follows its end")
	case err != io.EOF:
		return err
	}
	return nil
}

// record reads the record that the manifest announces.
func record(r io.Reader, about Record) ([]byte, error) {
	p := make([]byte, about.Size)
	if err := fill(r, p); err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(p); hex.EncodeToString(sum[:]) != about.SHA256 {
		return nil, malformed("%s is not what the manifest announces", about.Name)
	}
	return p, nil
}

func (b *Backup) readFiles(r io.Reader) error {
	b.Files = &sealstore.Files{Serial: b.Manifest.Token.Serial, Label: b.Manifest.Token.Label}
	for _, about := range b.Manifest.Records {
		p, err := record(r, about)
		if err != nil {
			return err
		}
		switch about.Name {
		case tokenName:
			b.Files.Token = p
		case bootLogName:
			b.Files.BootLog = p
		default:
			b.Files.Objects = append(b.Files.Objects, sealstore.File{ID: about.id(), Data: p})
		}
	}
	return nil
}

func (b *Backup) readContents(r io.Reader) error {
	b.Contents = b.Manifest.Token.contents()
	sizes := make([]int, 0, len(b.Manifest.Records))
	for _, about := range b.Manifest.Records {
		p, err := record(r, about)
		if err != nil {
			return err
		}
		o, secret, err := decodeObject(p)
		secmem.Wipe(p)
		if err != nil {
			return malformed("object %s: %v", about.Name, err)
		}
		o.ID = about.id()
		b.Contents.Objects = append(b.Contents.Objects, o)
		sizes = append(sizes, secret)
	}
	for i, n := range sizes {
		if n == 0 {
			continue
		}
		secret, err := b.Contents.SecretBuffer(n)
		if err != nil {
			return err
		}
		if err := fill(r, secret); err != nil {
			return err
		}
		b.Contents.Objects[i].Secret = secret
	}
	return nil
}

// id is the identifier of an object, which the manifest's check has seen.
func (r Record) id() (id sealstore.ID) {
	b, _ := hex.DecodeString(r.Name)
	copy(id[:], b)
	return id
}

// now is the time as a manifest has it.
func now() time.Time { return time.Now().UTC().Truncate(time.Second) }
