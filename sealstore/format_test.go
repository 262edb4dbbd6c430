package sealstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
)

// samples are files with every optional part, and without.
func samples() (tokens []*tokenFile, objects []*objectFile) {
	f := &tokenFile{
		Serial: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}, Slot: 3, Created: 1700000000,
		Parent: append([]byte{0, 11}, bytes.Repeat([]byte{0xaa}, 32)...),
		SO:     pinSeal{KDF: kdf{Memory: 19 << 10, Passes: 2, Lanes: 1}, Blob: Blob{Public: []byte("so public"), Private: []byte("so private")}},
		Public: Blob{Public: []byte("public public"), Private: []byte("public private")},
	}
	f.Label, _ = padLabel("Zoë")
	g := *f
	g.Device = append([]byte{0, 11}, bytes.Repeat([]byte{0xbb}, 32)...)
	g.User = &pinSeal{KDF: kdf{Salt: [16]byte{9}, Memory: minKDFMemory, Passes: maxKDFPasses, Lanes: maxKDFLanes},
		Blob: Blob{Public: []byte("user public"), Private: bytes.Repeat([]byte{7}, maxBlobPart)}}
	h := g
	h.Binding = &Binding{Bank: "sha256", PCRs: []int{0, 7}, Approver: []byte("approver"), Approvals: []Approval{
		{Values: [][]byte{bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)}, Signature: []byte("signature"), Ticket: []byte("ticket")},
		{Values: [][]byte{bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{3}, 32)}, Signature: []byte("other")},
	}}
	o := &objectFile{ID: ID{1, 2, 3}, Serial: f.Serial, Nonce: [24]byte{5}, Ciphertext: bytes.Repeat([]byte{3}, overhead)}
	p := *o
	p.Flags = flagPrivate | flagSealed
	p.Seal = Blob{Public: []byte("p"), Private: []byte("q")}
	p.Ciphertext = bytes.Repeat([]byte{4}, 100)
	r := *o
	r.Flags = flagPrivate | flagSealed | flagCreation
	r.Seal = Blob{Public: []byte("p"), Private: []byte("q"), Creation: &Creation{About: []byte("about"), Data: []byte("data"), Ticket: []byte("ticket")}}
	q := *o
	q.Flags = flagPrivate | flagSealed | flagDevice
	q.Seal = Blob{Public: []byte("p"), Private: []byte("q")}
	n := h
	n.Flags = flagRecoverable
	n.User = &pinSeal{Blob: Blob{Public: []byte("user public"), Private: []byte("user private")}, NoPIN: true}
	return []*tokenFile{f, &g, &h, &n}, []*objectFile{o, &p, &r, &q}
}

func TestFormatBounds(t *testing.T) {
	tokens, objects := samples()
	check := func(what string, data []byte, decode func([]byte) ([]byte, error)) {
		t.Helper()
		back, err := decode(data)
		if err != nil || !bytes.Equal(back, data) {
			t.Fatalf("%s: %v, %x", what, err, back)
		}
		for n := range data {
			if _, err := decode(data[:n]); !errors.Is(err, ErrIntegrity) {
				t.Fatalf("%s cut to %d bytes: %v", what, n, err)
			}
		}
		if _, err := decode(append(bytes.Clone(data), 0)); !errors.Is(err, ErrIntegrity) {
			t.Fatalf("%s with a byte more: %v", what, err)
		}
		data = bytes.Clone(data)
		data[7]++
		if _, err := decode(data); !errors.Is(err, ErrIntegrity) {
			t.Fatalf("%s of the next version: %v", what, err)
		}
	}
	for _, f := range tokens {
		check("token", f.encode(), recodeToken)
	}
	for _, f := range objects {
		check("object", f.encode(), recodeObject)
	}
	for kind := range 256 {
		p := tokens[3].encode()
		p[bytes.Index(p, []byte("so private"))+len("so private")] = byte(kind)
		if _, err := decodeToken(p); (err == nil) != (kind == 2) {
			t.Errorf("a user seal of kind %d: %v", kind, err)
		}
	}
	weak := *tokens[0]
	for _, k := range []kdf{
		{Memory: minKDFMemory - 1, Passes: 1, Lanes: 1}, {Memory: maxKDFMemory + 1, Passes: 1, Lanes: 1},
		{Memory: minKDFMemory, Passes: 0, Lanes: 1}, {Memory: minKDFMemory, Passes: maxKDFPasses + 1, Lanes: 1},
		{Memory: minKDFMemory, Passes: 1, Lanes: 0}, {Memory: minKDFMemory, Passes: 1, Lanes: maxKDFLanes + 1},
	} {
		weak.SO.KDF = k
		if _, err := decodeToken(weak.encode()); !errors.Is(err, ErrIntegrity) {
			t.Errorf("accepted %+v", k)
		}
	}
	largest := *objects[1]
	largest.setSeal(Blob{Public: make([]byte, maxBlobPart), Private: make([]byte, maxBlobPart),
		Creation: &Creation{About: make([]byte, MaxAbout), Data: make([]byte, maxCreation), Ticket: make([]byte, maxMark)}})
	largest.Ciphertext = make([]byte, MaxBody+overhead)
	if n := len(largest.encode()); n != maxObjectFile {
		t.Errorf("the largest object has %d bytes, not %d", n, maxObjectFile)
	}
	full := *tokens[1]
	full.Parent, full.Device = make([]byte, maxName), make([]byte, maxName)
	full.SO.Blob, full.User.Blob, full.Public = largest.Seal, largest.Seal, largest.Seal
	full.Binding = &Binding{Bank: "sha512", Approver: make([]byte, maxApprover)}
	for n := range pcrCount {
		full.Binding.PCRs = append(full.Binding.PCRs, n)
	}
	a := Approval{Values: slices.Repeat([][]byte{make([]byte, maxDigest)}, pcrCount), Signature: make([]byte, maxSignature), Ticket: make([]byte, maxTicket)}
	full.Binding.Approvals = slices.Repeat([]Approval{a}, maxApprovals)
	if n := len(full.encode()); n != maxTokenFile {
		t.Errorf("the largest token has %d bytes, not %d", n, maxTokenFile)
	}
}

