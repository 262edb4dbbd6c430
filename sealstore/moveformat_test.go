package sealstore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"testing"
	"time"
)

func moveSamples() (*offerFile, *Move) {
	o := &offerFile{ID: OfferID{1, 2, 3}, Created: 1700000000, Parent: append([]byte{0, 11}, bytes.Repeat([]byte{0xaa}, 32)...),
		Blob: Blob{Public: []byte("offer public"), Private: []byte("offer private")}}
	m := &Move{Offer: OfferID{1, 2, 3}, Target: append([]byte{0, 11}, bytes.Repeat([]byte{0xbb}, 32)...),
		Nonce: [32]byte{4}, Keys: [32]byte{5}, State: [32]byte{6}, Started: time.Unix(1700000001, 0)}
	return o, m
}

func recodeOffer(p []byte) ([]byte, error) {
	f, err := decodeOffer(p)
	if err != nil {
		return nil, err
	}
	return f.encode(), nil
}

func recodeMove(p []byte) ([]byte, error) {
	m, err := decodeMove(p)
	if err != nil {
		return nil, err
	}
	return m.encode(), nil
}

// Files of migrations have one form, which stays as docs/format.md says.
func TestMoveFormat(t *testing.T) {
	o, m := moveSamples()
	for name, f := range map[string]struct {
		data   []byte
		decode func([]byte) ([]byte, error)
	}{"offer": {o.encode(), recodeOffer}, "migration": {m.encode(), recodeMove}} {
		want, err := os.ReadFile("testdata/v1-" + name + ".hex")
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(f.data) + "\n"; got != string(want) {
			t.Errorf("%s: encodes to %s", name, got)
		}
		if back, err := f.decode(f.data); err != nil || !bytes.Equal(back, f.data) {
			t.Errorf("%s: %x, %v", name, back, err)
		}
		for n := range f.data {
			if _, err := f.decode(f.data[:n]); !errors.Is(err, ErrIntegrity) {
				t.Errorf("%s cut to %d bytes: %v", name, n, err)
			}
		}
		if _, err := f.decode(append(bytes.Clone(f.data), 0)); !errors.Is(err, ErrIntegrity) {
			t.Errorf("%s with a byte more: %v", name, err)
		}
		next := bytes.Clone(f.data)
		next[7]++
		if _, err := f.decode(next); !errors.Is(err, ErrIntegrity) {
			t.Errorf("%s of the next version: %v", name, err)
		}
	}
	o.Parent, o.Blob = make([]byte, maxName), Blob{Public: make([]byte, maxBlobPart), Private: make([]byte, maxBlobPart)}
	if n := len(o.encode()); n != maxOfferFile {
		t.Errorf("the largest offer has %d bytes, not %d", n, maxOfferFile)
	}
	m.Target = make([]byte, maxName)
	if n := len(m.encode()); n != maxMoveFile {
		t.Errorf("the largest move has %d bytes, not %d", n, maxMoveFile)
	}
}

func FuzzOffer(f *testing.F) {
	o, _ := moveSamples()
	f.Add(o.encode())
	f.Add([]byte(offerMagic))
	fuzz(f, recodeOffer)
}

func FuzzMove(f *testing.F) {
	_, m := moveSamples()
	f.Add(m.encode())
	f.Add(m.encode()[:60])
	fuzz(f, recodeMove)
}
