// Package migration has what passes between two machines when a token goes
// from the TPM of one to that of the other: the target's [Offer], the source's
// [Parcel], and the target's [Proof]. docs/format.md describes them byte by
// byte, docs/migration.md what each protects against.
package migration

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
)

// version is that of all three formats.
const version = 1

// ID names an offer.
type ID [16]byte

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Serial is that of a token.
type Serial [8]byte

func (s Serial) String() string { return hex.EncodeToString(s[:]) }

// nameSize is that of the Name of a storage root key: the identifier of SHA-256
// and a digest.
const nameSize = 34

// The texts have one form each: what is not written as encodeText writes it,
// down to the last blank, is refused. So a digest of the file is one of its
// content, and any program computes it.
func encodeText(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		panic(err) // these are structures of strings and numbers
	}
	return b.Bytes()
}

func decodeText(data []byte, limit int, v any) error {
	if len(data) > limit {
		return fmt.Errorf("it has more than %d bytes", limit)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return errors.New("it is cut, or altered, or none at all")
	}
	if !bytes.Equal(encodeText(v), data) {
		return errors.New("it is not as it was written: was it edited, or sent by something that changes line ends?")
	}
	return nil
}

// hexBytes is written in hexadecimal digits.
type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// sized gives what has to have a size.
func (h hexBytes) sized(dst []byte) bool { return len(h) == len(dst) && copy(dst, h) == len(dst) }

// base64Bytes is written in base64.
type base64Bytes []byte

func (b base64Bytes) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, b), nil
}

func (b *base64Bytes) UnmarshalText(text []byte) (err error) {
	*b, err = base64.StdEncoding.Strict().DecodeString(string(text))
	return err
}
