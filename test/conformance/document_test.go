package conformance

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/conformance.md anew")

const document = "../../docs/conformance.md"

const preface = `# Conformance

What ` + "`test/conformance`" + ` checks of the built module, by the sections of OASIS PKCS #11
Specification v3.1; a section of v3.2 is marked as such. Each row of the suite
is a call, or a few, and the code that the standard asks for. A line below is a
rule with that code, and the number of rows that check it: one for each
function, class, mechanism, argument or state of the session that the rule is
for. The suite has %d rows, and skips none.

This file is made of the suite's table: ` + "`go test ./test/conformance -run TestDocument -update`" + `
writes it, and the same test fails where it is out of date. What the module
chose where the standard leaves room is in architecture.md.
`

// titles are those of the sections that rows come from.
var titles = map[string]string{
	"3.4":         "Object types",
	"4":           "Objects",
	"4.1.1":       "Creating objects",
	"4.4":         "Storage objects",
	"4.4.1":       "The CKA_UNIQUE_ID attribute",
	"4.5":         "Data objects",
	"4.6.2":       "Certificate objects",
	"4.6.3":       "X.509 public key certificate objects",
	"4.7":         "Key objects",
	"4.8":         "Public key objects",
	"4.9":         "Private key objects",
	"4.10":        "Secret key objects",
	"4.13":        "Profile objects",
	"5.1.2":       "Cryptoki function return values for functions that use a session handle",
	"5.1.6":       "All other Cryptoki function return values",
	"5.2":         "Conventions for functions returning output in a variable-length buffer",
	"6.3.5":       "Edwards elliptic curve public key objects",
	"6.3.6":       "Edwards elliptic curve private key objects",
	"6.3":         "Elliptic curve",
	"6.3.3":       "Elliptic curve public key objects",
	"6.3.4":       "Elliptic curve private key objects",
	"6.3.7":       "Montgomery elliptic curve public key objects",
	"6.3.8":       "Montgomery elliptic curve private key objects",
	"6.3.9":       "Elliptic curve key pair generation",
	"6.3.10":      "Edwards elliptic curve key pair generation",
	"6.3.11":      "Montgomery elliptic curve key pair generation",
	"6.3.12":      "ECDSA without hashing",
	"6.3.13":      "ECDSA with hashing",
	"6.3.17":      "Elliptic curve Diffie-Hellman key derivation",
	"6.7":         "Wrapping and unwrapping private keys",
	"6.8":         "Generic secret keys",
	"6.10":        "AES",
	"6.11":        "AES with counter",
	"6.13":        "Additional AES mechanisms",
	"6.16":        "AES key wrap",
	"6.58":        "ChaCha20",
	"6.61":        "ChaCha20/Poly1305",
	"6.62":        "HKDF mechanisms",
	"6.3.14":      "EdDSA",
	"6.3.16":      "EC mechanism parameters",
	"6.20":        "SHA-1",
	"6.21":        "SHA-224",
	"6.22":        "SHA-256",
	"6.23":        "SHA-384",
	"6.24":        "SHA-512",
	"6.25":        "SHA-512/224",
	"6.26":        "SHA-512/256",
	"6.28":        "SHA3-224",
	"6.29":        "SHA3-256",
	"6.30":        "SHA3-384",
	"6.31":        "SHA3-512",
	"5.20":        "Parallel function management functions",
	"v3.2 5.5.3":  "C_GetTokenInfo",
	"v3.2 5.6.1":  "C_OpenSession",
	"v3.2 5.6.11": "C_GetSessionValidationFlags",
	"v3.2 5.15.7": "C_VerifySignatureInit",
	"v3.2 5.15.8": "C_VerifySignature", "v3.2 5.15.9": "C_VerifySignatureUpdate", "v3.2 5.15.10": "C_VerifySignatureFinal",
	"5.4.1": "C_Initialize", "5.4.2": "C_Finalize", "5.4.3": "C_GetInfo", "5.4.4": "C_GetFunctionList", "5.4.5": "C_GetInterfaceList", "5.4.6": "C_GetInterface",
	"5.5.1": "C_GetSlotList", "5.5.2": "C_GetSlotInfo", "5.5.3": "C_GetTokenInfo", "5.5.4": "C_WaitForSlotEvent", "5.5.5": "C_GetMechanismList",
	"5.5.6": "C_GetMechanismInfo", "5.5.7": "C_InitToken", "5.5.8": "C_InitPIN", "5.5.9": "C_SetPIN",
	"5.6.1": "C_OpenSession", "5.6.2": "C_CloseSession", "5.6.3": "C_CloseAllSessions", "5.6.4": "C_GetSessionInfo", "5.6.5": "C_SessionCancel",
	"5.6.6": "C_GetOperationState", "5.6.7": "C_SetOperationState", "5.6.8": "C_Login", "5.6.9": "C_LoginUser", "5.6.10": "C_Logout",
	"5.7.1": "C_CreateObject", "5.7.2": "C_CopyObject", "5.7.3": "C_DestroyObject", "5.7.4": "C_GetObjectSize", "5.7.5": "C_GetAttributeValue",
	"5.7.6": "C_SetAttributeValue", "5.7.7": "C_FindObjectsInit", "5.7.8": "C_FindObjects", "5.7.9": "C_FindObjectsFinal",
	"5.8.1": "C_EncryptInit", "5.8.2": "C_Encrypt", "5.8.3": "C_EncryptUpdate", "5.8.4": "C_EncryptFinal",
	"5.10.1": "C_DecryptInit", "5.10.2": "C_Decrypt", "5.10.3": "C_DecryptUpdate", "5.10.4": "C_DecryptFinal",
	"5.12.1": "C_DigestInit", "5.12.2": "C_Digest", "5.12.3": "C_DigestUpdate", "5.12.4": "C_DigestKey", "5.12.5": "C_DigestFinal",
	"5.13.1": "C_SignInit", "5.13.2": "C_Sign", "5.13.3": "C_SignUpdate", "5.13.4": "C_SignFinal",
	"5.14.1": "C_MessageSignInit", "5.14.2": "C_SignMessage", "5.14.3": "C_SignMessageBegin", "5.14.4": "C_SignMessageNext", "5.14.5": "C_MessageSignFinal",
	"5.15.1": "C_VerifyInit", "5.15.2": "C_Verify", "5.15.3": "C_VerifyUpdate", "5.15.4": "C_VerifyFinal",
	"5.16.1": "C_MessageVerifyInit", "5.16.2": "C_VerifyMessage", "5.16.3": "C_VerifyMessageBegin", "5.16.4": "C_VerifyMessageNext", "5.16.5": "C_MessageVerifyFinal",
	"5.17.1": "C_DigestEncryptUpdate", "5.17.2": "C_DecryptDigestUpdate", "5.17.3": "C_SignEncryptUpdate", "5.17.4": "C_DecryptVerifyUpdate",
	"5.18.1": "C_GenerateKey", "5.18.2": "C_GenerateKeyPair", "5.18.3": "C_WrapKey", "5.18.4": "C_UnwrapKey", "5.18.5": "C_DeriveKey", "5.19.1": "C_SeedRandom", "5.19.2": "C_GenerateRandom",
}

