// Package tss2 reads and writes TPM 2.0 key files, "TSS2 PRIVATE KEY" in PEM:
// the form in which tpm2-tools, OpenSSL's TPM engines and providers, GnuTLS and
// ssh-tpm-agent keep objects of a TPM (draft-bottomley-tpm2-keys). Nothing in
// such a file is confidential.
//
// The decoder is strict: DER without anything behind it, every length right,
// and what it takes encodes to the same bytes again.
package tss2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// PEMType stands behind BEGIN in the PEM form.
const PEMType = "TSS2 PRIVATE KEY"

// MaxFile is the size of the largest file, in bytes of DER.
const MaxFile = 4096

// Type says how the TPM takes the object in.
type Type int

// The numbers are the last ones of the object identifiers 2.23.133.10.1.
const (
	Loadable   Type = 3 // by TPM2_Load
	Importable Type = 4 // by TPM2_Import
	Sealed     Type = 5 // by TPM2_Load; TPM2_Unseal gives its content
)

// oid is 2.23.133.10.1, to which the type is added.
var oid = []byte{0x67, 0x81, 0x05, 0x0a, 0x01}

// Flag is an optional BOOLEAN. Beside those of DER there is one that OpenSSL's
// encoder makes of a C true, and so tpm2-tools.
type Flag uint16

const (
	Absent Flag = 0
	False  Flag = 0x100
	True   Flag = 0x1ff
	One    Flag = 0x101 // TRUE, encoded as 1
)

// Set tells whether the flag is there and not FALSE.
func (f Flag) Set() bool { return f == True || f == One }

// Command is one step of a policy.
type Command struct {
	Code uint32 // TPM_CC
	Body []byte // its parameters, as they are sent
}

// AuthPolicy is an alternative policy, of TPM2_PolicyAuthorize.
type AuthPolicy struct {
	Name   string // may be empty
	Policy []Command
}

// Key is a TPM 2.0 key file.
type Key struct {
	Type         Type
	EmptyAuth    Flag // the object has no password
	Policy       []Command
	Secret       []byte // TPM2B_ENCRYPTED_SECRET, of an importable object
	AuthPolicies []AuthPolicy
	Description  string
	RSAParent    Flag
	ParentName   []byte // the Name of the parent; nil: not told
	Parent       uint32 // a persistent handle, or the hierarchy of a primary key
	Public       []byte // TPMT_PUBLIC
	Private      []byte // the buffer of TPM2B_PRIVATE
}

// WantsPassword tells whether the file says that the object has a password.
//
// tpm2_encodeobject (up to 5.4, at least) writes the flag the wrong way
// round, TRUE as 1, and any object as a loadable one: nobody else does that
// with sealed data.
func (k *Key) WantsPassword() bool {
	if k.Type == Loadable && (k.EmptyAuth == False || k.EmptyAuth == One) {
		return k.EmptyAuth.Set()
	}
	return !k.EmptyAuth.Set()
}

// Tags of the optional elements.
func tag(n uint8) asn1.Tag { return asn1.Tag(n).ContextSpecific().Constructed() }

var errMalformed = errors.New("the TSS2 PRIVATE KEY is malformed")

// Parse reads the DER of a key file. The result holds no part of der.
func Parse(der []byte) (*Key, error) {
	if len(der) > MaxFile {
		return nil, fmt.Errorf("%w: it has more than %d bytes", errMalformed, MaxFile)
	}
	in := cryptobyte.String(bytes.Clone(der))
	var seq cryptobyte.String
	if !in.ReadASN1(&seq, asn1.SEQUENCE) || !in.Empty() {
		return nil, errMalformed
	}
	k := &Key{}
	for _, step := range []struct {
		what string
		read func(*cryptobyte.String) bool
	}{
		{"type", k.readType},
		{"emptyAuth", func(s *cryptobyte.String) bool { return readFlag(s, 0, &k.EmptyAuth) }},
		{"policy", func(s *cryptobyte.String) bool { return optional(s, 1, readPolicy(&k.Policy)) }},
		{"secret", func(s *cryptobyte.String) bool { return optional(s, 2, readOctets(&k.Secret)) }},
		{"authPolicy", func(s *cryptobyte.String) bool { return optional(s, 3, k.readAuthPolicies) }},
		{"description", func(s *cryptobyte.String) bool { return optional(s, 4, readText(&k.Description)) }},
		{"rsaParent", func(s *cryptobyte.String) bool { return readFlag(s, 5, &k.RSAParent) }},
		{"parentName", func(s *cryptobyte.String) bool { return optional(s, 6, readOctets(&k.ParentName)) }},
		{"parent", func(s *cryptobyte.String) bool { return s.ReadASN1Integer(&k.Parent) }},
		{"pubkey", readSized(&k.Public)},
		{"privkey", readSized(&k.Private)},
	} {
		if !step.read(&seq) {
			return nil, fmt.Errorf("%w at its %s", errMalformed, step.what)
		}
	}
	if !seq.Empty() {
		return nil, fmt.Errorf("%w: there is more behind its privkey", errMalformed)
	}
	return k, nil
}

func (k *Key) readType(s *cryptobyte.String) bool {
	var id cryptobyte.String
	if !s.ReadASN1(&id, asn1.OBJECT_IDENTIFIER) || len(id) != len(oid)+1 || !bytes.Equal(id[:len(oid)], oid) {
		return false
	}
	k.Type = Type(id[len(oid)])
	return k.Type == Loadable || k.Type == Importable || k.Type == Sealed
}

