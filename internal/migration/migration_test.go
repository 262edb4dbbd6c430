package migration

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func secret(t testing.TB, n int) []byte {
	t.Helper()
	b, err := secmem.New(n)
	check(t, err)
	t.Cleanup(b.Destroy)
	return b.Bytes()
}

// target is a machine that a token can be sent to.
type target struct {
	dev    *tpm.TPM
	offer  *Offer
	secret []byte
}

func newTarget(t testing.TB) *target {
	t.Helper()
	dev, err := tpm.New(tpm.Config{Device: swtpmtest.Start(t).Device(), KeyHandle: 0x81000001})
	check(t, err)
	t.Cleanup(func() { dev.Close() })
	x := &target{dev: dev, secret: secret(t, KeySize)}
	x.offer, err = NewOffer(x.secret)
	check(t, err)
	x.offer.RootPublic, x.offer.RootName, err = dev.Root()
	check(t, err)
	x.offer.Endorsement, err = dev.Endorsement()
	check(t, err)
	return x
}

func (x *target) activate(credential, dst []byte) (int, error) {
	return x.dev.ActivateRoot(x.offer.RootName, credential, dst)
}

func (x *target) importer(d tpm.Duplicate, auth, dst []byte) (int, error) {
	return x.dev.ImportWrapped(x.offer.RootName, d, auth, dst)
}

// seeds are those of a token's keys.
type seeds [][]byte

// token is one with two keys, one of them in two objects, a sealed secret that
// is no key, and two objects without secrets.
func token(t testing.TB) (*sealstore.Contents, seeds) {
	t.Helper()
	c := &sealstore.Contents{
		Serial: "0102030405060708", Label: "Zoë", Slot: 3, Created: time.Unix(1700000000, 0).UTC(), UserPIN: true,
		Binding: &sealstore.BindingSpec{Bank: "sha256", PCRs: []int{7, 0}},
		Objects: []sealstore.Content{
			{ID: sealstore.ID{1}, Body: []byte("a certificate")},
			{ID: sealstore.ID{2}, Private: true, Body: []byte("a key")},
			{ID: sealstore.ID{3}, Private: true, Body: []byte("another key")},
			{ID: sealstore.ID{4}, Body: []byte("the same key")},
			{ID: sealstore.ID{5}, Private: true, Body: []byte{}},
			{ID: sealstore.ID{6}, Private: true, Body: []byte("data")},
		},
	}
	t.Cleanup(c.Destroy)
	var all seeds
	for i, from := range []int{1: -1, 2: -1, 3: 1} {
		if i == 0 {
			continue
		}
		o := &c.Objects[i]
		buf, err := c.SecretBuffer(eddsa.SeedSize)
		check(t, err)
		if from < 0 {
			rand.Read(buf)
		} else {
			copy(buf, c.Objects[from].Secret)
		}
		k, err := eddsa.NewKey(buf)
		check(t, err)
		public := k.Public()
		o.Secret, o.About = buf, public[:]
		k.Destroy()
		all = append(all, bytes.Clone(buf))
	}
	other, err := c.SecretBuffer(sealstore.MaxSecret)
	check(t, err)
	rand.Read(other)
	c.Objects[4].Secret = other
	check(t, c.Check())
	return c, all
}

func pack(t testing.TB, o *Offer, c *sealstore.Contents, move bool) (*Parcel, Expected) {
	t.Helper()
	p, e, err := Pack(o, c, move, nil)
	check(t, err)
	return p, e
}

// sent is what arrives of a parcel.
func sent(t testing.TB, p *Parcel) *Parcel {
	t.Helper()
	data := p.Encode()
	if p.size() != len(data) {
		t.Fatalf("a parcel of %d bytes is said to have %d", len(data), p.size())
	}
	back, err := ParseParcel(data)
	if err != nil || !bytes.Equal(back.Encode(), data) {
		t.Fatalf("the parcel comes back as %x, %v", back.Encode(), err)
	}
	return back
}

// What its target would not read is not sent.
func TestParcelSize(t *testing.T) {
	o := newTarget(t).offer
	c := &sealstore.Contents{Serial: "0102030405060708", Label: "large", Created: time.Unix(1700000000, 0).UTC(), UserPIN: true}
	body := make([]byte, sealstore.MaxBody)
	for i := range MaxParcel / sealstore.MaxBody {
		c.Objects = append(c.Objects, sealstore.Content{ID: sealstore.ID{byte(i)}, Body: body})
	}
	if _, _, err := Pack(o, c, false, nil); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("%d objects of %d bytes: %v", len(c.Objects), len(body), err)
	}
	c.Objects = c.Objects[1:]
	p, _ := pack(t, o, c, false)
	if n := p.size(); n > MaxParcel || n < MaxParcel-2*sealstore.MaxBody {
		t.Errorf("a parcel of %d bytes", n)
	}
}

