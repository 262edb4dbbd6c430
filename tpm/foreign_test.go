package tpm_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// Public areas as bytes, independent of the code that makes them otherwise.
const (
	// ICN's parent: SYMCIPHER, SHA-256, attributes, no policy, AES-128-CFB,
	// empty unique; and its sealed data: KEYEDHASH, SHA-256, null scheme.
	icnParentHex = "0025" + "000b" + "00030072" + "0000" + "0006" + "0080" + "0043" + "0000"
	icnSealHex   = "0008" + "000b" + "00000052" + "0000" + "0010" + "0000"
	// Storage root keys, ECC P-256: with an empty unique, and that of
	// tpm2_createprimary, which is not noDA.
	eccEmptyHex = "0023" + "000b" + "00030472" + "0000" + "0006" + "0080" + "0043" + "0010" + "0003" + "0010" + "0000" + "0000"
	eccToolsHex = "0023" + "000b" + "00030072" + "0000" + "0006" + "0080" + "0043" + "0010" + "0003" + "0010" + "0000" + "0000"
	// RSA-2048, with an empty unique.
	rsaEmptyHex = "0001" + "000b" + "00030472" + "0000" + "0006" + "0080" + "0043" + "0010" + "0800" + "00000000" + "0000"
)

// zeros is the ECC template with a unique of zeros.
var eccZerosHex = strings.TrimSuffix(eccEmptyHex, "00000000") + "0020" + strings.Repeat("00", 32) + "0020" + strings.Repeat("00", 32)

func area(t testing.TB, digits string) tpm2.TPM2BPublic {
	t.Helper()
	b, err := hex.DecodeString(digits)
	if err != nil {
		t.Fatal(err)
	}
	return tpm2.BytesAs2B[tpm2.TPMTPublic](b)
}

// foreign is how another program seals.
type foreign struct {
	hierarchy  tpm2.TPMHandle
	owner      string // the hierarchy's password
	parent     string // template
	parentAuth string
	persistent tpm2.TPMHandle // where the parent is put; 0: nowhere
	template   string         // of the sealed data; "": ICN's
	password   []byte
}

// seal seals, and gives the Name of the parent too.
func (f foreign) seal(t testing.TB, s *swtpmtest.TPM, data []byte) (sealed tpm.Foreign, name []byte) {
	t.Helper()
	if f.hierarchy == 0 {
		f.hierarchy = tpm2.TPMRHOwner
	}
	if f.template == "" {
		f.template = icnSealHex
	}
	password := tpm2.PasswordAuth([]byte(f.owner))
	admin(t, s, func(c bare) error {
		p, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.AuthHandle{Handle: f.hierarchy, Auth: password},
			InPublic:      area(t, f.parent),
			InSensitive:   tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte(f.parentAuth)}}},
		}.Execute(c)
		if err != nil {
			return err
		}
		name = p.Name.Buffer
		defer tpm2.FlushContext{FlushHandle: p.ObjectHandle}.Execute(c)
		o, err := tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: p.ObjectHandle, Name: p.Name, Auth: tpm2.PasswordAuth([]byte(f.parentAuth))},
			InPublic:     area(t, f.template),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				UserAuth: tpm2.TPM2BAuth{Buffer: f.password}, Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: data}),
			}},
		}.Execute(c)
		if err != nil {
			return err
		}
		sealed = tpm.Foreign{Public: o.OutPublic.Bytes(), Private: o.OutPrivate.Buffer}
		if f.persistent != 0 {
			_, err = tpm2.EvictControl{
				Auth:         tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: password},
				ObjectHandle: &tpm2.NamedHandle{Handle: p.ObjectHandle, Name: p.Name}, PersistentHandle: f.persistent,
			}.Execute(c)
		}
		return err
	})
	return sealed, name
}

