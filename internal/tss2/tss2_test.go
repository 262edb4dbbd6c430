package tss2

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// The same syntax for encoding/asn1, which makes files independently of the
// code under test.
type other struct {
	Type         asn1.ObjectIdentifier
	EmptyAuth    asn1.RawValue  `asn1:"optional,explicit,tag:0"`
	Policy       []otherCommand `asn1:"optional,explicit,tag:1"`
	Secret       []byte         `asn1:"optional,explicit,tag:2"`
	AuthPolicies []otherAuth    `asn1:"optional,explicit,tag:3"`
	Description  string         `asn1:"optional,explicit,tag:4,utf8"`
	RSAParent    bool           `asn1:"optional,explicit,tag:5"`
	ParentName   []byte         `asn1:"optional,explicit,tag:6"`
	Parent       int64
	Public       []byte
	Private      []byte
}

type otherCommand struct {
	Code int64  `asn1:"explicit,tag:0"`
	Body []byte `asn1:"explicit,tag:1"`
}

type otherAuth struct {
	Name   string         `asn1:"optional,explicit,tag:0,utf8"`
	Policy []otherCommand `asn1:"explicit,tag:1"`
}

// full has every element.
func full() other {
	commands := []otherCommand{{0x17f, []byte{1, 2, 3}}, {0x16b, nil}}
	return other{
		Type:         asn1.ObjectIdentifier{2, 23, 133, 10, 1, 5},
		EmptyAuth:    asn1.RawValue{FullBytes: []byte{0xa0, 3, 1, 1, 0xff}},
		Policy:       commands,
		Secret:       []byte("secret"),
		AuthPolicies: []otherAuth{{"first", commands}, {"", commands[:1]}},
		Description:  "a düsseldorf key",
		RSAParent:    true,
		ParentName:   []byte{0, 11, 3},
		Parent:       0x81000001,
		Public:       []byte{0, 3, 7, 8, 9},
		Private:      []byte{0, 2, 5, 6},
	}
}

func (o other) der(t testing.TB) []byte {
	t.Helper()
	b, err := asn1.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func encodeobject(t testing.TB) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/tpm2_encodeobject.pem")
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != PEMType || len(rest) != 0 {
		t.Fatal("no PEM")
	}
	return block.Bytes
}

func TestParse(t *testing.T) {
	k, err := Parse(full().der(t))
	if err != nil {
		t.Fatal(err)
	}
	commands := []Command{{0x17f, []byte{1, 2, 3}}, {0x16b, []byte{}}}
	want := &Key{
		Type: Sealed, EmptyAuth: True, Policy: commands, Secret: []byte("secret"),
		AuthPolicies: []AuthPolicy{{"first", commands}, {"", commands[:1]}},
		Description:  "a düsseldorf key", RSAParent: True, ParentName: []byte{0, 11, 3},
		Parent: 0x81000001, Public: []byte{7, 8, 9}, Private: []byte{5, 6},
	}
	if !reflect.DeepEqual(k, want) {
		t.Errorf("%+v", k)
	}
	small := full()
	small = other{Type: small.Type, Parent: 0x40000001, Public: small.Public, Private: small.Private}
	if k, err = Parse(small.der(t)); err != nil {
		t.Fatal(err)
	}
	if want = (&Key{Type: Sealed, Parent: 0x40000001, Public: []byte{7, 8, 9}, Private: []byte{5, 6}}); !reflect.DeepEqual(k, want) {
		t.Errorf("%+v", k)
	}
}

// A file of tpm2-tools 5.4, for an object without a password.
func TestEncodeObject(t *testing.T) {
	der := encodeobject(t)
	k, err := Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	if k.Type != Loadable || k.EmptyAuth != False || k.WantsPassword() || k.Parent != 0x40000001 ||
		len(k.Public) != 46 || len(k.Private) != 158 || k.Policy != nil {
		t.Errorf("%+v", k)
	}
	roundTrip(t, der)
}

func roundTrip(t testing.TB, der []byte) {
	t.Helper()
	before := bytes.Clone(der)
	k, err := Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	clear(der) // the key has no part of it
	again, err := k.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, before) {
		t.Errorf("%x\nbecame\n%x", before, again)
	}
}