func same(t testing.TB, a, b *sealstore.Contents) {
	t.Helper()
	if a.Serial != b.Serial || a.Label != b.Label || a.Slot != b.Slot || !a.Created.Equal(b.Created) || a.UserPIN != b.UserPIN || a.NoPIN != b.NoPIN || len(a.Objects) != len(b.Objects) {
		t.Fatalf("%+v is not %+v", b, a)
	}
	if (a.Binding == nil) != (b.Binding == nil) || a.Binding != nil && (a.Binding.Bank != b.Binding.Bank || !slices.Equal(slices.Sorted(slices.Values(a.Binding.PCRs)), b.Binding.PCRs)) {
		t.Errorf("the binding %v is not %v", b.Binding, a.Binding)
	}
	for i, o := range a.Objects {
		p := b.Objects[i]
		if o.ID != p.ID || o.Private != p.Private || !bytes.Equal(o.Body, p.Body) || !bytes.Equal(o.Secret, p.Secret) || (o.Secret == nil) != (p.Secret == nil) || !bytes.Equal(o.About, p.About) {
			t.Errorf("object %x is not what it was", o.ID)
		}
	}
}

func TestParcel(t *testing.T) {
	x := newTarget(t)
	data := x.offer.Encode()
	o, err := ParseOffer(data)
	check(t, err)
	if o.Fingerprint() != x.offer.Fingerprint() {
		t.Error("the offer's fingerprint has changed on the way")
	}
	c, all := token(t)
	for _, move := range []bool{false, true} {
		p, want := pack(t, o, c, move)
		if p.Move != move || p.Offer != o.ID || p.Serial.String() != c.Serial {
			t.Errorf("the header is %+v", p.Header)
		}
		for _, seed := range all {
			if bytes.Contains(p.Encode(), seed) {
				t.Error("a seed is in the clear")
			}
		}
		if bytes.Contains(p.Encode(), []byte("a certificate")) {
			t.Error("what the token holds is in the clear")
		}
		got := sent(t, p)
		opened, err := got.Open(x.secret, x.activate)
		check(t, err)
		defer opened.Destroy()
		steps := 0
		back, err := opened.Contents(x.importer, func(done, total int) { steps = done })
		check(t, err)
		defer back.Destroy()
		same(t, c, back)
		if steps != len(c.Objects) {
			t.Errorf("%d steps were told", steps)
		}

		// The proof is of both keys, and of this parcel only.
		proof, err := opened.Prove(unsealer(back))
		check(t, err)
		text := proof.Encode()
		proof, err = ParseProof(text)
		check(t, err)
		check(t, proof.Check(want))
		if len(proof.Signatures) != 2 {
			t.Errorf("%d signatures", len(proof.Signatures))
		}
		_, other := pack(t, o, c, move)
		if err := proof.Check(other); !errors.Is(err, errOtherProof) {
			t.Errorf("a proof of another parcel: %v", err)
		}
		for what, change := range map[string]func(p *Proof){
			"another token":     func(p *Proof) { p.Serial[0]++ },
			"another offer":     func(p *Proof) { p.Offer[0]++ },
			"another TPM":       func(p *Proof) { p.RootName = flip(p.RootName, 33) },
			"another nonce":     func(p *Proof) { p.Nonce[5]++ },
			"one key only":      func(p *Proof) { p.Signatures = p.Signatures[:1] },
			"another key":       func(p *Proof) { p.Signatures[0].Public[0]++ },
			"another signature": func(p *Proof) { p.Signatures[1].Signature[9]++ },
		} {
			bad, err := ParseProof(text)
			check(t, err)
			change(bad)
			if err := bad.Check(want); err == nil {
				t.Errorf("a proof of %s was taken", what)
			}
			// Nor if what is expected is changed with it: the signatures cover it.
			w := want
			w.Serial, w.Offer, w.RootName = bad.Serial, bad.Offer, bad.RootName
			if err := bad.Check(w); err == nil {
				t.Errorf("a proof of %s was taken where it is expected", what)
			}
		}
	}
}

func unsealer(c *sealstore.Contents) func(id sealstore.ID, dst []byte) (int, error) {
	return func(id sealstore.ID, dst []byte) (int, error) {
		for _, o := range c.Objects {
			if o.ID == id {
				return copy(dst, o.Secret), nil
			}
		}
		return 0, sealstore.ErrNotFound
	}
}