// title is a section's title; that of an absent function is its name.
func title(section string) string {
	if t := titles[section]; t != "" {
		return t
	}
	for name, s := range absent {
		if s == section {
			return name
		}
	}
	return ""
}

// allRows are all rows, in the order in which they run.
func allRows() []row {
	rows := before()
	for _, s := range scenes() {
		rows = append(rows, s.rows...)
	}
	return append(rows, notInitialised("after C_Finalize")...)
}

// bySection compares sections: those of v3.1 come first, in their order.
func bySection(a, b string) int {
	key := func(s string) (k []int) {
		s, new := strings.CutPrefix(s, "v3.2 ")
		for n := range strings.SplitSeq(s, ".") {
			i, err := strconv.Atoi(n)
			if err != nil {
				panic("section " + s)
			}
			k = append(k, i)
		}
		if new {
			return append([]int{1}, k...)
		}
		return append([]int{0}, k...)
	}
	return slices.Compare(key(a), key(b))
}

// written is what docs/conformance.md has to say.
func written(t *testing.T) string {
	type line struct {
		rule string
		want rv
	}
	rows := allRows()
	lines := map[string][]line{}
	count := map[string]map[line]int{}
	for _, r := range rows {
		l := line{r.rule, r.want}
		if count[r.section] == nil {
			count[r.section] = map[line]int{}
		}
		if count[r.section][l] == 0 {
			lines[r.section] = append(lines[r.section], l)
		}
		count[r.section][l]++
	}
	var sections []string
	for s := range lines {
		if title(s) == "" {
			t.Errorf("section %s has no title", s)
		}
		sections = append(sections, s)
	}
	slices.SortFunc(sections, bySection)
	var b strings.Builder
	fmt.Fprintf(&b, preface, len(rows))
	for _, s := range sections {
		fmt.Fprintf(&b, "\n## %s %s\n\n| Rule | Code | Rows |\n|---|---|---|\n", s, title(s))
		for _, l := range lines[s] {
			fmt.Fprintf(&b, "| %s | `%v` | %d |\n", strings.ReplaceAll(l.rule, "|", "\\|"), l.want, count[s][l])
		}
	}
	return b.String()
}

// TestDocument compares docs/conformance.md with the table.
func TestDocument(t *testing.T) {
	text := written(t)
	if *update {
		if err := os.WriteFile(document, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	old, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	if string(old) != text {
		t.Errorf("%s is out of date; go test ./test/conformance -run TestDocument -update writes it", document)
	}
}
