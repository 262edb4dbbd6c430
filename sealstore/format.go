package sealstore

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// The layout of both kinds of file is described byte by byte in
// docs/format.md. Decoding is strict: whatever is accepted encodes to the same
// bytes again.

const (
	tokenMagic    = "ICNP11T"
	objectMagic   = "ICNP11O"
	formatVersion = 1

	serialSize  = 8
	saltSize    = 16
	macSize     = 32
	nonceSize   = 24 // XChaCha20-Poly1305
	overhead    = 16 // its tag
	maxName     = 68 // of a storage root key: the largest digest and its algorithm
	maxBlobPart = 2048
	maxCreation = 1024 // of its data
	maxMark     = 256  // of its ticket

	// MaxCreated is the end of the year 9999, beyond which a date cannot be shown,
	// in seconds since 1970.
	MaxCreated = 253402300799

	maxTokenFile = 7 + 1 + serialSize + 4 + 8 + 1 + MaxLabel + 2*(2+maxName) + 1 +
		2*(saltSize+9) + 6*(2+maxBlobPart) + maxBinding + macSize
	headerSize    = 7 + 1 + 1 + 16 + serialSize + 4 // of an object without a seal
	maxObjectFile = 7 + 1 + 1 + 16 + serialSize + 2*(2+maxBlobPart) + 2 + MaxAbout + 2 + maxCreation + 2 + maxMark + 4 + nonceSize + MaxBody + overhead
)

// Limits of what the store holds.
const (
	MaxBody   = 1 << 20           // of an object
	MaxSecret = 128               // in a seal: a TPM's MAX_SYM_DATA
	MaxLabel  = 32                // of a token, in bytes
	MaxSlot   = math.MaxInt32 - 1 // leaves room for one more in any integer that holds slot numbers
)

// kdf says how a PIN becomes an authorisation value: Argon2id (RFC 9106).
type kdf struct {
	Salt   [saltSize]byte
	Memory uint32 // KiB
	Passes uint32
	Lanes  uint8
}

// Bounds of the cost: the file is not authenticated before the PIN has been
// checked, so a stranger's file must neither make the derivation trivial nor
// exhaust the host's memory.
const (
	minKDFMemory, maxKDFMemory = 8 << 10, 256 << 10
	maxKDFPasses               = 16
	maxKDFLanes                = 4
)

func (k kdf) valid() bool {
	return k.Memory >= minKDFMemory && k.Memory <= maxKDFMemory &&
		k.Passes >= 1 && k.Passes <= maxKDFPasses && k.Lanes >= 1 && k.Lanes <= maxKDFLanes
}

// pinSeal is a token's root secret, sealed under a PIN.
type pinSeal struct {
	KDF   kdf
	Blob  Blob
	NoPIN bool // the user's alone: without an authorisation value, and so without KDF
}

// tokenFile is the content of a token's file.
type tokenFile struct {
	Serial  [serialSize]byte
	Slot    uint32
	Created uint64 // seconds since 1970
	Flags   byte
	Label   [MaxLabel]byte
	Parent  []byte // Name of the storage root key
	Device  []byte // Name of the device's endorsement key; empty: not known
	SO      pinSeal
	User    *pinSeal // nil: no user PIN
	Public  Blob     // seal of the public secret, without a PIN
	Binding *Binding // nil: not bound to the platform
	MAC     [macSize]byte
}

// Flags of a token.
const flagRecoverable = 1

func (f *tokenFile) recoverable() bool { return f.Flags&flagRecoverable != 0 }

// padLabel fills a label up with blanks, as C_InitToken gets it.
func padLabel(s string) ([MaxLabel]byte, error) {
	var l [MaxLabel]byte
	s = strings.TrimRight(s, " ")
	if len(s) > MaxLabel {
		return l, fmt.Errorf("token label: %w: at most %d bytes", ErrTooLarge, MaxLabel)
	}
	if !utf8.ValidString(s) {
		return l, fmt.Errorf("token label %q is not UTF-8", s)
	}
	n := copy(l[:], s)
	for i := n; i < MaxLabel; i++ {
		l[i] = ' '
	}
	return l, nil
}

func (f *tokenFile) label() string { return strings.TrimRight(string(f.Label[:]), " ") }

// encode writes all that the MAC covers, and the MAC.
func (f *tokenFile) encode() []byte {
	return append(f.authenticated(), f.MAC[:]...)
}