func flip(p []byte, i int) []byte {
	q := bytes.Clone(p)
	q[i] ^= 1
	return q
}

// A parcel is opened by the TPM and the offer that it was made for, together.
func TestParcelIsForOneTarget(t *testing.T) {
	x, y := newTarget(t), newTarget(t)
	c, _ := token(t)
	fails := func(what string, p *Parcel, secret []byte, activate func(credential, dst []byte) (int, error), want error) {
		t.Helper()
		opened, err := p.Open(secret, activate)
		if err == nil {
			defer opened.Destroy()
		}
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, not %v", what, err, want)
		}
	}
	p, _ := pack(t, x.offer, c, true)
	fails("another TPM and its offer", p, y.secret, y.activate, tpm.ErrCredential)
	fails("another offer of the same TPM", p, y.secret, x.activate, errAltered)
	fails("another TPM that stole the offer's secret", p, x.secret, y.activate, tpm.ErrCredential)
	guess := func(_, dst []byte) (int, error) { return rand.Read(dst) }
	fails("no TPM, but the offer's secret", p, x.secret, guess, errAltered)
	fails("a short answer", p, x.secret, func(_, dst []byte) (int, error) { return 16, nil }, errAltered)

	// Offers in which somebody exchanged one key for his own: what was made for
	// such a mixture opens nowhere.
	mixed := *x.offer
	mixed.Endorsement = y.offer.Endorsement
	p, _ = pack(t, &mixed, c, true)
	fails("x, whose endorsement key was exchanged", p, x.secret, x.activate, tpm.ErrCredential)
	fails("y, which is not the storage root key's", p, x.secret, y.activate, tpm.ErrCredential)
	mixed = *x.offer
	mixed.RootName, mixed.RootPublic = y.offer.RootName, y.offer.RootPublic
	p, _ = pack(t, &mixed, c, true)
	fails("x, whose storage root key was exchanged", p, x.secret, x.activate, tpm.ErrCredential)
	fails("y, which is not the endorsement key's", p, x.secret, y.activate, tpm.ErrCredential)
	mixed = *x.offer
	mixed.Key = y.offer.Key
	p, _ = pack(t, &mixed, c, true)
	fails("x, whose offer's key was exchanged", p, x.secret, x.activate, errAltered)
	if _, err := y.dev.ActivateRoot(x.offer.RootName, p.Credential, make([]byte, 32)); !errors.Is(err, sealstore.ErrParent) {
		t.Errorf("another TPM under the right Name: %v", err)
	}
}

// Whatever is altered in a parcel, it is not opened.
func TestParcelIsAuthenticated(t *testing.T) {
	x := newTarget(t)
	c, _ := token(t)
	p, _ := pack(t, x.offer, c, true)
	data := p.Encode()
	activated := make([]byte, tpm.MaxCredential)
	if _, err := x.activate(p.Credential, activated); err != nil {
		t.Fatal(err)
	}
	// The TPM's answer, where it still has one to this credential.
	activate := func(credential, dst []byte) (int, error) {
		if !bytes.Equal(credential, p.Credential) {
			return x.activate(credential, dst)
		}
		return copy(dst, activated), nil
	}
	try := func(what string, data []byte) {
		t.Helper()
		got, err := ParseParcel(data)
		if err != nil {
			return
		}
		if opened, err := got.Open(x.secret, activate); err == nil {
			opened.Destroy()
			t.Errorf("%s: opened", what)
		}
	}
	for i := range data {
		if i < len(p.Header.encode())+30 || i%29 == 0 {
			try("changed at "+string(rune('0'+i%10)), flip(data, i))
		}
	}
	for n := 0; n < len(data); n += 13 {
		try("cut", data[:n])
	}
	try("with a byte more", append(bytes.Clone(data), 0))
}

