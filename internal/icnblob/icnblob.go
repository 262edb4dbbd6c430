// Package icnblob reads and writes the files in which an ICN node keeps its
// identity, sealed-0x81000001.blob and the like, as ICN's own TPM backend
// (keystore_tpm.rs) writes them: JSON in which bytes are arrays of numbers.
//
// Version 2 holds a sealed object of the TPM. The kind before it, which has no
// version, holds the seed in the clear.
//
// The reader takes the fields in any order and with JSON's white space, as
// ICN's does, and, as there, key_handle and version may be missing. Beyond
// that it is strict: no field that is not known, none twice, and every number
// and size within its bounds. The writer writes what ICN writes, to the byte.
package icnblob

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// Version is the one that is read and written.
const Version = 2

// DefaultHandle is the key_handle of a node that was not told another.
const DefaultHandle = 0x81000001

// Bounds of key_handle: the handles of persistent objects.
const (
	MinHandle = 0x81000000
	MaxHandle = 0x81FFFFFF
)

// MaxPCR is the largest number in pcr_slots.
const MaxPCR = 31

// Bounds of what a file holds.
const (
	keySize    = 32
	maxPart    = 1024 // of either half of the sealed object
	maxPCRs    = MaxPCR + 1
	maxVersion = 255
)

// Blob is a file of version 2.
type Blob struct {
	Private   []byte // the buffer of TPM2B_PRIVATE
	Public    []byte // TPMT_PUBLIC
	PublicKey [keySize]byte
	PCRs      []byte  // told, but no policy is attached
	Handle    *uint32 // names the file only; nil: not told
}

// ErrPlaintext: the file is of the kind before version 2.
var ErrPlaintext = errors.New("the blob holds the seed in the clear, sealed to nothing")

// FileName is where ICN looks for the blob, in its directory.
func FileName(handle uint32) string { return fmt.Sprintf("sealed-0x%08x.blob", handle) }

// Is tells whether a file can be a blob, and is none of the formats that keys
// come in otherwise.
func Is(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(data, space), []byte("{"))
}

// Marshal writes the file.
func (b *Blob) Marshal() []byte {
	handle := "null"
	if b.Handle != nil {
		handle = strconv.FormatUint(uint64(*b.Handle), 10)
	}
	out := []byte("{")
	for _, f := range []struct {
		name  string
		bytes []byte
	}{{private, b.Private}, {public, b.Public}, {publicKey, b.PublicKey[:]}, {pcrSlots, b.PCRs}} {
		out = fmt.Appendf(out, "%q:[", f.name)
		for i, v := range f.bytes {
			if i > 0 {
				out = append(out, ',')
			}
			out = strconv.AppendUint(out, uint64(v), 10)
		}
		out = append(out, "],"...)
	}
	return fmt.Appendf(out, "%q:%s,%q:%d}", keyHandle, handle, version, Version)
}

// Names of the fields, in ICN's order; the last one is of the older kind.
const (
	private    = "tpm_private"
	public     = "tpm_public"
	publicKey  = "public_key"
	pcrSlots   = "pcr_slots"
	keyHandle  = "key_handle"
	version    = "version"
	sealedData = "sealed_data"
)