func TestRoundTrip(t *testing.T) {
	roundTrip(t, full().der(t))
	roundTrip(t, other{Type: full().Type, Parent: 1, Public: full().Public, Private: full().Private}.der(t))
}

func TestWantsPassword(t *testing.T) {
	for _, c := range []struct {
		typ  Type
		flag Flag
		want bool
	}{
		{Sealed, Absent, true}, {Sealed, False, true}, {Sealed, True, false}, {Sealed, One, false},
		{Loadable, Absent, true}, {Loadable, False, false}, {Loadable, True, false}, {Loadable, One, true},
	} {
		if got := (&Key{Type: c.typ, EmptyAuth: c.flag}).WantsPassword(); got != c.want {
			t.Errorf("type %d, flag %x: %v", c.typ, c.flag, got)
		}
	}
}

func TestRefused(t *testing.T) {
	change := func(f func(*other)) []byte {
		o := full()
		f(&o)
		return o.der(t)
	}
	good := full().der(t)
	replace := func(old, new string) []byte {
		t.Helper()
		o, _ := hex.DecodeString(old)
		n, _ := hex.DecodeString(new)
		if bytes.Count(good, o) != 1 || len(o) != len(n) {
			t.Fatalf("%s is there %d times", old, bytes.Count(good, o))
		}
		return bytes.Replace(good, o, n, 1)
	}
	for what, der := range map[string][]byte{
		"nothing":             nil,
		"another type":        change(func(o *other) { o.Type = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 6} }),
		"a longer type":       change(func(o *other) { o.Type = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 5, 1} }),
		"another arc":         change(func(o *other) { o.Type = asn1.ObjectIdentifier{2, 23, 133, 10, 2, 5} }),
		"a strange boolean":   replace("a0030101ff", "a003010102"),
		"a long boolean":      change(func(o *other) { o.EmptyAuth.FullBytes = []byte{0xa0, 4, 1, 2, 0xff, 0xff} }),
		"a tag without":       change(func(o *other) { o.EmptyAuth.FullBytes = []byte{0xa0, 0} }),
		"two in a tag":        change(func(o *other) { o.EmptyAuth.FullBytes = []byte{0xa0, 6, 1, 1, 0xff, 1, 1, 0xff} }),
		"a negative parent":   change(func(o *other) { o.Parent = -0x7effffff }),
		"a large parent":      change(func(o *other) { o.Parent = 0x181000001 }),
		"a short public area": change(func(o *other) { o.Public = []byte{0, 4, 7, 8, 9} }),
		"a long private part": change(func(o *other) { o.Private = []byte{0, 1, 5, 6} }),
		"no private part":     change(func(o *other) { o.Private = []byte{0, 0} }),
		"not UTF-8":           replace("c3bc", "bcc3"),
		"more behind it":      append(slices.Clone(good), 0),
		"indefinite length":   append([]byte{0x30, 0x80}, good[3:]...),
		"too much":            change(func(o *other) { o.Secret = make([]byte, MaxFile) }),
	} {
		if k, err := Parse(der); err == nil || k != nil || !strings.Contains(err.Error(), "malformed") {
			t.Errorf("%s: %v, %v", what, k, err)
		}
	}
	for n := range good {
		if _, err := Parse(good[:n]); err == nil {
			t.Errorf("the first %d bytes were taken", n)
		}
	}
}

// Whatever is taken encodes to the same bytes.
func TestMalleability(t *testing.T) {
	for _, good := range [][]byte{full().der(t), encodeobject(t)} {
		for i := range good {
			for v := range 256 {
				bad := slices.Clone(good)
				bad[i] = byte(v)
				if _, err := Parse(bad); err == nil {
					roundTrip(t, bad)
				}
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(full().der(f))
	f.Add(encodeobject(f))
	f.Add([]byte{0x30, 0x80, 0, 0})
	f.Fuzz(func(t *testing.T, der []byte) {
		if _, err := Parse(der); err == nil {
			roundTrip(t, bytes.Clone(der))
		}
	})
}
