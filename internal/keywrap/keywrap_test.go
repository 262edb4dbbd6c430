package keywrap

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The vectors of RFC 3394, section 4, and of RFC 5649, section 6.
func TestVectors(t *testing.T) {
	for _, v := range []struct {
		kek, text, wrapped string
		padded             bool
	}{
		{"000102030405060708090A0B0C0D0E0F", "00112233445566778899AABBCCDDEEFF", "1FA68B0A8112B447AEF34BD8FB5A7B829D3E862371D2CFE5", false},
		{"000102030405060708090A0B0C0D0E0F1011121314151617", "00112233445566778899AABBCCDDEEFF", "96778B25AE6CA435F92B5B97C050AED2468AB8A17AD84E5D", false},
		{"000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F", "00112233445566778899AABBCCDDEEFF", "64E8C3F9CE0F5BA263E9777905818A2A93C8191E7D6E8AE7", false},
		{"000102030405060708090A0B0C0D0E0F1011121314151617", "00112233445566778899AABBCCDDEEFF0001020304050607", "031D33264E15D33268F24EC260743EDCE1C6C7DDEE725A936BA814915C6762D2", false},
		{"000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F", "00112233445566778899AABBCCDDEEFF0001020304050607", "A8F9BC1612C68B3FF6E6F4FBE30E71E4769C8B80A32CB8958CD5D17D6B254DA1", false},
		{"000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F", "00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F", "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21", false},
		{"5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8", "c37b7e6492584340bed12207808941155068f738", "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a", true},
		{"5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8", "466f7250617369", "afbeb0f07dfbf5419200f2ccb50bb24f", true},
	} {
		wrap, unwrap := Wrap, Unwrap
		if v.padded {
			wrap, unwrap = WrapPadded, UnwrapPadded
		}
		kek, text, want := unhex(t, v.kek), unhex(t, v.text), unhex(t, v.wrapped)
		if got, err := wrap(kek, nil, text); err != nil || !bytes.Equal(got, want) {
			t.Errorf("wrapped %x, %v, want %x", got, err, want)
		}
		if got, err := unwrap(kek, nil, want); err != nil || !bytes.Equal(got, text) {
			t.Errorf("unwrapped %x, %v, want %x", got, err, text)
		}
		for i := range want {
			bad := bytes.Clone(want)
			bad[i] ^= 1
			if _, err := unwrap(kek, nil, bad); !errors.Is(err, ErrIntegrity) {
				t.Errorf("byte %d altered: %v", i, err)
			}
		}
	}
}

func TestSizes(t *testing.T) {
	kek := make([]byte, 16)
	for n := range 40 {
		text := bytes.Repeat([]byte{1}, n)
		w, err := Wrap(kek, nil, text)
		if ok := n >= 16 && n%8 == 0; ok != (err == nil) || ok && len(w) != n+8 {
			t.Errorf("KW of %d bytes: %d, %v", n, len(w), err)
		}
		w, err = WrapPadded(kek, nil, text)
		if (n >= 1) != (err == nil) {
			t.Errorf("KWP of %d bytes: %v", n, err)
		}
		if err == nil {
			if back, err := UnwrapPadded(kek, nil, w); err != nil || !bytes.Equal(back, text) {
				t.Errorf("KWP of %d bytes back: %x, %v", n, back, err)
			}
		}
		if _, err := Unwrap(kek, nil, text); err == nil {
			t.Errorf("unwrapped %d bytes of nothing", n)
		}
		if _, err := UnwrapPadded(kek, nil, text); err == nil {
			t.Errorf("unwrapped %d bytes of nothing, with padding", n)
		}
	}
	if _, err := Wrap(make([]byte, 17), nil, make([]byte, 16)); err == nil {
		t.Error("a key of 17 bytes")
	}
}

func FuzzUnwrap(f *testing.F) {
	kek := []byte("0123456789abcdef")
	w, _ := Wrap(kek, nil, make([]byte, 16))
	p, _ := WrapPadded(kek, nil, make([]byte, 5))
	f.Add(w)
	f.Add(p)
	f.Fuzz(func(t *testing.T, b []byte) {
		if text, err := Unwrap(kek, nil, b); err == nil {
			if again, err := Wrap(kek, nil, text); err != nil || !bytes.Equal(again, b) {
				t.Errorf("%x", b)
			}
		}
		if text, err := UnwrapPadded(kek, nil, b); err == nil {
			if again, err := WrapPadded(kek, nil, text); err != nil || !bytes.Equal(again, b) {
				t.Errorf("%x", b)
			}
		}
	})
}

// TestInitialValues gives initial values: the usual ones are those of the RFCs,
// and what was wrapped with another opens with that one alone.
func TestInitialValues(t *testing.T) {
	kek, text := []byte("0123456789abcdef"), bytes.Repeat([]byte{1}, 16)
	for _, m := range []struct {
		wrap, unwrap func(kek, iv, text []byte) ([]byte, error)
		usual        []byte
	}{{Wrap, Unwrap, unhex(t, "a6a6a6a6a6a6a6a6")}, {WrapPadded, UnwrapPadded, unhex(t, "a65959a6")}} {
		other := bytes.Repeat([]byte{7}, len(m.usual))
		standard, err := m.wrap(kek, nil, text)
		if err != nil {
			t.Fatal(err)
		}
		if w, err := m.wrap(kek, m.usual, text); err != nil || !bytes.Equal(w, standard) {
			t.Errorf("with the usual value: %x, %v", w, err)
		}
		w, err := m.wrap(kek, other, text)
		if err != nil || bytes.Equal(w, standard) {
			t.Errorf("with another value: %x, %v", w, err)
		}
		if back, err := m.unwrap(kek, other, w); err != nil || !bytes.Equal(back, text) {
			t.Errorf("unwrapped: %x, %v", back, err)
		}
		if _, err := m.unwrap(kek, nil, w); !errors.Is(err, ErrIntegrity) {
			t.Errorf("unwrapped with the usual value: %v", err)
		}
		if _, err := m.wrap(kek, other[1:], text); !errors.Is(err, ErrSize) {
			t.Errorf("a short value: %v", err)
		}
		if _, err := m.unwrap(kek, append(other, 0), w); !errors.Is(err, ErrSize) {
			t.Errorf("a long value: %v", err)
		}
	}
}
