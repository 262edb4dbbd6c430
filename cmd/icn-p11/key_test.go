package main

import (
	"encoding/hex"
	"strings"
	"testing"
)

// The key of RFC 8032, 7.1, test 1, which is also that of RFC 8037, appendix A.
func TestPublicForms(t *testing.T) {
	k := tokenKey{publicKey: publicKey{label: "a label"}}
	hex.Decode(k.public[:], []byte("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"))
	for form, want := range map[string]string{
		"hex": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a\n",
		"did": "did:icn:zFVen3X669xLzsi6N2V91DoiyzHzg1uAgqiT8jZ9nS96Z\n",
		"jwk": `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k","alg":"EdDSA","use":"sig"}` + "\n",
		"pem": "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n",
		"ssh": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea a label\n",
	} {
		got, err := publicForms[form](k)
		if err != nil || string(got) != want {
			t.Errorf("%s: %s, %v", form, got, err)
		}
	}
	k.label = "two\nlines"
	if got, _ := publicForms["ssh"](k); strings.Count(string(got), "\n") != 1 {
		t.Errorf("a label breaks the line: %q", got)
	}
}