func (f *tokenFile) authenticated() []byte {
	b := append([]byte(tokenMagic), formatVersion)
	b = append(b, f.Serial[:]...)
	b = binary.BigEndian.AppendUint32(b, f.Slot)
	b = binary.BigEndian.AppendUint64(b, f.Created)
	b = append(b, f.Flags)
	b = append(b, f.Label[:]...)
	b = appendSized(b, f.Parent)
	b = appendSized(b, f.Device)
	b = appendPINSeal(b, f.SO)
	switch {
	case f.User == nil:
		b = append(b, 0)
	case f.User.NoPIN:
		b = appendBlob(append(b, 2), f.User.Blob)
	default:
		b = appendPINSeal(append(b, 1), *f.User)
	}
	return appendBinding(appendBlob(b, f.Public), f.Binding)
}

// decodeToken returns the fields before the damage also when it fails.
func decodeToken(p []byte) (*tokenFile, error) {
	d := decoder{rest: p}
	d.magic(tokenMagic)
	f := new(tokenFile)
	copy(f.Serial[:], d.take(serialSize))
	f.Slot = d.uint32()
	if f.Slot > MaxSlot {
		d.fail("slot number %d", f.Slot)
		f.Slot = 0
	}
	f.Created = d.uint64()
	if f.Created > MaxCreated {
		d.fail("creation time %d", f.Created)
	}
	f.Flags = d.flags(flagRecoverable)
	copy(f.Label[:], d.take(MaxLabel))
	if !utf8.Valid(f.Label[:]) {
		d.fail("label is not UTF-8")
	}
	f.Parent = d.sized(maxName)
	f.Device = d.optional(maxName)
	f.SO = d.pinSeal()
	if kind := d.take(1); kind != nil {
		switch kind[0] {
		case 0:
		case 1:
			u := d.pinSeal()
			f.User = &u
		case 2:
			f.User = &pinSeal{Blob: d.blob(), NoPIN: true}
		default:
			d.fail("user seal of kind %d", kind[0])
		}
	}
	f.Public = d.blob()
	f.Binding = d.binding()
	if f.User != nil {
		f.User.Blob.Binding = f.Binding
	}
	copy(f.MAC[:], d.take(macSize))
	return f, d.end()
}

// Flags of an object.
const (
	flagPrivate = 1 << iota
	flagSealed
	flagCreation // only with flagSealed
	flagDevice   // only with flagSealed and without flagCreation: a key of Sealer.NewKey
)

// objectFile is the content of an object's file.
type objectFile struct {
	Flags      byte
	ID         ID
	Serial     [serialSize]byte
	Seal       Blob // only with flagSealed; its Creation only with flagCreation
	Nonce      [nonceSize]byte
	Ciphertext []byte // of the body, with its tag; where it was decoded, a part of the file
}

func (f *objectFile) private() bool { return f.Flags&flagPrivate != 0 }
func (f *objectFile) sealed() bool  { return f.Flags&flagSealed != 0 }
func (f *objectFile) device() bool  { return f.Flags&flagDevice != 0 }

// about is what the device recorded when it made the seal.
func (f *objectFile) about() []byte {
	if f.Seal.Creation == nil {
		return nil
	}
	return f.Seal.Creation.About
}

// appendHeader encodes what stands before the nonce: the associated data of the
// body's encryption. size is the length of the ciphertext.
func (f *objectFile) appendHeader(b []byte, size int) []byte {
	b = append(b, objectMagic...)
	b = append(b, formatVersion, f.Flags)
	b = append(b, f.ID[:]...)
	b = append(b, f.Serial[:]...)
	if f.sealed() {
		b = appendBlob(b, f.Seal)
	}
	if c := f.Seal.Creation; f.Flags&flagCreation != 0 {
		b = appendSized(appendSized(appendSized(b, c.About), c.Data), c.Ticket)
	}
	return binary.BigEndian.AppendUint32(b, uint32(size))
}

func (f *objectFile) encode() []byte {
	b := f.appendHeader(nil, len(f.Ciphertext))
	b = append(b, f.Nonce[:]...)
	return append(b, f.Ciphertext...)
}

func decodeObject(p []byte) (*objectFile, error) {
	f := new(objectFile)
	if err := f.decode(p); err != nil {
		return nil, err
	}
	return f, nil
}

// decode fills an empty f.
func (f *objectFile) decode(p []byte) error {
	d := decoder{rest: p}
	d.magic(objectMagic)
	f.Flags = d.flags(flagPrivate | flagSealed | flagCreation | flagDevice)
	if !f.sealed() && f.Flags&(flagCreation|flagDevice) != 0 || f.device() && f.Flags&flagCreation != 0 {
		d.fail("flags %#x", f.Flags)
	}
	copy(f.ID[:], d.take(len(f.ID)))
	copy(f.Serial[:], d.take(serialSize))
	if f.sealed() {
		f.Seal = d.blob()
	}
	if f.Flags&flagCreation != 0 {
		f.Seal.Creation = &Creation{About: d.sized(MaxAbout), Data: d.sized(maxCreation), Ticket: d.sized(maxMark)}
	}
	size := d.uint32()
	if size < overhead || size > MaxBody+overhead {
		d.fail("body of %d bytes", size)
	}
	copy(f.Nonce[:], d.take(nonceSize))
	f.Ciphertext = d.take(int(size))
	return d.end()
}