// TestFormatVectors keeps what docs/format.md says: files of that version stay
// readable, and keys come out the same.
func TestFormatVectors(t *testing.T) {
	tokens, objects := samples()
	for name, data := range map[string][]byte{
		"token": tokens[0].encode(), "token-user": tokens[1].encode(), "token-bound": tokens[2].encode(), "token-no-pin": tokens[3].encode(),
		"object": objects[0].encode(), "object-sealed": objects[1].encode(),
		"object-creation": objects[2].encode(), "object-device": objects[3].encode(),
	} {
		path := "testdata/v1-" + name + ".hex"
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(data) + "\n"; got != string(want) {
			t.Errorf("%s: encodes to %s", path, got)
		}
	}

	k, err := newKeyring()
	if err != nil {
		t.Fatal(err)
	}
	defer k.destroy()
	for i := range secretSize {
		k.secret()[i] = byte(i)
	}
	for private, want := range map[bool][2]string{
		true:  {"6a4f167e7ade5b8f2df57471384d42c20b87a2c7442be2bb1df850cc09dc5661", "0BPN-2fKSLJ9iQuQJnVoMxWZ2lNdwn3Q"},
		false: {"de7e7234d359dba454e8fc60918dcadae561be61053ecbe396a78ea43de9b201", "IyXAq2SHsEFQ_egKQJRuAd1lfUFJPlTL"},
	} {
		if err := k.derive(private); err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(k.bodyKey()); got != want[0] {
			t.Errorf("body key %s", got)
		}
		if got := string(k.auth()); got != want[1] {
			t.Errorf("authorisation value %s", got)
		}
	}
	if got := hex.EncodeToString(k.macKey()); got != "137880e5eaf1eeead2893be97997a9a9c5bfb28c16dbb4831bd919aa672f8fdc" {
		t.Errorf("MAC key %s", got)
	}
	for role, want := range map[Role]string{User: "_tGV47NWbL-yLoSiQHBDbQHapuUH8JD3", SO: "nE-wj5iram4IeaaxsdKihZ2FtozNqFOU"} {
		a, err := pinAuth(role, kdf{Salt: [16]byte{1}, Memory: minKDFMemory, Passes: 1, Lanes: 1}, []byte("1234"))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(a.Bytes()); got != want {
			t.Errorf("%s PIN: %s", role, got)
		}
		a.Destroy()
	}
}

func recodeToken(p []byte) ([]byte, error) {
	f, err := decodeToken(p)
	if err != nil {
		return nil, err
	}
	return f.encode(), nil
}

func recodeObject(p []byte) ([]byte, error) {
	f, err := decodeObject(p)
	if err != nil {
		return nil, err
	}
	return f.encode(), nil
}

// What is accepted must encode to the same bytes: a file has one form only, so
// nobody can alter one without its MAC or tag noticing.
func fuzz(f *testing.F, decode func([]byte) ([]byte, error)) {
	f.Fuzz(func(t *testing.T, p []byte) {
		back, err := decode(p)
		if err == nil && !bytes.Equal(back, p) {
			t.Fatalf("%x encodes to %x", p, back)
		}
		if err != nil && !errors.Is(err, ErrIntegrity) {
			t.Fatal(err)
		}
	})
}

func FuzzToken(f *testing.F) {
	tokens, _ := samples()
	for _, s := range tokens {
		p := s.encode()
		f.Add(p)
		f.Add(p[:len(p)/2])
	}
	f.Add([]byte(tokenMagic))
	fuzz(f, recodeToken)
}

func FuzzObject(f *testing.F) {
	_, objects := samples()
	for _, s := range objects {
		p := s.encode()
		f.Add(p)
		f.Add(append(p, 0))
	}
	f.Add([]byte(objectMagic + "\x01\xff"))
	fuzz(f, recodeObject)
}

// FuzzSnapshot is about what a snapshot holds once it was decrypted.
func FuzzSnapshot(f *testing.F) {
	var text []byte
	for i, body := range []string{"", "a body", "another"} {
		r := record{ID{byte(i)}, fileID{0, 1, 2, 3, 4}, [sha256.Size]byte{5}, []byte(body)}
		text = r.encode(text)
		f.Add(text)
	}
	f.Add(text[:len(text)-1])
	f.Add(append(text, text...))
	fuzz(f, func(p []byte) (back []byte, err error) {
		s, err := decodeSnapshot(p)
		if err != nil {
			return nil, err
		}
		for _, at := range s.at {
			r, _ := decodeRecord(s.text[at:])
			if got, ok := s.find(r.id, func() (fileID, error) { return r.file, nil }); !ok || !bytes.Equal(got.body, r.body) {
				return nil, fmt.Errorf("record %x is not found", r.id)
			}
			back = r.encode(back)
		}
		return back, nil
	})
}
