// Package keywrap is AES key wrap: KW (RFC 3394) and KWP, with padding (RFC
// 5649). It is the modes alone, over crypto/aes: no library that this module
// uses has them.
package keywrap

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
)

// Errors.
var (
	// ErrSize: the text has a length that the mode does not take.
	ErrSize = errors.New("keywrap: the length is not one that the mode takes")
	// ErrIntegrity: the text was not wrapped under this key, or was altered.
	ErrIntegrity = errors.New("keywrap: the wrapped key does not authenticate")
)

const half = aes.BlockSize / 2

// maxSize bounds what is wrapped, in bytes.
const maxSize = 1 << 20

var (
	kwValue  = bytes.Repeat([]byte{0xa6}, half) // RFC 3394, section 2.2.3.1
	kwpValue = []byte{0xa6, 0x59, 0x59, 0xa6}   // RFC 5649, section 3
)

// The sizes of initial values in bytes.
const (
	IVSize       = half
	PaddedIVSize = half / 2
)

// initial gives the initial value that a caller chose, or the usual one.
func initial(iv, usual []byte) ([]byte, error) {
	if iv == nil {
		iv = usual
	}
	if len(iv) != len(usual) {
		return nil, ErrSize
	}
	return iv, nil
}

// Wrap wraps 16 or more bytes, a multiple of 8, by KW. kek has 16, 24 or 32
// bytes; iv is nil for the usual initial value, or IVSize bytes.
func Wrap(kek, iv, text []byte) ([]byte, error) {
	iv, err := initial(iv, kwValue)
	if err != nil || len(text) < 2*half || len(text)%half != 0 || len(text) > maxSize {
		return nil, ErrSize
	}
	b, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	return wrap(b, iv, text), nil
}

// Unwrap takes Wrap back.
func Unwrap(kek, iv, wrapped []byte) ([]byte, error) {
	iv, err := initial(iv, kwValue)
	if err != nil || len(wrapped) < 3*half || len(wrapped)%half != 0 || len(wrapped) > maxSize {
		return nil, ErrSize
	}
	b, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	value, text := unwrap(b, wrapped)
	if subtle.ConstantTimeCompare(value, iv) != 1 {
		clear(text)
		return nil, ErrIntegrity
	}
	return text, nil
}

// WrapPadded wraps 1 or more bytes by KWP. kek has 16, 24 or 32 bytes; iv is nil
// for the usual initial value, or PaddedIVSize bytes.
func WrapPadded(kek, iv, text []byte) ([]byte, error) {
	iv, err := initial(iv, kwpValue)
	if err != nil || len(text) < 1 || len(text) > maxSize {
		return nil, ErrSize
	}
	b, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	value := binary.BigEndian.AppendUint32(bytes.Clone(iv), uint32(len(text)))
	padded := make([]byte, (len(text)+half-1)/half*half)
	defer clear(padded)
	copy(padded, text)
	if len(padded) == half {
		out := append(value, padded...)
		b.Encrypt(out, out)
		return out, nil
	}
	return wrap(b, value, padded), nil
}

// UnwrapPadded takes WrapPadded back.
func UnwrapPadded(kek, iv, wrapped []byte) ([]byte, error) {
	iv, err := initial(iv, kwpValue)
	if err != nil || len(wrapped) < 2*half || len(wrapped)%half != 0 || len(wrapped) > maxSize {
		return nil, ErrSize
	}
	b, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	var value, text []byte
	if len(wrapped) == 2*half {
		out := make([]byte, aes.BlockSize)
		b.Decrypt(out, wrapped)
		value, text = out[:half], out[half:]
	} else {
		value, text = unwrap(b, wrapped)
	}
	n := int64(binary.BigEndian.Uint32(value[4:]))
	ok := subtle.ConstantTimeCompare(value[:4], iv)
	// The padding is at most 7 bytes, all zero.
	if n > int64(len(text)) || n <= int64(len(text)-half) {
		ok, n = 0, int64(len(text))
	}
	var sum byte
	for _, c := range text[n:] {
		sum |= c
	}
	if ok&subtle.ConstantTimeByteEq(sum, 0) != 1 {
		clear(text)
		return nil, ErrIntegrity
	}
	return text[:n], nil
}

// wrap is the wrapping process of RFC 3394, section 2.2.1.
func wrap(b cipher.Block, value, text []byte) []byte {
	n := len(text) / half
	out := append(bytes.Clone(value), text...)
	var block [aes.BlockSize]byte
	a := block[:half]
	copy(a, value)
	for j := range 6 {
		for i := 1; i <= n; i++ {
			r := out[i*half : (i+1)*half]
			copy(block[half:], r)
			b.Encrypt(block[:], block[:])
			copy(r, block[half:])
			count(a, uint64(n*j+i))
		}
	}
	copy(out, a)
	return out
}

// unwrap is the unwrapping process of section 2.2.2.
func unwrap(b cipher.Block, wrapped []byte) (value, text []byte) {
	n := len(wrapped)/half - 1
	out := bytes.Clone(wrapped)
	var block [aes.BlockSize]byte
	a := block[:half]
	copy(a, out)
	for j := 5; j >= 0; j-- {
		for i := n; i >= 1; i-- {
			r := out[i*half : (i+1)*half]
			count(a, uint64(n*j+i))
			copy(block[half:], r)
			b.Decrypt(block[:], block[:])
			copy(r, block[half:])
		}
	}
	copy(out, a)
	return out[:half], out[half:]
}

// count XORs a step's number into the register.
func count(a []byte, t uint64) {
	binary.BigEndian.PutUint64(a, binary.BigEndian.Uint64(a)^t)
}
