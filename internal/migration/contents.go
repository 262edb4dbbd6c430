package migration

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// contents is what is encrypted in a parcel.
type contents struct {
	nonce   [nonceSize]byte // the challenge that the target signs
	label   string
	slot    uint32
	created uint64 // seconds since 1970
	userPIN bool
	noPIN   bool
	binding *sealstore.BindingSpec
	objects []object // by rising ID
}

type object struct {
	id      sealstore.ID
	private bool
	body    []byte
	about   []byte // what the seal is recorded to hold; only with seal
	seal    *tpm.Duplicate
}

const (
	nonceSize = 32

	flagUserPIN = 1
	flagNoPIN   = 2
	flagBound   = 4

	flagPrivate = 1
	flagSealed  = 2

	maxPart = 2048 // of a wrapped secret
	// room is more than an object takes besides its body.
	room = 3*maxPart + 2*sealstore.MaxAbout
)

// encode gives the bytes of c, which the caller wipes. They were in no other
// place meanwhile.
func (c *contents) encode() ([]byte, error) {
	size := 1024
	for _, o := range c.objects {
		size += len(o.body) + room
	}
	b := cryptobyte.NewFixedBuilder(make([]byte, 0, size))
	b.AddBytes(c.nonce[:])
	var flags uint8
	for _, f := range []struct {
		set bool
		bit uint8
	}{{c.userPIN, flagUserPIN}, {c.noPIN, flagNoPIN}, {c.binding != nil, flagBound}} {
		if f.set {
			flags |= f.bit
		}
	}
	b.AddUint8(flags)
	b.AddUint32(c.slot)
	b.AddUint64(c.created)
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(c.label)) })
	if c.binding != nil {
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte(c.binding.Bank)) })
		b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) {
			for _, n := range c.binding.PCRs {
				b.AddUint8(uint8(n))
			}
		})
	}
	b.AddUint32(uint32(len(c.objects)))
	for _, o := range c.objects {
		o.encode(b)
	}
	return b.Bytes()
}

func (o *object) encode(b *cryptobyte.Builder) {
	var flags uint8
	if o.private {
		flags |= flagPrivate
	}
	if o.seal != nil {
		flags |= flagSealed
	}
	b.AddUint8(flags)
	b.AddBytes(o.id[:])
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(o.body) })
	if o.seal == nil {
		return
	}
	b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(o.about) })
	for _, part := range [][]byte{o.seal.Public, o.seal.Private, o.seal.Seed} {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(part) })
	}
}

// decodeContents reads what encode has written, and nothing else. It refers to
// data.
func decodeContents(data []byte) (*contents, error) {
	in := cryptobyte.String(data)
	c := new(contents)
	var flags uint8
	var label cryptobyte.String
	if !in.CopyBytes(c.nonce[:]) || !in.ReadUint8(&flags) || !in.ReadUint32(&c.slot) || !in.ReadUint64(&c.created) || !in.ReadUint8LengthPrefixed(&label) {
		return nil, errShort
	}
	c.label = string(label)
	c.userPIN, c.noPIN = flags&flagUserPIN != 0, flags&flagNoPIN != 0
	switch {
	case flags&^(flagUserPIN|flagNoPIN|flagBound) != 0, c.userPIN && c.noPIN:
		return nil, fmt.Errorf("unknown flags %#x", flags)
	case len(c.label) > sealstore.MaxLabel || !utf8.ValidString(c.label):
		return nil, errors.New("the token's label is malformed")
	case c.slot > sealstore.MaxSlot:
		return nil, fmt.Errorf("slot number %d", c.slot)
	case c.created > sealstore.MaxCreated:
		return nil, fmt.Errorf("creation time %d", c.created)
	}
	if flags&flagBound != 0 {
		var err error
		if c.binding, err = decodeBinding(&in); err != nil {
			return nil, err
		}
	}
	var n uint32
	if !in.ReadUint32(&n) {
		return nil, errShort
	}
	for range n {
		o, err := decodeObject(&in)
		if err != nil {
			return nil, err
		}
		if last := len(c.objects) - 1; last >= 0 && bytes.Compare(c.objects[last].id[:], o.id[:]) >= 0 {
			return nil, errors.New("the objects are not in order")
		}
		c.objects = append(c.objects, o)
	}
	if !in.Empty() {
		return nil, fmt.Errorf("%d bytes too long", len(in))
	}
	return c, nil
}

func decodeBinding(in *cryptobyte.String) (*sealstore.BindingSpec, error) {
	var bank, pcrs cryptobyte.String
	if !in.ReadUint8LengthPrefixed(&bank) || !in.ReadUint8LengthPrefixed(&pcrs) {
		return nil, errShort
	}
	b := &sealstore.BindingSpec{Bank: string(bank)}
	for _, n := range pcrs {
		if last := len(b.PCRs) - 1; last >= 0 && int(n) <= b.PCRs[last] {
			return nil, errors.New("the PCRs of the binding are not in order")
		}
		b.PCRs = append(b.PCRs, int(n))
	}
	return b, b.Check()
}

func decodeObject(in *cryptobyte.String) (o object, err error) {
	var flags uint8
	var body cryptobyte.String
	if !in.ReadUint8(&flags) || !in.CopyBytes(o.id[:]) || !in.ReadUint24LengthPrefixed(&body) {
		return o, errShort
	}
	if flags&^(flagPrivate|flagSealed) != 0 {
		return o, fmt.Errorf("unknown flags %#x of an object", flags)
	}
	if len(body) > sealstore.MaxBody {
		return o, fmt.Errorf("an object of %d bytes", len(body))
	}
	o.private, o.body = flags&flagPrivate != 0, body
	if flags&flagSealed == 0 {
		return o, nil
	}
	var about cryptobyte.String
	if !in.ReadUint8LengthPrefixed(&about) {
		return o, errShort
	}
	if len(about) > sealstore.MaxAbout {
		return o, fmt.Errorf("a seal about %d bytes", len(about))
	}
	o.about, o.seal = about, new(tpm.Duplicate)
	for _, part := range []*[]byte{&o.seal.Public, &o.seal.Private, &o.seal.Seed} {
		var p cryptobyte.String
		if !in.ReadUint16LengthPrefixed(&p) {
			return o, errShort
		}
		if len(p) == 0 || len(p) > maxPart {
			return o, fmt.Errorf("a wrapped secret with a part of %d bytes", len(p))
		}
		*part = p
	}
	return o, nil
}