// Parse reads a file of version 2; one of the older kind is ErrPlaintext. The
// result holds no part of data.
func Parse(data []byte) (*Blob, error) {
	var b *Blob
	var plain bool
	var err error
	secmem.Compute(func() { b, plain, err = parse(data, nil) })
	if err == nil && plain {
		err = ErrPlaintext
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// ParsePlaintext reads a file of the older kind. The seed, 32 bytes, goes to
// dst, which is in secret memory, and data too has to be.
func ParsePlaintext(dst, data []byte) (public [keySize]byte, err error) {
	if len(dst) != keySize {
		return public, fmt.Errorf("room for %d bytes of a seed, not %d", len(dst), keySize)
	}
	var b *Blob
	var plain bool
	secmem.Compute(func() { b, plain, err = parse(data, dst) })
	if err == nil && !plain {
		err = errors.New("the blob is not of the kind that holds the seed in the clear")
	}
	if err != nil {
		secmem.Wipe(dst)
		return public, err
	}
	return b.PublicKey, nil
}

// parse reads either kind. Without room for a seed it is skipped.
func parse(data, seed []byte) (b *Blob, plain bool, err error) {
	s := &scanner{rest: data}
	b = &Blob{}
	seen := map[string]bool{}
	number := uint64(Version)
	var key []byte
	s.object(func(name string) {
		if seen[name] {
			s.fail("has %s twice", name)
		}
		seen[name] = true
		switch name {
		case private:
			b.Private = s.array(name, 1, maxPart, 255)
		case public:
			b.Public = s.array(name, 1, maxPart, 255)
		case publicKey:
			key = s.array(name, keySize, keySize, 255)
		case pcrSlots:
			b.PCRs = s.array(name, 0, maxPCRs, MaxPCR)
		case keyHandle:
			if !s.null() {
				h := uint32(s.number(name, MinHandle, MaxHandle))
				b.Handle = &h
			}
		case version:
			number = s.number(name, 0, maxVersion)
		case sealedData:
			s.fill(name, seed)
		default:
			s.fail("has a field that is not known")
		}
	})
	s.end()
	if s.err != nil {
		return nil, false, s.err
	}
	copy(b.PublicKey[:], key)
	plain = seen[sealedData] && !seen[private]
	needed := []string{private, public, publicKey, pcrSlots}
	if plain {
		needed = []string{sealedData, publicKey, pcrSlots}
	}
	switch {
	case seen[sealedData] && (seen[private] || seen[public]), plain && seen[version] && number >= Version:
		return nil, false, malformed("is of two kinds at once")
	case !plain && number != Version:
		return nil, false, advice.With(fmt.Errorf("the ICN blob is of version %d, and only %d is known here", number, Version),
			"look for a newer icn-p11")
	}
	for _, name := range needed {
		if !seen[name] {
			return nil, false, malformed("has no %s", name)
		}
	}
	return b, plain, nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("the ICN blob "+format, args...)
}

// space is JSON's white space (RFC 8259, section 2).
const space = " \t\n\r"

// scanner reads the part of JSON that blobs are made of. It stops at the first
// error. Nothing of the text is in an error: it may be a seed's.
type scanner struct {
	rest []byte
	err  error
}

func (s *scanner) fail(format string, args ...any) {
	if s.err == nil {
		s.err = malformed(format, args...)
	}
	s.rest = nil
}

// next skips white space and tells whether c follows, which it takes.
func (s *scanner) next(c byte) bool {
	s.rest = bytes.TrimLeft(s.rest, space)
	if len(s.rest) == 0 || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

func (s *scanner) must(c byte) {
	if !s.next(c) {
		s.fail("is not JSON of the form that ICN writes")
	}
}

func (s *scanner) end() {
	if len(bytes.TrimLeft(s.rest, space)) > 0 {
		s.fail("has something behind its end")
	}
}

// object reads an object; value reads what a name stands for.
func (s *scanner) object(value func(name string)) {
	s.must('{')
	for s.err == nil {
		s.must('"')
		// Names have no escapes: what has is not known.
		name, rest, ok := bytes.Cut(s.rest, []byte{'"'})
		if !ok {
			s.must('"')
			return
		}
		s.rest = rest
		s.must(':')
		value(string(name))
		if s.next('}') {
			return
		}
		s.must(',')
	}
}

func (s *scanner) null() bool {
	s.rest = bytes.TrimLeft(s.rest, space)
	rest, ok := bytes.CutPrefix(s.rest, []byte("null"))
	if ok {
		s.rest = rest
	}
	return ok
}

// number reads a number without sign, fraction or exponent.
func (s *scanner) number(name string, least, most uint64) uint64 {
	s.rest = bytes.TrimLeft(s.rest, space)
	var v uint64
	n := 0
	for n < len(s.rest) && n < 11 && s.rest[n] >= '0' && s.rest[n] <= '9' {
		v = 10*v + uint64(s.rest[n]-'0')
		n++
	}
	if n == 0 || n > 1 && s.rest[0] == '0' || v < least || v > most {
		s.fail("has a %s that it cannot have", name)
		return 0
	}
	s.rest = s.rest[n:]
	return v
}

// each reads an array of numbers.
func (s *scanner) each(name string, most uint64, f func(v uint64)) {
	s.must('[')
	if s.next(']') {
		return
	}
	for s.err == nil {
		f(s.number(name, 0, most))
		if s.next(']') {
			return
		}
		s.must(',')
	}
}

func (s *scanner) array(name string, least, most int, max uint64) []byte {
	out := []byte{}
	s.each(name, max, func(v uint64) {
		if len(out) == most {
			s.fail("has too many numbers in %s", name)
			return
		}
		out = append(out, byte(v))
	})
	if len(out) < least {
		s.fail("has too few numbers in %s", name)
	}
	return out
}

// fill reads an array of a seed's size to dst, or skips it where dst is nil.
func (s *scanner) fill(name string, dst []byte) {
	n := 0
	s.each(name, 255, func(v uint64) {
		if n < len(dst) {
			dst[n] = byte(v)
		}
		n++
	})
	if n != keySize {
		s.fail("has not %d numbers in %s", keySize, name)
	}
}