func parentAt(t testing.TB, handle uint32, rsa bool, name []byte) tpm.ForeignParent {
	t.Helper()
	p, err := tpm.ParentAt(handle, rsa, name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func unsealForeign(d *tpm.TPM, root []byte, f tpm.Foreign, owner string, password []byte) ([]byte, error) {
	buf, err := secmem.New(128)
	if err != nil {
		return nil, err
	}
	defer buf.Destroy()
	n, err := d.UnsealForeign(root, f, []byte(owner), password, buf.Bytes())
	return bytes.Clone(buf.Bytes()[:n]), err
}

func wantForeign(t testing.TB, d *tpm.TPM, root []byte, f tpm.Foreign, owner string, password, want []byte) {
	t.Helper()
	if got, err := unsealForeign(d, root, f, owner, password); err != nil || !bytes.Equal(got, want) {
		t.Errorf("unsealed %x, %v; want %x", got, err, want)
	}
}

func wantNothingLeft(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
	t.Helper()
	d.Release()
	if h := handles(t, s); len(h) != 0 {
		t.Errorf("left in the TPM: %x", h)
	}
}

// ICN's blob, made by go-tpm: with the storage root key transient and
// persistent, beside other seals in use.
func TestUnsealICN(t *testing.T) {
	modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
		p, data, own := parent(t, d), secret(), secret()
		d.Release()
		f, _ := foreign{parent: icnParentHex}.seal(t, s, data)
		if len(f.Public) != 46 || len(f.Private) != 158 || !strings.HasPrefix(hex.EncodeToString(f.Public), "0008000b00000052000000100020") {
			t.Errorf("public %x, private %d bytes", f.Public, len(f.Private))
		}
		f.Parent = tpm.ICNParent()
		for range 2 {
			b := seal(t, d, p, own, auth, false)
			wantSecret(t, d, p, b, auth, own)
			wantForeign(t, d, p, f, "", nil, data)
			wantSecret(t, d, p, b, auth, own)
			if _, _, err := d.Persist(nil); err != nil {
				t.Fatal(err)
			}
		}
		wantNothingLeft(t, s, d)
	})
}

// What SealForeign makes is to the byte of ICN's form, and another program
// unseals it under ICN's parent without a password.
func TestSealICN(t *testing.T) {
	modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
		p, data := parent(t, d), secret()
		f, err := d.SealForeign(p, tpm.ICNParent(), nil, data)
		if err != nil {
			t.Fatal(err)
		}
		if len(f.Public) != 46 || len(f.Private) != 158 || hex.EncodeToString(f.Public[:14]) != "0008000b00000052000000100020" {
			t.Errorf("public %x, private %d bytes", f.Public, len(f.Private))
		}
		wantForeign(t, d, p, f, "", nil, data)
		wantNothingLeft(t, s, d)
		admin(t, s, func(c bare) error {
			k, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: area(t, icnParentHex)}.Execute(c)
			if err != nil {
				return err
			}
			o, err := tpm2.Load{
				ParentHandle: tpm2.NamedHandle{Handle: k.ObjectHandle, Name: k.Name},
				InPublic:     tpm2.BytesAs2B[tpm2.TPMTPublic](f.Public), InPrivate: tpm2.TPM2BPrivate{Buffer: f.Private},
			}.Execute(c)
			if err != nil {
				return err
			}
			r, err := tpm2.Unseal{ItemHandle: tpm2.NamedHandle{Handle: o.ObjectHandle, Name: o.Name}}.Execute(c)
			if err == nil && !bytes.Equal(r.OutData.Buffer, data) {
				t.Errorf("another program unseals %x, not %x", r.OutData.Buffer, data)
			}
			return err
		})
		for _, n := range []int{0, 129} {
			if _, err := d.SealForeign(p, tpm.ICNParent(), nil, make([]byte, n)); err == nil {
				t.Errorf("%d bytes were sealed", n)
			}
		}
	})
}

