package main

import (
	"bytes"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/icnblob"
	"github.com/InterCooperative-Network/icn-p11/internal/tss2"
)

// sealedArea is the public area of sealed data, with these attributes.
func sealedArea(t testing.TB, attributes string) []byte {
	t.Helper()
	b, err := hex.DecodeString("0008000b" + attributes + "000000100020" + strings.Repeat("ab", 32))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func tss2File(t testing.TB, change func(k *tss2.Key)) []byte {
	t.Helper()
	k := &tss2.Key{Type: tss2.Sealed, EmptyAuth: tss2.True, Parent: 0x40000001, Public: sealedArea(t, "00000052"), Private: make([]byte, 158)}
	change(k)
	der, err := k.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: tss2.PEMType, Bytes: der})
}

// What is refused before anything is asked for or sent to the TPM.
func TestReadKeyFile(t *testing.T) {
	const pipe = "unseal it with the program that sealed it, into a pipe to icn-p11 import TOKEN -"
	blob := &icnblob.Blob{Public: sealedArea(t, "00000052"), Private: make([]byte, 158)}
	altered := *blob
	altered.Public = sealedArea(t, "00000012")
	steps := []tss2.Command{{Code: 0x17f, Body: []byte{1}}, {Code: 0x16b}, {Code: 0x9999}}
	for what, c := range map[string]struct {
		data       []byte
		said, cure string
	}{
		"sealed":    {tss2File(t, func(*tss2.Key) {}), "", ""},
		"a blob":    {blob.Marshal(), "", ""},
		"a seed":    {[]byte("{ a seed of 32 bytes, as it is }"), "", ""},
		"PEM seed":  {[]byte("-----BEGIN X-----\n-----END X-----")[:32], "", ""},
		"a policy":  {tss2File(t, func(k *tss2.Key) { k.Policy = steps }), "the sealed object opens by a policy (PolicyPCR, PolicyAuthValue, command 0x9999), which is not supported", pipe},
		"untold":    {tss2File(t, func(k *tss2.Key) { k.Public = sealedArea(t, "00000012") }), "opens by a policy (which the file does not tell)", pipe},
		"authorise": {tss2File(t, func(k *tss2.Key) { k.AuthPolicies = []tss2.AuthPolicy{{Name: "one", Policy: steps[:1]}} }), "opens by a policy (PolicyPCR)", pipe},
		"import": {tss2File(t, func(k *tss2.Key) { k.Type = tss2.Importable }), "(TPM2_Import), which is not supported",
			"seal the key itself to this TPM, or import it from a file"},
		"HMAC key":      {tss2File(t, func(k *tss2.Key) { k.Public = sealedArea(t, "00040052") }), "is a key of the TPM", ""},
		"volatile":      {tss2File(t, func(k *tss2.Key) { k.Parent = 0x80000000 }), "the parent 0x80000000 is neither", ""},
		"not base64":    {[]byte("-----BEGIN TSS2 PRIVATE KEY-----\n*\n-----END TSS2 PRIVATE KEY-----\n"), "is not in base64", ""},
		"not DER":       {[]byte("-----BEGIN TSS2 PRIVATE KEY-----\nMAA=\n-----END TSS2 PRIVATE KEY-----\n"), "the TSS2 PRIVATE KEY is malformed", ""},
		"a policy blob": {altered.Marshal(), "the sealed object opens by a policy", ""},
		"half a blob":   {blob.Marshal()[:500], "the ICN blob ", ""},
		"too large":     {bytes.Repeat([]byte(" "), 5000), "more than 4095 bytes", ""},
	} {
		f, err := readKeyFile(write(t, c.data), false)
		if err == nil {
			f.destroy()
			if c.said != "" {
				t.Errorf("%s was taken", what)
			}
			continue
		}
		if c.said == "" || !strings.Contains(err.Error(), c.said) {
			t.Errorf("%s: %v", what, err)
		}
		if _, cure := advice.Split(err); cure != c.cure {
			t.Errorf("%s: the cure is %q", what, cure)
		}
	}
	if _, err := readKeyFile(write(t, blob.Marshal()), true); err == nil || !strings.Contains(err.Error(), "--from-plaintext is only for") {
		t.Errorf("a sealed blob as plaintext: %v", err)
	}
}