// A source that errs, or lies, about its keys is noticed before anything is
// made of them.
func TestWrongKeys(t *testing.T) {
	x := newTarget(t)
	c, _ := token(t)
	c.Objects[1].About = flip(c.Objects[1].About, 0)
	if _, _, err := Pack(x.offer, c, false, nil); !errors.Is(err, errWrongKey) {
		t.Errorf("packed: %v", err)
	}
	c, _ = token(t)
	p, _ := pack(t, x.offer, c, false)
	opened, err := p.Open(x.secret, x.activate)
	check(t, err)
	defer opened.Destroy()
	about := opened.in.objects[1].about
	opened.in.objects[1].about = flip(about, 0)
	if got, err := opened.Contents(x.importer, nil); !errors.Is(err, errWrongKey) {
		got.Destroy()
		t.Errorf("taken: %v", err)
	}
	opened.in.objects[1].about = about
	if _, err := opened.Prove(func(_ sealstore.ID, dst []byte) (int, error) { return rand.Read(dst[:32]) }); !errors.Is(err, errWrongKey) {
		t.Errorf("proved by another key: %v", err)
	}
	if _, err := opened.Prove(func(sealstore.ID, []byte) (int, error) { return 0, sealstore.ErrBlob }); !errors.Is(err, sealstore.ErrBlob) {
		t.Errorf("proved by none: %v", err)
	}
	bare := &sealstore.Contents{Serial: c.Serial, Objects: c.Objects[:1]}
	if _, _, err := Pack(x.offer, bare, true, nil); !errors.Is(err, ErrNoKey) {
		t.Errorf("a move that nothing can prove: %v", err)
	}
	if _, _, err := Pack(x.offer, bare, false, nil); err != nil {
		t.Errorf("a copy without keys: %v", err)
	}
}

// fixed are an offer and a proof that stay the same.
func fixed(t testing.TB) (offer, proof []byte) {
	t.Helper()
	for _, f := range []struct {
		name string
		to   *[]byte
	}{{"offer.json", &offer}, {"proof.json", &proof}} {
		b, err := os.ReadFile("testdata/v1-" + f.name)
		check(t, err)
		*f.to = b
	}
	return offer, proof
}

// TestVectors keeps what docs/format.md says: files of that version stay
// readable.
func TestVectors(t *testing.T) {
	offer, proof := fixed(t)
	o, err := ParseOffer(offer)
	check(t, err)
	if got := o.Fingerprint(); got != "59269c65c5223e57045707432451685ff890d55b5083711486d2047e103067ea" {
		t.Errorf("the offer's fingerprint is %s", got)
	}
	p, err := ParseProof(proof)
	check(t, err)
	check(t, p.verify())

	k, err := newKeys()
	check(t, err)
	defer k.destroy()
	for i := range k.activated() {
		k.activated()[i] = byte(i)
		k.shared()[i] = byte(0x80 + i)
	}
	check(t, k.derive([KeySize]byte{1}, [KeySize]byte{2}))
	if got := hex.EncodeToString(k.contents()) + " " + string(k.auth()); got != "203defd3ca96459d0d51ebac9caa828893a2c316bf9f2ae45f445f324fd8e7ed QIqGK6bIPVxg1cArlP_N6HagWxDLib5b" {
		t.Errorf("keys %s", got)
	}

	c := sample()
	plain, err := c.encode()
	check(t, err)
	if got := hex.EncodeToString(plain); got != "01020300000000000000000000000000000000000000000000000000000000000500000003000000006553f100045a6fc3ab06736861323536020007000000020001000000000000000000000000000000000004626f647903020000000000000000000000000000000000000561626f757400067075626c6963000770726976617465000473656564" {
		t.Errorf("contents %s", got)
	}
}

// sample is what a parcel holds, with every optional part.
func sample() *contents {
	return &contents{
		nonce: [nonceSize]byte{1, 2, 3}, label: "Zoë", slot: 3, created: 1700000000, userPIN: true,
		binding: &sealstore.BindingSpec{Bank: "sha256", PCRs: []int{0, 7}},
		objects: []object{
			{id: sealstore.ID{1}, body: []byte("body")},
			{id: sealstore.ID{2}, private: true, body: []byte{}, about: []byte("about"), seal: &tpm.Duplicate{Public: []byte("public"), Private: []byte("private"), Seed: []byte("seed")}},
		},
	}
}

// Texts have one form: nothing else is read.
func TestTexts(t *testing.T) {
	offer, proof := fixed(t)
	for what, f := range map[string]struct {
		data  []byte
		parse func([]byte) ([]byte, error)
	}{"offer": {offer, recodeOffer}, "proof": {proof, recodeProof}} {
		text := string(f.data)
		for how, changed := range map[string]string{
			"cut":                 text[:len(text)-1],
			"empty":               "",
			"line ends of DOS":    strings.ReplaceAll(text, "\n", "\r\n"),
			"without blanks":      strings.ReplaceAll(text, " ", ""),
			"a line more":         text + "\n",
			"twice":               text + text,
			"upper case":          strings.Replace(text, "000b", "000B", 1),
			"an unknown field":    strings.Replace(text, "{\n", "{\n  \"more\": 1,\n", 1),
			"a field twice":       strings.Replace(text, "  \"version\": 1,\n", "  \"version\": 1,\n  \"version\": 1,\n", 1),
			"the next version":    strings.Replace(text, "\"version\": 1", "\"version\": 2", 1),
			"another type":        strings.Replace(text, "icn-p11 migration", "icn-p11 immigration", 1),
			"null":                "null\n",
			"too large":           text + strings.Repeat(" ", MaxProof),
			"without the version": strings.Replace(text, "  \"version\": 1,\n", "", 1),
			"a short id":          strings.Replace(strings.Replace(text, "\"offer\": \"", "\"offer\": \"00", 1), "\"id\": \"", "\"id\": \"00", 1),
		} {
			if changed == text {
				t.Fatalf("%s, %s: is not changed", what, how)
			}
			if back, err := f.parse([]byte(changed)); err == nil {
				t.Errorf("%s, %s: read as %s", what, how, back)
			}
		}
	}
}

