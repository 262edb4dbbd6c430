package eddsa

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
)

func newKey(t testing.TB, seed []byte) *Key {
	t.Helper()
	k, err := NewKey(seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Destroy)
	return k
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func load(t testing.TB, name string, v any) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

func TestRFC8032(t *testing.T) {
	var vectors []struct{ Name, Variant, Seed, Public, Message, Context, Signature string }
	load(t, "rfc8032.json", &vectors)
	if len(vectors) < 10 {
		t.Fatalf("%d vectors", len(vectors))
	}
	for _, v := range vectors {
		k := newKey(t, unhex(t, v.Seed))
		p := Params{Variant: map[string]Variant{"Ed25519": Pure, "Ed25519ctx": Ctx, "Ed25519ph": Ph}[v.Variant], Context: unhex(t, v.Context)}
		if pub := k.Public(); !bytes.Equal(pub[:], unhex(t, v.Public)) {
			t.Errorf("%s: public key %x", v.Name, pub)
		}
		sig, msg := make([]byte, SignatureSize), unhex(t, v.Message)
		if err := k.Sign(sig, p, msg); err != nil {
			t.Errorf("%s: %v", v.Name, err)
		}
		if !bytes.Equal(sig, unhex(t, v.Signature)) {
			t.Errorf("%s: signature %x", v.Name, sig)
		}
		if !Verify(unhex(t, v.Public), msg, sig, p) {
			t.Errorf("%s: does not verify", v.Name)
		}
		sig[0] ^= 1
		if Verify(unhex(t, v.Public), msg, sig, p) {
			t.Errorf("%s: a changed signature verifies", v.Name)
		}
	}
}

// Every message length around the block sizes of the hash and the size of the
// stack buffer gives what crypto/ed25519 gives.
func TestAgainstStandardLibrary(t *testing.T) {
	seed := make([]byte, SeedSize)
	rand.Read(seed)
	k, std := newKey(t, seed), ed25519.NewKeyFromSeed(seed)
	msg := make([]byte, 5000)
	rand.Read(msg)
	sig := make([]byte, SignatureSize)
	for n := range msg {
		if n > 1200 && n%97 != 0 {
			continue
		}
		if err := k.Sign(sig, Params{}, msg[:n]); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(sig, ed25519.Sign(std, msg[:n])) {
			t.Fatalf("length %d: another signature", n)
		}
		d := sha512.Sum512(msg[:n])
		want, err := std.Sign(nil, d[:], &ed25519.Options{Hash: crypto.SHA512, Context: "c"})
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Sign(sig, Params{Ph, []byte("c")}, msg[:n]); err != nil || !bytes.Equal(sig, want) {
			t.Fatalf("length %d, ph: %v", n, err)
		}
	}
}

func TestRefuses(t *testing.T) {
	if _, err := NewKey(make([]byte, 31)); err == nil {
		t.Error("short seed")
	}
	k := newKey(t, make([]byte, SeedSize))
	sig := make([]byte, SignatureSize)
	for _, p := range []Params{{Pure, []byte("c")}, {Ctx, nil}, {Ph, make([]byte, 256)}} {
		if k.Sign(sig, p, nil) == nil {
			t.Errorf("signed with %v", p)
		}
	}
	if k.Sign(sig[:63], Params{}, nil) == nil {
		t.Error("short buffer")
	}
	k.Destroy()
	if k.Sign(sig, Params{}, nil) == nil {
		t.Error("a wiped key signs")
	}
}

func TestSignDoesNotAllocate(t *testing.T) {
	k := newKey(t, make([]byte, SeedSize))
	sig := make([]byte, SignatureSize)
	for _, p := range []Params{{Variant: Pure}, {Ctx, []byte("c")}, {Ph, []byte("c")}} {
		for _, size := range []int{0, 32, 900, 1 << 16} {
			msg, copies := make([]byte, size), 0.0
			if size > shortMessage && p.Variant != Ph {
				copies = 1
			}
			if n := testing.AllocsPerRun(100, func() { k.Sign(sig, p, msg) }); n > copies {
				t.Errorf("variant %d, %d bytes: %v allocations", p.Variant, size, n)
			}
		}
	}
}

func TestValidPublicKey(t *testing.T) {
	good := ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
	if !ValidPublicKey(good) {
		t.Error("a good key is refused")
	}
	// y = p + 1 encodes the same point as y = 1; 2 is on no point.
	other := unhex(t, "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f")
	none := append([]byte{2}, make([]byte, 31)...)
	for _, bad := range [][]byte{nil, good[:31], other, none} {
		if ValidPublicKey(bad) {
			t.Errorf("%x is accepted", bad)
		}
	}
}

// What is known of a seed makes the key of that seed, and of any other the key
// that is the other's.
func TestKnown(t *testing.T) {
	seeds := [][]byte{make([]byte, SeedSize), bytes.Repeat([]byte{1}, SeedSize)}
	first := newKey(t, seeds[0])
	known := first.Known()
	if second := first.Known(); second.hash == known.hash {
		t.Error("the hash of a seed has no salt")
	}
	known.public[0] ^= 1 // shows whether it was taken
	for i, seed := range seeds {
		k, err := known.NewKey(seed)
		if err != nil {
			t.Fatal(err)
		}
		want := [PublicKeySize]byte(ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))
		if i == 0 {
			want[0] ^= 1
		}
		if k.Public() != want {
			t.Errorf("seed %d: public key %x, not %x", i, k.Public(), want)
		}
		var back [SeedSize]byte
		k.Seed(back[:])
		if !bytes.Equal(back[:], seed) {
			t.Errorf("seed %d is not in its key", i)
		}
		k.Destroy()
	}
}