// optional reads an element that is explicitly tagged, if it is there.
func optional(s *cryptobyte.String, n uint8, read func(*cryptobyte.String) bool) bool {
	var inner cryptobyte.String
	var there bool
	return s.ReadOptionalASN1(&inner, &there, tag(n)) && (!there || read(&inner) && inner.Empty())
}

func readFlag(s *cryptobyte.String, n uint8, f *Flag) bool {
	return optional(s, n, func(s *cryptobyte.String) bool {
		var b cryptobyte.String
		if !s.ReadASN1(&b, asn1.BOOLEAN) || len(b) != 1 {
			return false
		}
		*f = 0x100 | Flag(b[0])
		return *f == False || f.Set()
	})
}

func readPolicy(p *[]Command) func(*cryptobyte.String) bool {
	return func(s *cryptobyte.String) bool {
		var list cryptobyte.String
		if !s.ReadASN1(&list, asn1.SEQUENCE) || list.Empty() {
			return false
		}
		for !list.Empty() {
			var c Command
			var one, code cryptobyte.String
			if !list.ReadASN1(&one, asn1.SEQUENCE) || !one.ReadASN1(&code, tag(0)) || !code.ReadASN1Integer(&c.Code) || !code.Empty() ||
				!one.ReadASN1(&code, tag(1)) || !readOctets(&c.Body)(&code) || !code.Empty() || !one.Empty() {
				return false
			}
			*p = append(*p, c)
		}
		return true
	}
}

func (k *Key) readAuthPolicies(s *cryptobyte.String) bool {
	var list cryptobyte.String
	if !s.ReadASN1(&list, asn1.SEQUENCE) || list.Empty() {
		return false
	}
	for !list.Empty() {
		var a AuthPolicy
		var one, policy cryptobyte.String
		if !list.ReadASN1(&one, asn1.SEQUENCE) || !optional(&one, 0, readText(&a.Name)) ||
			!one.ReadASN1(&policy, tag(1)) || !readPolicy(&a.Policy)(&policy) || !policy.Empty() || !one.Empty() {
			return false
		}
		k.AuthPolicies = append(k.AuthPolicies, a)
	}
	return true
}

func readOctets(p *[]byte) func(*cryptobyte.String) bool {
	return func(s *cryptobyte.String) bool {
		*p = []byte{} // not nil: it is there
		return s.ReadASN1Bytes(p, asn1.OCTET_STRING)
	}
}

// readText takes no empty text: whoever has nothing to say leaves it out.
func readText(p *string) func(*cryptobyte.String) bool {
	return func(s *cryptobyte.String) bool {
		var b cryptobyte.String
		if !s.ReadASN1(&b, asn1.UTF8String) || b.Empty() || !utf8.Valid(b) {
			return false
		}
		*p = string(b)
		return true
	}
}

// readSized reads an OCTET STRING that holds a TPM2B, a length of two bytes
// and what it counts.
func readSized(p *[]byte) func(*cryptobyte.String) bool {
	return func(s *cryptobyte.String) bool {
		var b []byte
		if !s.ReadASN1Bytes(&b, asn1.OCTET_STRING) || len(b) < 3 || int(binary.BigEndian.Uint16(b)) != len(b)-2 {
			return false
		}
		*p = b[2:]
		return true
	}
}

// Marshal writes the DER of a key file.
func (k *Key) Marshal() ([]byte, error) {
	b := cryptobyte.NewBuilder(nil)
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) {
			b.AddBytes(oid)
			b.AddUint8(uint8(k.Type))
		})
		addFlag(b, 0, k.EmptyAuth)
		if k.Policy != nil {
			b.AddASN1(tag(1), addPolicy(k.Policy))
		}
		addOctets(b, 2, k.Secret)
		if k.AuthPolicies != nil {
			b.AddASN1(tag(3), func(b *cryptobyte.Builder) {
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					for _, a := range k.AuthPolicies {
						b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
							addText(b, 0, a.Name)
							b.AddASN1(tag(1), addPolicy(a.Policy))
						})
					}
				})
			})
		}
		addText(b, 4, k.Description)
		addFlag(b, 5, k.RSAParent)
		addOctets(b, 6, k.ParentName)
		b.AddASN1Uint64(uint64(k.Parent))
		addSized(b, k.Public)
		addSized(b, k.Private)
	})
	return b.Bytes()
}

func addFlag(b *cryptobyte.Builder, n uint8, f Flag) {
	if f != Absent {
		b.AddASN1(tag(n), func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.BOOLEAN, func(b *cryptobyte.Builder) { b.AddUint8(uint8(f)) })
		})
	}
}

func addPolicy(p []Command) func(*cryptobyte.Builder) {
	return func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			for _, c := range p {
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1(tag(0), func(b *cryptobyte.Builder) { b.AddASN1Uint64(uint64(c.Code)) })
					b.AddASN1(tag(1), func(b *cryptobyte.Builder) { b.AddASN1OctetString(c.Body) })
				})
			}
		})
	}
}

func addOctets(b *cryptobyte.Builder, n uint8, p []byte) {
	if p != nil {
		b.AddASN1(tag(n), func(b *cryptobyte.Builder) { b.AddASN1OctetString(p) })
	}
}

func addText(b *cryptobyte.Builder, n uint8, s string) {
	if s != "" {
		b.AddASN1(tag(n), func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.UTF8String, func(b *cryptobyte.Builder) { b.AddBytes([]byte(s)) })
		})
	}
}

func addSized(b *cryptobyte.Builder, p []byte) {
	b.AddASN1(asn1.OCTET_STRING, func(b *cryptobyte.Builder) {
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(p) })
	})
}
