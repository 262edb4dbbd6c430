package backup

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// plain is what a backup looks like inside of the encryption.
func plain(t testing.TB, b *Backup) []byte {
	t.Helper()
	b.Manifest.Created = time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)
	p, secrets, err := b.encode()
	check(t, err)
	return append(p, bytes.Join(secrets, nil)...)
}

// again encodes what was decoded.
func again(t testing.TB, b *Backup) []byte {
	t.Helper()
	p, secrets, err := b.encode()
	if err != nil {
		t.Fatalf("what was decoded cannot be encoded: %v", err)
	}
	return append(p, bytes.Join(secrets, nil)...)
}

// manifestOf takes a plaintext apart.
func manifestOf(p []byte) (manifest, rest []byte) {
	n := binary.BigEndian.Uint32(p[8:])
	return p[12 : 12+n], p[12+n:]
}

func withManifest(manifest, rest []byte) []byte {
	p := append([]byte(magic), formatVersion)
	p = binary.BigEndian.AppendUint32(p, uint32(len(manifest)))
	return slices.Concat(p, manifest, rest)
}

func TestFormat(t *testing.T) {
	for _, b := range []*Backup{sample(t), sealed(t)} {
		p := plain(t, b)
		got, err := decode(bytes.NewReader(p))
		check(t, err)
		defer got.Destroy()
		if !bytes.Equal(again(t, got), p) {
			t.Error("another encoding")
		}
		for i := range p {
			if _, err := decode(bytes.NewReader(p[:i])); !errors.Is(err, ErrMalformed) {
				t.Fatalf("cut at %d: %v", i, err)
			}
		}
		if _, err := decode(bytes.NewReader(append(p, 0))); !errors.Is(err, ErrMalformed) {
			t.Errorf("too long: %v", err)
		}
	}
}

// What differs from the one form of a manifest is refused, whatever it means.
func TestManifestForm(t *testing.T) {
	p := plain(t, sample(t))
	manifest, rest := manifestOf(p)
	text := string(manifest)
	for _, m := range []string{
		"", "{}", "null", "[]", text[:len(text)-1], " " + text, text + "\n",
		strings.Replace(text, `"version":1,`, `"version":2,`, 1),
		strings.Replace(text, `"version":1,`, `"version":1,"version":1,`, 1),
		strings.Replace(text, `"version":1,`, `"version":1,"more":1,`, 1),
		strings.Replace(text, `"version":1,`, `"Version":1,`, 1),
		strings.Replace(text, `"label":"node"`, `"label":"n\u006fde"`, 1),
		strings.Replace(text, `"label":"node"`, "\"label\":\"n\xffde\"", 1),
		strings.Replace(text, `"label":"node"`, `"label":"node "`, 1),
		strings.Replace(text, `"label":"node"`, `"label":"`+strings.Repeat("x", 33)+`"`, 1),
		strings.Replace(text, `"slot":3`, `"slot":3.0`, 1),
		strings.Replace(text, `"slot":3`, `"slot":-1`, 1),
		strings.Replace(text, `"slot":3`, `"slot":2147483647`, 1),
		strings.Replace(text, `"serial":"0123456789abcdef"`, `"serial":"0123456789ABCDEF"`, 1),
		strings.Replace(text, `"serial":"0123456789abcdef"`, `"serial":"../../../../etc"`, 1),
		strings.Replace(text, `"kind":"recoverable"`, `"kind":"sealed"`, 1),
		strings.Replace(text, `"kind":"recoverable"`, `"kind":"other"`, 1),
		strings.Replace(text, `"2026-03-01T12:00:00Z"`, `"2026-03-01T12:00:00+00:00"`, 1),
		strings.Replace(text, `"2026-03-01T12:00:00Z"`, `"2026-03-01T12:00:00.5Z"`, 1),
		strings.Replace(text, `"2026-03-01T12:00:00Z"`, `"1966-03-01T12:00:00Z"`, 1),
		strings.Replace(text, `"no_pin":false`, `"no_pin":true`, 1),
		strings.Replace(text, `[0,7]`, `[7,0]`, 1),
		strings.Replace(text, `[0,7]`, `[0,0]`, 1),
		strings.Replace(text, `[0,7]`, `[0,24]`, 1),
		strings.Replace(text, `"bank":"sha256"`, `"bank":"md5"`, 1),
		strings.Replace(text, `"certificates":1`, `"certificates":-1`, 1),
		strings.Replace(text, `"did":"did:icn:z`, `"did":"did:icn:y`, 1),
		strings.Replace(text, `"size":15`, `"size":16`, 1),
		strings.Replace(text, `"size":15`, `"size":99999999`, 1),
		strings.Replace(text, `"name":"04`, `"name":"06`, 1),
		strings.Replace(text, `"name":"04`, `"name":"FF`, 1),
		strings.Replace(text, `"storage_root_key":"000b`, `"storage_root_key":"xxxx`, 1),
	} {
		if m == text {
			t.Fatal("a case changes nothing")
		}
		if _, err := decode(bytes.NewReader(withManifest([]byte(m), rest))); !errors.Is(err, ErrMalformed) {
			t.Errorf("%v: %s", err, m)
		}
	}
	var v map[string]any
	check(t, json.Unmarshal(manifest, &v))
	for _, name := range []string{"keys", "records"} {
		saved := v[name]
		v[name] = nil
		m, err := json.Marshal(v)
		check(t, err)
		if _, err := decode(bytes.NewReader(withManifest(m, rest))); !errors.Is(err, ErrMalformed) {
			t.Errorf("without %s: %v", name, err)
		}
		v[name] = saved
	}
	huge := binary.BigEndian.AppendUint32(append([]byte(magic), formatVersion), maxManifest+1)
	if _, err := decode(bytes.NewReader(huge)); !errors.Is(err, ErrMalformed) {
		t.Errorf("a huge manifest: %v", err)
	}
	for _, head := range []string{"ICNP11T\x01", "ICNP11B\x02"} {
		if _, err := decode(bytes.NewReader(append([]byte(head), p[8:]...))); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", head, err)
		}
	}
}

