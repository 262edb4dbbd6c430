package did

import (
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
)

// Public keys of RFC 8032, section 7.1, and ICN's identifiers for them.
var golden = []struct{ key, did string }{
	{"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "did:icn:zFVen3X669xLzsi6N2V91DoiyzHzg1uAgqiT8jZ9nS96Z"},
	{"3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "did:icn:z586Z7H2vpX9qNhN2T4e9Utugie3ogjbxzGaMtM3E6HR5"},
}

func key(t *testing.T, s string) [32]byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return [32]byte(b)
}

func TestGolden(t *testing.T) {
	for _, g := range golden {
		k := key(t, g.key)
		if got := Encode(k); got != g.did {
			t.Errorf("%s is %s, want %s", g.key, got, g.did)
		}
		if got, err := Parse(g.did); err != nil || got != k {
			t.Errorf("%s: %x, %v", g.did, got, err)
		}
	}
}

func TestMultibase(t *testing.T) {
	k := key(t, golden[0].key)
	b32 := base32.StdEncoding.EncodeToString(k[:])
	hex32 := base32.HexEncoding.EncodeToString(k[:])
	for _, text := range []string{
		"f" + golden[0].key,
		"F" + strings.ToUpper(golden[0].key),
		"b" + strings.ToLower(strings.TrimRight(b32, "=")), "B" + strings.TrimRight(b32, "="),
		"c" + strings.ToLower(b32), "C" + b32,
		"v" + strings.ToLower(strings.TrimRight(hex32, "=")), "T" + hex32,
		"m" + base64.RawStdEncoding.EncodeToString(k[:]), "M" + base64.StdEncoding.EncodeToString(k[:]),
		"u" + base64.RawURLEncoding.EncodeToString(k[:]), "U" + base64.URLEncoding.EncodeToString(k[:]),
	} {
		if got, err := Parse(Prefix + text); err != nil || got != k {
			t.Errorf("%s: %x, %v", text, got, err)
		}
	}
}

func TestRefused(t *testing.T) {
	good := golden[0].did
	for _, s := range []string{
		"", "did:icn:", "did:icn:z", "did:key:" + good[len(Prefix):], strings.ToUpper(good), good + "1", good[:len(good)-1],
		good + "\n", strings.Replace(good, "z", "z1", 1), strings.Replace(good, "z", "x", 1), strings.Replace(good, "n3", "0O", 1),
		"did:icn:F" + golden[0].key, "did:icn:f" + strings.ToUpper(golden[0].key), "did:icn:f" + golden[0].key + "00",
		// The unused bits of the last digit are not zero.
		"did:icn:u11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURp",
		// y = 2 is not on the curve; y = p + 1 is not canonical.
		"did:icn:f02" + strings.Repeat("00", 31), "did:icn:fee" + strings.Repeat("ff", 30) + "7f",
		"did:icn:z" + strings.Repeat("2", 10000),
	} {
		if k, err := Parse(s); err == nil {
			t.Errorf("%.80q is read as %x", s, k)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, g := range golden {
		f.Add(g.did)
		f.Add("did:icn:f" + g.key)
	}
	f.Add("did:icn:b1111")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := Parse(s)
		if err != nil {
			return
		}
		if again, err := Parse(Encode(k)); err != nil || again != k {
			t.Errorf("%q: %x becomes %x, %v", s, k, again, err)
		}
		if strings.HasPrefix(s, Prefix+"z") && s != Encode(k) {
			t.Errorf("%q and %q name one key", s, Encode(k))
		}
	})
}