// setSeal gives f another seal, and says whether it comes with its creation.
func (f *objectFile) setSeal(s Blob) {
	f.Seal = s
	f.Flags |= flagSealed
	f.Flags &^= flagCreation
	if s.Creation != nil {
		f.Flags |= flagCreation
	}
}

func appendSized(b, p []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(p))), p...)
}

func appendBlob(b []byte, s Blob) []byte {
	return appendSized(appendSized(b, s.Public), s.Private)
}

func appendPINSeal(b []byte, s pinSeal) []byte {
	b = append(b, s.KDF.Salt[:]...)
	b = binary.BigEndian.AppendUint32(b, s.KDF.Memory)
	b = binary.BigEndian.AppendUint32(b, s.KDF.Passes)
	return appendBlob(append(b, s.KDF.Lanes), s.Blob)
}

// checkBlob refuses what the format could not hold.
func checkBlob(s Blob) error {
	for _, p := range [][]byte{s.Public, s.Private} {
		if len(p) == 0 || len(p) > maxBlobPart {
			return fmt.Errorf("sealed blob: %w: part of %d bytes", ErrTooLarge, len(p))
		}
	}
	if c := s.Creation; c != nil && (len(c.Data) == 0 || len(c.Data) > maxCreation || len(c.Ticket) == 0 || len(c.Ticket) > maxMark) {
		return fmt.Errorf("sealed blob: %w: creation data of %d bytes, a ticket of %d", ErrTooLarge, len(c.Data), len(c.Ticket))
	}
	return nil
}

// decoder takes fields off a file. The first error stays; what is taken after
// it is empty.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrIntegrity, fmt.Sprintf(format, args...))
		d.rest = nil
	}
}

// take returns a part of the file.
func (d *decoder) take(n int) []byte {
	if d.err != nil {
		return nil
	}
	if n > len(d.rest) {
		d.fail("ends too early")
		return nil
	}
	p := d.rest[:n:n]
	d.rest = d.rest[n:]
	return p
}

func (d *decoder) magic(m string) {
	if string(d.take(len(m))) != m {
		d.fail("does not start with %s", m)
	}
	if v := d.take(1); d.err == nil && v[0] != formatVersion {
		d.fail("format version %d, but this program knows %d only", v[0], formatVersion)
	}
}

func (d *decoder) uint32() uint32 {
	if p := d.take(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

func (d *decoder) uint64() uint64 {
	if p := d.take(8); p != nil {
		return binary.BigEndian.Uint64(p)
	}
	return 0
}

// flags takes a byte in which only bits of mask may be set.
func (d *decoder) flags(mask byte) byte {
	p := d.take(1)
	if p == nil {
		return 0
	}
	if p[0]&^mask != 0 {
		d.fail("unknown flags %#x", p[0])
		return 0
	}
	return p[0]
}

// sized copies a field of 1 to limit bytes behind its 16-bit length: fields are
// kept, and none keeps the whole file in memory.
func (d *decoder) sized(limit int) []byte {
	p := d.take(2)
	if p == nil {
		return nil
	}
	n := int(binary.BigEndian.Uint16(p))
	if n == 0 || n > limit {
		d.fail("field of %d bytes", n)
		return nil
	}
	return bytes.Clone(d.take(n))
}

// optional is sized for a field that may be empty.
func (d *decoder) optional(limit int) []byte {
	if len(d.rest) >= 2 && d.rest[0] == 0 && d.rest[1] == 0 {
		d.take(2)
		return nil
	}
	return d.sized(limit)
}

func (d *decoder) blob() Blob {
	return Blob{Public: d.sized(maxBlobPart), Private: d.sized(maxBlobPart)}
}

func (d *decoder) pinSeal() pinSeal {
	var s pinSeal
	copy(s.KDF.Salt[:], d.take(saltSize))
	s.KDF.Memory = d.uint32()
	s.KDF.Passes = d.uint32()
	s.KDF.Lanes = 0
	if p := d.take(1); p != nil {
		s.KDF.Lanes = p[0]
	}
	if d.err == nil && !s.KDF.valid() {
		d.fail("key derivation parameters out of bounds")
	}
	s.Blob = d.blob()
	return s
}

func (d *decoder) end() error {
	if d.err == nil && len(d.rest) != 0 {
		d.fail("%d bytes too long", len(d.rest))
	}
	return d.err
}