func TestObjectRecord(t *testing.T) {
	for _, r := range [][]byte{
		{}, {0, 0}, {4, 0, 0}, {0, 1, 0}, {2, 0, 0}, {2, 129, 0}, {2, 32, 65}, {2, 32, 1}, {0, 0, 1, 'x'},
		append([]byte{2, 32, 65}, make([]byte, 65)...), make([]byte, 3+sealstore.MaxBody+1),
	} {
		if _, _, err := decodeObject(r); err == nil {
			t.Errorf("%.10x is accepted", r)
		}
	}
}

// What no token has cannot be written either.
func TestEncodeRefuses(t *testing.T) {
	for name, spoil := range map[string]func(b *Backup){
		"two objects of one ID":    func(b *Backup) { b.Contents.Objects[0].ID = b.Contents.Objects[1].ID },
		"a body that is too large": func(b *Backup) { b.Contents.Objects[0].Body = make([]byte, sealstore.MaxBody+1) },
		"an empty secret":          func(b *Backup) { b.Contents.Objects[0].Secret = []byte{} },
		"about no secret":          func(b *Backup) { b.Contents.Objects[0].Secret = nil },
		"a serial number":          func(b *Backup) { b.Contents.Serial = "1" },
		"a foreign DID":            func(b *Backup) { b.Manifest.DID = "did:icn:z1" },
		"both":                     func(b *Backup) { b.Files = &sealstore.Files{} },
		"neither":                  func(b *Backup) { b.Contents = nil },
		"a file that is too large": func(b *Backup) {
			*b = *sealed(t)
			f := *b.Files
			f.BootLog = make([]byte, maxFile+1)
			b.Files = &f
		},
		"no token file": func(b *Backup) {
			*b = *sealed(t)
			f := *b.Files
			f.Token = nil
			b.Files = &f
		},
	} {
		b := sample(t)
		spoil(b)
		if _, _, err := b.encode(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

// FuzzDecode: what is accepted encodes to the same bytes again.
func FuzzDecode(f *testing.F) {
	f.Add(plain(f, sample(f)))
	f.Add(plain(f, sealed(f)))
	empty := &Backup{Contents: &sealstore.Contents{Serial: "0123456789abcdef", Created: time.Unix(0, 0).UTC()}}
	empty.Manifest.Token.Parent = "00"
	f.Add(plain(f, empty))
	f.Add([]byte(magic + "\x01\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, p []byte) {
		b, err := decode(bytes.NewReader(p))
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		defer b.Destroy()
		if !bytes.Equal(again(t, b), p) {
			t.Fatalf("another encoding of %q", p)
		}
	})
}

// FuzzManifest goes through the JSON, which FuzzDecode seldom gets to.
func FuzzManifest(f *testing.F) {
	for _, b := range []*Backup{sample(f), sealed(f)} {
		m, _ := manifestOf(plain(f, b))
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		m, err := decodeManifest(p)
		if err != nil {
			return
		}
		if q, err := m.encode(); err != nil || !bytes.Equal(p, q) {
			t.Fatalf("another encoding of %q: %q, %v", p, q, err)
		}
		if err := m.check(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzFile hands what is no file of age to everything that reads one.
func FuzzFile(f *testing.F) {
	to, by := native(f)
	quick := Passphrase(pass)
	quick.work = 1
	f.Add(encrypt(f, sample(f), to, false))
	f.Add(encrypt(f, sample(f), to, true))
	f.Add(encrypt(f, sealed(f), quick, false))
	f.Fuzz(func(t *testing.T, p []byte) {
		ByPassphrase(p)
		NeedsPassphrase(p)
		if b, err := read(p, by.identities); err == nil {
			b.Destroy()
		}
	})
}

func TestText(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "node": "node", "a\xffb": "a\ufffdb", strings.Repeat("x", 300): strings.Repeat("x", maxText),
		strings.Repeat("\u00e4", 200): strings.Repeat("\u00e4", 127), "\x00\n": "\x00\n",
	} {
		got := Text(s)
		if got != want || !validText(got) {
			t.Errorf("%q: %q", s, got)
		}
		b := sample(t)
		b.Manifest.Keys[0].Label = got
		p := plain(t, b)
		if back, err := decode(bytes.NewReader(p)); err != nil || back.Manifest.Keys[0].Label != want {
			t.Errorf("%q does not come back: %v", s, err)
		}
	}
}