// Signatures are those of crypto/ed25519, and one changed bit anywhere in the
// signature makes verification fail.
func FuzzSign(f *testing.F) {
	f.Add(make([]byte, SeedSize), []byte("message"), []byte(nil), uint8(Pure), uint16(0))
	f.Add(make([]byte, SeedSize), []byte("message"), []byte("context"), uint8(Ctx), uint16(511))
	f.Add(make([]byte, SeedSize), []byte(nil), []byte("context"), uint8(Ph), uint16(256))
	f.Fuzz(func(t *testing.T, seed, msg, context []byte, variant uint8, bit uint16) {
		if len(seed) != SeedSize {
			return
		}
		p := Params{Variant(variant % 3), context}
		k, err := NewKey(seed)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Destroy()
		sig := make([]byte, SignatureSize)
		err = k.Sign(sig, p, msg)
		if (err == nil) != (p.check() == nil) {
			t.Fatalf("%+v: %v", p, err)
		}
		if err != nil {
			return
		}
		o, in := &ed25519.Options{Context: string(context)}, msg
		if p.Variant == Ph {
			d := sha512.Sum512(msg)
			o.Hash, in = crypto.SHA512, d[:]
		}
		want, err := ed25519.NewKeyFromSeed(seed).Sign(nil, in, o)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(sig, want) {
			t.Fatalf("another signature than crypto/ed25519's for seed %x, message %x, %+v", seed, msg, p)
		}
		pub := k.Public()
		if !Verify(pub[:], msg, sig, p) {
			t.Fatal("does not verify")
		}
		sig[bit%512/8] ^= 1 << (bit % 8)
		if Verify(pub[:], msg, sig, p) {
			t.Fatal("a changed signature verifies")
		}
	})
}

func BenchmarkSign(b *testing.B) {
	k := newKey(b, make([]byte, SeedSize))
	sig, msg := make([]byte, SignatureSize), make([]byte, 32)
	b.ReportAllocs()
	for b.Loop() {
		k.Sign(sig, Params{}, msg)
	}
}

func BenchmarkVerify(b *testing.B) {
	k := newKey(b, make([]byte, SeedSize))
	sig, msg, pub := make([]byte, SignatureSize), make([]byte, 32), k.Public()
	if err := k.Sign(sig, Params{}, msg); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if !Verify(pub[:], msg, sig, Params{}) {
			b.Fatal("does not verify")
		}
	}
}

func BenchmarkNewKey(b *testing.B) { benchmarkNewKey(b, nil) }

func BenchmarkNewKeyKnown(b *testing.B) {
	benchmarkNewKey(b, newKey(b, make([]byte, SeedSize)).Known())
}

func benchmarkNewKey(b *testing.B, known *Known) {
	seed := make([]byte, SeedSize)
	b.ReportAllocs()
	for b.Loop() {
		k, err := known.NewKey(seed)
		if err != nil {
			b.Fatal(err)
		}
		k.Destroy()
	}
}

// The signature may go where the message is, or into a part of it.
func TestSignInPlace(t *testing.T) {
	k := newKey(t, bytes.Repeat([]byte{7}, SeedSize))
	pub := k.Public()
	for _, size := range []int{0, 1, 32, 64, 100, 2000} {
		for offset := 0; offset <= size; offset += 16 {
			buf := make([]byte, size+SignatureSize)
			rand.Read(buf)
			msg := bytes.Clone(buf[:size])
			sig := buf[offset : offset+SignatureSize]
			if err := k.Sign(sig, Params{}, buf[:size]); err != nil {
				t.Fatal(err)
			}
			if !Verify(pub[:], msg, sig, Params{}) {
				t.Errorf("%d bytes, signature at %d: wrong", size, offset)
			}
		}
	}
}
