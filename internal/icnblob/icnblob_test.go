package icnblob

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
)

// count gives n numbers from first on.
func count(n int, first byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

// object is the public area that swtpm makes, with a unique of its own.
func object() []byte {
	b, _ := hex.DecodeString("0008000b00000052000000100020")
	return append(b, count(32, 200)...)
}

func handle(v uint32) *uint32 { return &v }

func sample() *Blob {
	return &Blob{Private: count(158, 100), Public: object(), PublicKey: [32]byte(count(32, 1)), PCRs: []byte{0, 7}, Handle: handle(DefaultHandle)}
}

func file(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The files in testdata were made from the description of the format, not by
// this package.
func TestGolden(t *testing.T) {
	bare := sample()
	bare.PCRs, bare.Handle = []byte{}, nil
	for name, b := range map[string]*Blob{"v2.blob": sample(), "v2-bare.blob": bare} {
		want := file(t, name)
		if got := b.Marshal(); !bytes.Equal(got, want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
		}
		got, err := Parse(want)
		if err != nil || !reflect.DeepEqual(got, b) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestPlaintext(t *testing.T) {
	data := file(t, "v1.blob")
	if _, err := Parse(data); !errors.Is(err, ErrPlaintext) {
		t.Errorf("%v", err)
	}
	seed := make([]byte, 32)
	public, err := ParsePlaintext(seed, data)
	if err != nil || !bytes.Equal(seed, count(32, 50)) || public != [32]byte(count(32, 1)) {
		t.Errorf("%x, %x, %v", seed, public, err)
	}
	if _, err := ParsePlaintext(seed, file(t, "v2.blob")); err == nil || bytes.Contains(seed, count(4, 50)) {
		t.Errorf("a blob of version 2: %v, %x", err, seed)
	}
	if _, err := ParsePlaintext(seed[:31], data); err == nil {
		t.Error("a seed went where there is no room")
	}
	for old, new := range map[string]string{",81]": "]", "[50,": "[50,50,", "51": "256"} {
		copy(seed, "something")
		bad := strings.Replace(string(data), old, new, 1)
		if _, err := ParsePlaintext(seed, []byte(bad)); err == nil || errors.Is(err, ErrPlaintext) || !bytes.Equal(seed, make([]byte, 32)) {
			t.Errorf("%s for %s: %v, %x", new, old, err, seed)
		}
		if _, err := Parse([]byte(bad)); err == nil || errors.Is(err, ErrPlaintext) {
			t.Errorf("%s for %s: %v", new, old, err)
		}
	}
}

// What ICN's reader takes, and a person may make of a file.
func TestOtherForms(t *testing.T) {
	text := string(file(t, "v2.blob"))
	var indented bytes.Buffer
	if err := json.Indent(&indented, []byte(text), " ", "\t"); err != nil {
		t.Fatal(err)
	}
	last := `,"key_handle":2164260865,"version":2}`
	body, ok := strings.CutSuffix(text, last)
	if !ok {
		t.Fatal(text)
	}
	bare := sample()
	bare.Handle = nil
	for what, c := range map[string]struct {
		text string
		want *Blob
	}{
		"indented":         {"\r\n" + indented.String() + "\n", sample()},
		"another order":    {`{"version":2,"key_handle":2164260865,` + body[1:] + "}", sample()},
		"no version":       {body + `,"key_handle":2164260865}`, sample()},
		"no handle":        {body + `,"version":2}`, bare},
		"neither":          {body + "}", bare},
		"a handle of null": {body + `,"key_handle":null,"version":2}`, bare},
	} {
		if got, err := Parse([]byte(c.text)); err != nil || !reflect.DeepEqual(got, c.want) || !Is([]byte(c.text)) {
			t.Errorf("%s: %v, %v", what, got, err)
		}
	}
}

func TestRefused(t *testing.T) {
	text := string(file(t, "v2.blob"))
	for what, c := range map[string][2]string{
		"not JSON":               {"{", "["},
		"no end":                 {":2}", ":2"},
		"more behind":            {":2}", ":2}{}"},
		"a comma too many":       {":2}", ":2,}"},
		"a comma in an array":    {"[0,7]", "[0,7,]"},
		"a negative number":      {"[0,7]", "[0,-7]"},
		"a fraction":             {"[0,7]", "[0,7.0]"},
		"an exponent":            {"[0,7]", "[0,7e0]"},
		"a leading zero":         {"[0,7]", "[0,07]"},
		"text":                   {"[0,7]", `"07"`},
		"a nested array":         {"[0,7]", "[[0,7]]"},
		"a PCR that is none":     {"[0,7]", "[0,32]"},
		"too many PCRs":          {"[0,7]", "[" + strings.Repeat("0,", 32) + "0]"},
		"no byte":                {"[100,101,", "[100,256,"},
		"nothing private":        {text[strings.Index(text, "[100,"):strings.Index(text, `,"tpm_public"`)], "[]"},
		"much private":           {"[100,", "[" + strings.Repeat("1,", maxPart)},
		"a short public key":     {"[1,2,", "[2,"},
		"a long public key":      {"[1,2,", "[1,2,3,"},
		"no public key":          {"public_key", "publicKey"},
		"a field twice":          {`"version":2`, `"version":2,"version":2`},
		"an escape":              {`"version"`, `"\u0076ersion"`},
		"another case":           {`"version"`, `"Version"`},
		"a field that is new":    {`"version":2`, `"version":2,"policy":null`},
		"a handle of a session":  {"2164260865", "33554433"},
		"a large handle":         {"2164260865", "4294967296"},
		"a very large handle":    {"2164260865", "99999999999999999999999999"},
		"two kinds":              {`"version":2`, `"version":2,"sealed_data":[` + strings.Repeat("0,", 31) + "0]"},
		"version 1":              {`"version":2`, `"version":1`},
		"version 3":              {`"version":2`, `"version":3`},
		"version null":           {`"version":2`, `"version":null`},
		"a literal that is none": {"2164260865", "nullnull"},
	} {
		if strings.Count(text, c[0]) != 1 {
			t.Fatalf("%s: %q is there %d times", what, c[0], strings.Count(text, c[0]))
		}
		bad := strings.Replace(text, c[0], c[1], 1)
		if b, err := Parse([]byte(bad)); err == nil || b != nil {
			t.Errorf("%s was taken: %v", what, b)
		} else if _, cure := advice.Split(err); strings.HasPrefix(what, "version 3") != (cure != "") && what != "version 1" {
			t.Errorf("%s: %v", what, err)
		}
	}
	for n := range text {
		if _, err := Parse([]byte(text[:n])); err == nil {
			t.Errorf("the first %d bytes were taken", n)
		}
	}
	for _, other := range []string{"", "-----BEGIN", "\x30\x81", strings.Repeat("x", 32)} {
		if Is([]byte(other)) {
			t.Errorf("%q can be a blob", other)
		}
	}
}

// agree checks a reading against encoding/json, and that it is written as
// ICN would, which reads the same again.
func agree(t *testing.T, data []byte, b *Blob) {
	t.Helper()
	type numbers []uint16 // encoding/json reads base64 for bytes
	var o struct {
		Private numbers `json:"tpm_private"`
		Public  numbers `json:"tpm_public"`
		Key     numbers `json:"public_key"`
		PCRs    numbers `json:"pcr_slots"`
		Handle  *uint32 `json:"key_handle"`
		Version int     `json:"version"`
	}
	o.Version = 2
	if err := json.Unmarshal(data, &o); err != nil {
		t.Fatalf("%q: encoding/json: %v", data, err)
	}
	same := func(n numbers, b []byte) bool {
		return slices.EqualFunc(n, b, func(n uint16, b byte) bool { return n == uint16(b) })
	}
	if !same(o.Private, b.Private) || !same(o.Public, b.Public) || !same(o.Key, b.PublicKey[:]) || !same(o.PCRs, b.PCRs) ||
		!reflect.DeepEqual(o.Handle, b.Handle) || o.Version != Version {
		t.Errorf("%q: %+v, encoding/json %+v", data, b, o)
	}
	text := b.Marshal()
	again, err := Parse(text)
	if err != nil || !reflect.DeepEqual(again, b) || !bytes.Equal(again.Marshal(), text) {
		t.Errorf("%q became %q: %v", data, text, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"v2.blob", "v2-bare.blob", "v1.blob"} {
		f.Add(file(f, name))
	}
	f.Add([]byte(` { "tpm_private" : [ 1 ] ,"tpm_public":[2],"public_key":[` + strings.Repeat("9,", 31) + `9],"pcr_slots":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		b, err := Parse(data)
		if !bytes.Equal(data, before) {
			t.Error("the data was changed")
		}
		if err == nil {
			agree(t, data, b)
		}
		seed := make([]byte, 32)
		public, perr := ParsePlaintext(seed, data)
		if (perr == nil) != errors.Is(err, ErrPlaintext) {
			t.Errorf("%q: %v, in the clear %v", data, err, perr)
		}
		if perr != nil {
			return
		}
		var o struct {
			Seed []uint16 `json:"sealed_data"`
			Key  []uint16 `json:"public_key"`
		}
		if json.Unmarshal(data, &o) != nil || len(o.Seed) != 32 || fmt.Sprint(o.Seed) != fmt.Sprint(seed) || fmt.Sprint(o.Key) != fmt.Sprint(public) {
			t.Errorf("%q: %v, %v", data, seed, public)
		}
	})
}

func TestFileName(t *testing.T) {
	for h, want := range map[uint32]string{DefaultHandle: "sealed-0x81000001.blob", 0x81ABCDEF: "sealed-0x81abcdef.blob"} {
		if got := FileName(h); got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
}