func TestForeignParents(t *testing.T) {
	const at = 0x81000123
	modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
		p := parent(t, d)
		d.Release()
		for what, c := range map[string]struct {
			f      foreign
			handle uint32
			rsa    bool
		}{
			"ECC, empty unique":  {foreign{parent: eccEmptyHex}, 0x40000001, false},
			"ECC, zeros":         {foreign{parent: eccZerosHex}, 0x40000001, false},
			"ECC of tpm2-tools":  {foreign{parent: eccToolsHex}, 0x40000001, false},
			"RSA":                {foreign{parent: rsaEmptyHex}, 0x40000001, true},
			"RSA, not told":      {foreign{parent: rsaEmptyHex}, 0x40000001, false},
			"ECC, told RSA":      {foreign{parent: eccEmptyHex}, 0x40000001, true},
			"endorsement":        {foreign{parent: eccEmptyHex, hierarchy: tpm2.TPMRHEndorsement}, 0x4000000b, false},
			"null":               {foreign{parent: eccEmptyHex, hierarchy: tpm2.TPMRHNull}, 0x40000007, false},
			"persistent, ECC":    {foreign{parent: eccToolsHex, persistent: at}, at, false},
			"persistent, RSA":    {foreign{parent: rsaEmptyHex, persistent: at + 1}, at + 1, false},
			"persistent, AES":    {foreign{parent: icnParentHex, persistent: at + 2}, at + 2, false},
			"with a password":    {foreign{parent: eccEmptyHex, password: []byte("pass word 12")}, 0x40000001, false},
			"zeros at its end":   {foreign{parent: eccEmptyHex, password: []byte("pass word 12\x00\x00")}, 0x40000001, false},
			"without protection": {foreign{parent: eccEmptyHex, password: []byte("pw"), template: strings.Replace(icnSealHex, "00000052", "00000452", 1)}, 0x40000001, false},
			"not fixed":          {foreign{parent: eccEmptyHex, template: strings.Replace(icnSealHex, "00000052", "00000040", 1)}, 0x40000001, false},
		} {
			data := secret()
			f, name := c.f.seal(t, s, data)
			for _, known := range [][]byte{nil, name} {
				f.Parent = parentAt(t, c.handle, c.rsa, known)
				if got, err := unsealForeign(d, p, f, "", c.f.password); err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s: %x, %v; want %x", what, got, err, data)
				}
			}
			other := bytes.Clone(name)
			other[5] ^= 1
			f.Parent = parentAt(t, c.handle, c.rsa, other)
			if _, err := unsealForeign(d, p, f, "", c.f.password); err == nil {
				t.Errorf("%s: unsealed under a parent of another Name", what)
			}
			d.Release()
		}
		wantNothingLeft(t, s, d)
	})
}

