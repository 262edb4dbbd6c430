// Package did writes and reads ICN's decentralised identifiers: did:icn:
// followed by the multibase text of the 32 raw bytes of an Ed25519 public
// key. Unlike in did:key no multicodec prefix stands before the key.
package did

import (
	"bytes"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
)

// Prefix starts every ICN identifier.
const Prefix = "did:icn:"

// maxText bounds what Parse looks at: 64 digits are the longest form of a key
// among the encodings below.
const maxText = 128

// Encode gives the identifier of a public key, always in base58btc.
func Encode(pub [eddsa.PublicKeySize]byte) string {
	return Prefix + "z" + base58(pub[:])
}

// Parse reads an identifier in any of the multibase encodings base16, base32,
// base32hex, base58btc, base64 and base64url. Identifiers are equal when their
// keys are, so compare what Parse gives.
func Parse(s string) (pub [eddsa.PublicKeySize]byte, err error) {
	text, ok := strings.CutPrefix(s, Prefix)
	if !ok {
		return pub, fmt.Errorf("%q does not start with %s", clip(s), Prefix)
	}
	if text == "" || len(text) > maxText {
		return pub, fmt.Errorf("%q: %d characters cannot hold a public key", clip(s), len(text))
	}
	key, err := decode(text[0], text[1:])
	if err != nil {
		return pub, fmt.Errorf("%q: %w", clip(s), err)
	}
	if len(key) != len(pub) {
		return pub, fmt.Errorf("%q: %d bytes instead of the %d of a public key", clip(s), len(key), len(pub))
	}
	if !eddsa.ValidPublicKey(key) {
		return pub, fmt.Errorf("%q: not an Ed25519 public key", clip(s))
	}
	return [eddsa.PublicKeySize]byte(key), nil
}

func clip(s string) string {
	if len(s) > maxText {
		return s[:maxText] + "…"
	}
	return s
}

type encoding interface {
	DecodeString(string) ([]byte, error)
	EncodeToString([]byte) string
}

type base16 struct{}

func (base16) DecodeString(s string) ([]byte, error) { return hex.DecodeString(s) }
func (base16) EncodeToString(b []byte) string        { return hex.EncodeToString(b) }

// rfc4648 are the encodings that Go has, by the lower-case multibase code.
// Those with an upper-case twin stand in anyCase.
var rfc4648 = map[byte]encoding{
	'f': base16{},
	'b': lower{base32.StdEncoding.WithPadding(base32.NoPadding)},
	'c': lower{base32.StdEncoding},
	'v': lower{base32.HexEncoding.WithPadding(base32.NoPadding)},
	't': lower{base32.HexEncoding},
	'm': base64.RawStdEncoding,
	'M': base64.StdEncoding,
	'u': base64.RawURLEncoding,
	'U': base64.URLEncoding,
}

const anyCase = "fbcvt"

// lower is a base32 alphabet in lower case.
type lower struct{ *base32.Encoding }

func (l lower) DecodeString(s string) ([]byte, error) {
	return l.Encoding.DecodeString(strings.ToUpper(s))
}
func (l lower) EncodeToString(b []byte) string {
	return strings.ToLower(l.Encoding.EncodeToString(b))
}

func decode(code byte, text string) ([]byte, error) {
	if code == 'z' {
		return unbase58(text)
	}
	e := rfc4648[code]
	upper := false
	if low := code | 0x20; e == nil && strings.IndexByte(anyCase, low) >= 0 {
		e, upper = rfc4648[low], true
	}
	if e == nil {
		return nil, fmt.Errorf("multibase code %q is not supported", code)
	}
	key, err := e.DecodeString(text)
	if err != nil {
		return nil, err
	}
	// Go's decoders skip line breaks and ignore unused bits.
	again := e.EncodeToString(key)
	if upper {
		again = strings.ToUpper(again)
	}
	if again != text {
		return nil, errors.New("not the encoding that its multibase code announces")
	}
	return key, nil
}

const alphabet = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

var radix = big.NewInt(58)

// base58 writes b as a number to the base 58, a leading zero byte as '1'.
func base58(b []byte) string {
	var out []byte
	n, digit := new(big.Int).SetBytes(b), new(big.Int)
	for n.Sign() > 0 {
		n.DivMod(n, radix, digit)
		out = append(out, alphabet[digit.Int64()])
	}
	for _, c := range b {
		if c != 0 {
			break
		}
		out = append(out, alphabet[0])
	}
	slices.Reverse(out)
	return string(out)
}

func unbase58(s string) ([]byte, error) {
	n := new(big.Int)
	for i := range len(s) {
		d := strings.IndexByte(alphabet, s[i])
		if d < 0 {
			return nil, fmt.Errorf("%q is not a base58 digit", s[i])
		}
		n.Mul(n, radix).Add(n, big.NewInt(int64(d)))
	}
	zeros := len(s) - len(strings.TrimLeft(s, alphabet[:1]))
	return append(bytes.Repeat([]byte{0}, zeros), n.Bytes()...), nil
}