func recodeOffer(data []byte) ([]byte, error) {
	o, err := ParseOffer(data)
	if err != nil {
		return nil, err
	}
	return o.Encode(), nil
}

func recodeProof(data []byte) ([]byte, error) {
	p, err := ParseProof(data)
	if err != nil {
		return nil, err
	}
	return p.Encode(), nil
}

func recodeParcel(data []byte) ([]byte, error) {
	p, err := ParseParcel(data)
	if err != nil {
		return nil, err
	}
	return p.Encode(), nil
}

func recodeContents(data []byte) ([]byte, error) {
	c, err := decodeContents(data)
	if err != nil {
		return nil, err
	}
	return c.encode()
}

func TestContentsBounds(t *testing.T) {
	good, err := sample().encode()
	check(t, err)
	back, err := recodeContents(good)
	if err != nil || !bytes.Equal(back, good) {
		t.Fatalf("%x, %v", back, err)
	}
	for n := range good {
		if _, err := recodeContents(good[:n]); err == nil {
			t.Errorf("cut to %d bytes, it is read", n)
		}
	}
	if _, err := recodeContents(append(good, 0)); err == nil {
		t.Error("with a byte more, it is read")
	}
	for what, change := range map[string]func(c *contents){
		"both kinds of PIN":     func(c *contents) { c.noPIN = true },
		"a long label":          func(c *contents) { c.label = strings.Repeat("x", sealstore.MaxLabel+1) },
		"a label in no charset": func(c *contents) { c.label = "\xff" },
		"a far slot":            func(c *contents) { c.slot = sealstore.MaxSlot + 1 },
		"a far date":            func(c *contents) { c.created = sealstore.MaxCreated + 1 },
		"an unknown bank":       func(c *contents) { c.binding.Bank = "md5" },
		"PCRs out of order":     func(c *contents) { c.binding.PCRs = []int{7, 0} },
		"no PCRs":               func(c *contents) { c.binding.PCRs = nil },
		"objects out of order":  func(c *contents) { slices.Reverse(c.objects) },
		"an object twice":       func(c *contents) { c.objects[1].id = c.objects[0].id },
		"a long body":           func(c *contents) { c.objects[0].body = make([]byte, sealstore.MaxBody+1) },
		"a long about":          func(c *contents) { c.objects[1].about = make([]byte, sealstore.MaxAbout+1) },
		"an empty part":         func(c *contents) { c.objects[1].seal.Seed = nil },
		"a long part":           func(c *contents) { c.objects[1].seal.Public = make([]byte, maxPart+1) },
	} {
		c := sample()
		change(c)
		data, err := c.encode()
		check(t, err)
		if _, err := recodeContents(data); err == nil {
			t.Errorf("%s: read", what)
		}
	}
}

// What is accepted must encode to the same bytes.
func fuzz(f *testing.F, recode func([]byte) ([]byte, error)) {
	f.Fuzz(func(t *testing.T, p []byte) {
		if back, err := recode(p); err == nil && !bytes.Equal(back, p) {
			t.Fatalf("%x encodes to %x", p, back)
		}
	})
}

func FuzzOffer(f *testing.F) {
	offer, _ := fixed(f)
	f.Add(offer)
	f.Add(offer[:len(offer)/2])
	fuzz(f, recodeOffer)
}

func FuzzProof(f *testing.F) {
	_, proof := fixed(f)
	f.Add(proof)
	f.Add(proof[:len(proof)/2])
	fuzz(f, recodeProof)
}

func FuzzParcel(f *testing.F) {
	p := &Parcel{Header: Header{Move: true, RootName: make([]byte, nameSize), Credential: []byte("credential")}, ciphertext: make([]byte, 40)}
	f.Add(p.Encode())
	f.Add([]byte(parcelMagic))
	fuzz(f, recodeParcel)
}

func FuzzContents(f *testing.F) {
	data, err := sample().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:len(data)/2])
	fuzz(f, recodeContents)
}