// A wrong password is tried once, and said to be one.
func TestForeignPassword(t *testing.T) {
	s := swtpmtest.Start(t)
	bus := swtpmtest.StartProxy(t, s)
	d := open(t, bus.Device())
	p, data := parent(t, d), secret()
	password := []byte("right password")
	f, _ := foreign{parent: eccEmptyHex, password: password}.seal(t, s, data)
	f.Parent = parentAt(t, 0x40000001, false, nil)
	counter := func() uint32 {
		t.Helper()
		l, err := d.Lockout()
		if err != nil {
			t.Fatal(err)
		}
		return l.Counter
	}
	for _, bad := range []string{strings.Repeat("x", 65)} {
		if _, err := unsealForeign(d, p, f, "", []byte(bad)); err == nil || errors.Is(err, tpm.ErrObjectPassword) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if n := counter(); n != 0 {
		t.Errorf("the TPM counts %d wrong tries of passwords that cannot be", n)
	}
	for i, wrong := range []string{"", "wro\x00ng"} {
		bus.Decide(nil)
		_, err := unsealForeign(d, p, f, "", []byte(wrong))
		if !errors.Is(err, tpm.ErrObjectPassword) || errors.Is(err, sealstore.ErrUnavailable) || errors.Is(err, sealstore.ErrAuth) {
			t.Errorf("%q: %v", wrong, err)
		}
		if n, tried := counter(), bus.Count(tpm2.TPMCCUnseal); n != uint32(i+1) || tried > 2 {
			t.Errorf("%q: the TPM counts %d wrong tries; %d were sent", wrong, n, tried)
		}
	}
	wantForeign(t, d, p, f, "", password, data)

	// The connection breaks at the answer: the TPM may have counted it.
	bus.Decide(swtpmtest.Once(tpm2.TPMCCUnseal, func([]byte) []byte { return nil }))
	if _, err := unsealForeign(d, p, f, "", password); !errors.Is(err, sealstore.ErrUnavailable) || bus.Count(tpm2.TPMCCUnseal) != 1 {
		t.Errorf("%v, %d sent", err, bus.Count(tpm2.TPMCCUnseal))
	}
	bus.Decide(nil)
	wantForeign(t, d, p, f, "", password, data)
	wantNothingLeft(t, s, d)
	if recorded := bus.Seen(); bytes.Contains(recorded, data[:16]) || bytes.Contains(recorded, password) {
		t.Error("the content or the password is in the clear on the bus")
	} else if !bytes.Contains(recorded, f.Private) {
		t.Error("the recording is not one of a TPM")
	}
}

// Neither import nor export shows the seed on the bus.
func TestForeignBus(t *testing.T) {
	s := swtpmtest.Start(t)
	bus := swtpmtest.StartProxy(t, s)
	d := open(t, bus.Device())
	p, data := parent(t, d), secret()
	f, err := d.SealForeign(p, tpm.ICNParent(), nil, data)
	if err != nil {
		t.Fatal(err)
	}
	wantForeign(t, d, p, f, "", nil, data)
	recorded := bus.Seen()
	for at := 0; at+16 <= len(data); at++ {
		if bytes.Contains(recorded, data[at:at+16]) {
			t.Fatal("the seed is in the clear on the bus")
		}
	}
	if !bytes.Contains(recorded, f.Private) {
		t.Error("the recording is not one of a TPM")
	}
}

func TestForeignOwnerPassword(t *testing.T) {
	s := swtpmtest.Start(t)
	d := open(t, s.Device())
	const owner = "owner password 71"
	p, data := parent(t, d), secret()
	f, _ := foreign{parent: icnParentHex}.seal(t, s, data)
	f.Parent = tpm.ICNParent()
	if _, err := unsealForeign(d, p, f, "not set", nil); err == nil || !strings.Contains(err.Error(), "the TPM has no owner password: none must be given") {
		t.Errorf("a password where there is none: %v", err)
	}
	if _, _, err := d.Persist(nil); err != nil {
		t.Fatal(err)
	}
	setPassword(t, s, tpm2.TPMRHOwner, owner)
	_, err := unsealForeign(d, p, f, "", nil)
	if _, cure := advice.Split(err); !errors.Is(err, sealstore.ErrOwner) || cure != "give it with --owner-auth-source" {
		t.Errorf("without the owner's password: %v", err)
	}
	if _, err := unsealForeign(d, p, f, "wrong", nil); err == nil || !strings.HasSuffix(err.Error(), ": wrong owner password") {
		t.Errorf("with a wrong one: %v", err)
	}
	wantForeign(t, d, p, f, owner, nil, data)
	if _, err := d.SealForeign(p, tpm.ICNParent(), []byte(owner), data); err != nil {
		t.Error(err)
	}
	setPassword(t, s, tpm2.TPMRHEndorsement, "endorsement")
	f.Parent = parentAt(t, 0x4000000b, false, nil)
	if _, err := unsealForeign(d, p, f, owner, nil); err == nil || !strings.Contains(err.Error(), "the endorsement hierarchy has a password") {
		t.Errorf("a password of the endorsement hierarchy: %v", err)
	}
	wantNothingLeft(t, s, d)
}

func TestForeignRefused(t *testing.T) {
	s := swtpmtest.Start(t)
	d := open(t, s.Device())
	p, data := parent(t, d), secret()
	good, _ := foreign{parent: eccEmptyHex}.seal(t, s, data)
	good.Parent = parentAt(t, 0x40000001, false, nil)
	refused := func(what string, f tpm.Foreign, text string, sent bool) {
		t.Helper()
		before := d.Commands()
		_, err := unsealForeign(d, p, f, "", nil)
		if err == nil || !strings.Contains(err.Error(), text) || errors.Is(err, sealstore.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
		if (d.Commands() != before) != sent {
			t.Errorf("%s: %d commands were sent", what, d.Commands()-before)
		}
		if sent == (f.Check() != nil) {
			t.Errorf("%s: %v", what, f.Check())
		}
	}
	change := func(f func(*tpm.Foreign)) tpm.Foreign {
		c := tpm.Foreign{Parent: good.Parent, Public: bytes.Clone(good.Public), Private: bytes.Clone(good.Private)}
		f(&c)
		return c
	}
	attributes := func(v string) tpm.Foreign {
		return change(func(f *tpm.Foreign) { b, _ := hex.DecodeString(v); copy(f.Public[4:], b) })
	}
	refused("a policy", attributes("00000012"), "opens by a policy", false)
	refused("an HMAC key", attributes("00040052"), "which cannot be taken out of it", false)
	refused("a key for XOR", attributes("00020052"), "which cannot be taken out of it", false)
	refused("a key pair", change(func(f *tpm.Foreign) { f.Public, _ = hex.DecodeString(eccZerosHex) }), "which cannot be taken out of it", false)
	refused("more behind the public area", change(func(f *tpm.Foreign) { f.Public = append(f.Public, 0) }), "malformed", false)
	refused("half a public area", change(func(f *tpm.Foreign) { f.Public = f.Public[:20] }), "malformed", false)
	refused("a damaged private part", change(func(f *tpm.Foreign) { f.Private[40] ^= 1 }), "or is damaged", true)
	refused("another parent", change(func(f *tpm.Foreign) { f.Parent = tpm.ICNParent() }), "sealed under another key or by another TPM", true)
	refused("a parent that is not there", change(func(f *tpm.Foreign) { f.Parent = parentAt(t, 0x81000777, false, nil) }), "there is no key at 0x81000777", true)

	other, _ := foreign{parent: eccEmptyHex}.seal(t, swtpmtest.Start(t), data)
	other.Parent = good.Parent
	refused("another TPM's", other, "sealed under another key or by another TPM", true)
	locked, _ := foreign{parent: eccEmptyHex, parentAuth: "secret", persistent: 0x81000444}.seal(t, s, data)
	locked.Parent = parentAt(t, 0x81000444, false, nil)
	refused("a parent with a password", locked, "has a password, which is not supported", true)

	for _, h := range []uint32{0, 0x40000000, 0x4000000a, 0x4000000c, 0x80000000, 0x82000000, 0x01c00002} {
		if _, err := tpm.ParentAt(h, false, nil); err == nil {
			t.Errorf("the parent 0x%08x was taken", h)
		}
	}
	long, _ := foreign{parent: eccEmptyHex}.seal(t, s, make([]byte, 128))
	long.Parent = good.Parent
	wantForeign(t, d, p, long, "", nil, make([]byte, 128))
	buf := make([]byte, 127)
	if _, err := d.UnsealForeign(p, long, nil, nil, buf); err == nil || !slices.Equal(buf, make([]byte, 127)) {
		t.Errorf("128 bytes went to a buffer of 127: %v", err)
	}
	wantForeign(t, d, p, good, "", nil, data)
	wantNothingLeft(t, s, d)
}
