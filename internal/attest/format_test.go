package attest_test

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crypto/x509"

	"github.com/InterCooperative-Network/icn-p11/internal/attest"
	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

var record = flag.Bool("record", false, "record the files of testdata anew")

// recorded are files of version 1: evidence of two machines, each with a
// challenge, what the verifier keeps of it, the response, and the maker's
// certificates.
var recorded = []string{"ecc", "rsa-bound"}

func recordedFile(kind, name string) string { return filepath.Join("testdata", "v1-"+kind+"-"+name) }

func read(t testing.TB, kind, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(recordedFile(kind, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// recordAnew makes the files of testdata.
func recordAnew(t *testing.T) {
	t.Helper()
	for _, kind := range recorded {
		maker := swtpmtest.NewMaker(t)
		m := newMachine(t, maker.Start(), sealstore.SealOptions{})
		if kind == "rsa-bound" {
			m.swtpm.Undefine(swtpmtest.CertificateECC)
			m.swtpm.Extend(7, bytes.Repeat([]byte{7}, 32))
			m.reseal(sealstore.SealOptions{Binding: m.binding(), Movable: true})
		}
		evidence := encode(t, m.evidence(recordedNonce))
		c, state, err := attest.NewChallenge(evidence, newNonce(), tpm.Credential)
		if err != nil {
			t.Fatal(err)
		}
		r, err := m.respond(c)
		if err != nil {
			t.Fatal(err)
		}
		ca, err := os.ReadFile(maker.CA())
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{
			"evidence.json": evidence, "challenge.json": encode(t, c), "state.json": encode(t, state), "response.json": encode(t, r), "ca.pem": ca,
		} {
			if err := os.WriteFile(recordedFile(kind, name), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

var recordedNonce = []byte("a nonce of 32 bytes, no more....")

// recordedPolicy is one under which the recorded evidence passes, at any time.
func recordedPolicy(t testing.TB, kind string) attest.Policy {
	t.Helper()
	p := attest.Policy{Nonce: recordedNonce, Now: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}
	for rest := read(t, kind, "ca.pem"); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		p.CA = append(p.CA, c)
	}
	var err error
	if p.State, err = attest.ParseState(read(t, kind, "state.json")); err != nil {
		t.Fatal(err)
	}
	if p.Response, err = attest.ParseResponse(read(t, kind, "response.json")); err != nil {
		t.Fatal(err)
	}
	return p
}

// What version 1 has written stays readable, and proves what it proved.
func TestRecorded(t *testing.T) {
	if *record {
		recordAnew(t)
	}
	for kind, open := range map[string]string{"ecc": "did pcr-expected seal-bound", "rsa-bound": "did pcr-expected seal-fixed"} {
		t.Run(kind, func(t *testing.T) {
			data := read(t, kind, "evidence.json")
			r := attest.Verify(data, recordedPolicy(t, kind))
			want(t, r, map[attest.Result]string{attest.NotProved: never + open})
			if r.Stated == nil || len(r.Stated.PCRs) != 2 || !strings.HasPrefix(r.Stated.DID, did.Prefix) || len(r.Stated.Parent) != 34 {
				t.Errorf("%+v", r.Stated)
			}
			if _, err := attest.ParseChallenge(read(t, kind, "challenge.json")); err != nil {
				t.Error(err)
			}
			// White space does not matter.
			var compact bytes.Buffer
			if err := json.Compact(&compact, data); err != nil {
				t.Fatal(err)
			}
			want(t, attest.Verify(compact.Bytes(), recordedPolicy(t, kind)), map[attest.Result]string{attest.NotProved: never + open})
		})
	}
}

// There is one text for each content.
func TestStrictText(t *testing.T) {
	good := string(read(t, "ecc", "evidence.json"))
	policy := recordedPolicy(t, "ecc")
	nonce := `"nonce": "61`
	for what, bad := range map[string]string{
		"nothing":                   "",
		"no object":                 "[]",
		"null":                      "null",
		"cut":                       good[:len(good)-3],
		"something behind it":       good + "{}",
		"twice":                     good + good,
		"an unknown member":         strings.Replace(good, `"version": 1,`, `"version": 1, "extra": 1,`, 1),
		"a member twice":            strings.Replace(good, `"version": 1,`, `"version": 1, "version": 1,`, 1),
		"another case":              strings.Replace(good, `"version"`, `"Version"`, 1),
		"another order":             strings.Replace(strings.Replace(good, `"version": 1,`, "", 1), `"type"`, `"version": 1, "type"`, 1),
		"another version":           strings.Replace(good, `"version": 1`, `"version": 2`, 1),
		"version as text":           strings.Replace(good, `"version": 1`, `"version": "1"`, 1),
		"another number's text":     strings.Replace(good, `"version": 1`, `"version": 1.0`, 1),
		"another type":              strings.Replace(good, `attestation evidence`, `attestation response`, 1),
		"upper-case digits":         strings.Replace(good, nonce, `"nonce": "6D`, 1),
		"an odd digit":              strings.Replace(good, nonce, `"nonce": "1`, 1),
		"an escaped character":      strings.Replace(good, nonce, `"nonce": "\u00361`, 1),
		"no certificates but null":  replaceList(good, "null"),
		"an empty certificate":      replaceList(good, `[""]`),
		"too many certificates":     replaceList(good, "["+strings.Repeat(`"AAAA",`, 16)+`"AAAA"]`),
		"an empty approver":         strings.Replace(good, `"data":`, `"approver": "", "data":`, 1),
		"an end of line in base64":  strings.Replace(good, `"attestation_key": "`, `"attestation_key": "\n`, 1),
		"base64 without its filler": strings.Replace(good, `=="`, `"`, 1),
		"too long":                  good + strings.Repeat(" ", attest.MaxFile),
		"no UTF-8":                  strings.Replace(good, `did:icn:`, "did:icn:\xff", 1),
	} {
		if bad == good {
			t.Fatalf("%s: nothing was changed", what)
		}
		r := attest.Verify([]byte(bad), policy)
		if p, ok := r.Point("evidence"); r.OK || !ok || p.Result != attest.Failed || len(r.Points) != 1 || r.Stated != nil {
			t.Errorf("%s: %+v", what, r)
		}
	}
	for kind, parse := range map[string]func([]byte) error{
		"challenge.json": func(b []byte) error { _, err := attest.ParseChallenge(b); return err },
		"state.json":     func(b []byte) error { _, err := attest.ParseState(b); return err },
		"response.json":  func(b []byte) error { _, err := attest.ParseResponse(b); return err },
	} {
		data := read(t, "ecc", kind)
		if err := parse(data); err != nil {
			t.Error(err)
		}
		for _, other := range []string{"challenge.json", "state.json", "response.json", "evidence.json"} {
			if other != kind {
				if err := parse(read(t, "ecc", other)); err == nil {
					t.Errorf("%s is taken for %s", other, kind)
				}
			}
		}
		if err := parse(append(data, data...)); err == nil {
			t.Errorf("%s twice is taken", kind)
		}
		if err := parse(bytes.Replace(data, []byte(`"version": 1`), []byte(`"version": 2`), 1)); err == nil {
			t.Errorf("%s of version 2 is taken", kind)
		}
	}
}

// replaceList puts other text in the place of the certificates.
func replaceList(s, list string) string {
	before, rest, _ := strings.Cut(s, `"certificates": [`)
	_, after, _ := strings.Cut(rest, "]")
	return before + `"certificates": ` + list + after
}

func TestNonceSizes(t *testing.T) {
	for n, good := range map[int]bool{0: false, 15: false, 16: true, 32: true, 33: false} {
		if err := attest.CheckNonce(make([]byte, n)); (err == nil) != good {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// FuzzVerify: whatever a file says, checking it ends without a panic, what is
// read is written again as the same text, and nothing but the recorded
// evidence passes.
func FuzzVerify(f *testing.F) {
	var good [][]byte
	for _, kind := range recorded {
		data := read(f, kind, "evidence.json")
		f.Add(data)
		good = append(good, compacted(data))
	}
	f.Add([]byte(`{"type":"icn-p11 attestation evidence","version":1}`))
	policy := recordedPolicy(f, "ecc")
	policy.State, policy.Response = nil, nil
	f.Fuzz(func(t *testing.T, data []byte) {
		r := attest.Verify(data, policy)
		if r.Stated == nil {
			if r.OK {
				t.Error("no evidence, and all is well")
			}
			return
		}
		e := &attest.Evidence{}
		if err := reparse(data, e); err != nil {
			t.Fatal(err)
		}
		text := compacted(data)
		if !bytes.Equal(compacted(encode(t, e)), text) {
			t.Error("it is read, but written in another way")
		}
		if p, _ := r.Point("identity-signature"); p.Result == attest.Proved && !bytes.Equal(text, good[0]) && !bytes.Equal(text, good[1]) {
			t.Errorf("passes: %s", data)
		}
		if _, _, err := attest.NewChallenge(data, make([]byte, attest.SecretSize), tpm.Credential); err != nil && r.OK {
			t.Error(err)
		}
	})
}

// FuzzChallengeFiles feeds the readers of the other files.
func FuzzChallengeFiles(f *testing.F) {
	for _, name := range []string{"challenge.json", "state.json", "response.json"} {
		f.Add(read(f, "ecc", name))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		same := func(v any, err error) {
			if err == nil && !bytes.Equal(compacted(encode(t, v)), compacted(data)) {
				t.Errorf("read, but written in another way: %s", data)
			}
		}
		c, err := attest.ParseChallenge(data)
		same(c, err)
		s, err := attest.ParseState(data)
		same(s, err)
		r, err := attest.ParseResponse(data)
		same(r, err)
	})
}

func compacted(data []byte) []byte {
	var b bytes.Buffer
	json.Compact(&b, data)
	return b.Bytes()
}

// FuzzFields puts anything in the place of one field, where the text's form
// does not get in the way: of structures, keys and certificates.
func FuzzFields(f *testing.F) {
	fields := func(e *attest.Evidence) []*[]byte {
		return []*[]byte{
			&e.Endorsement.Public, &e.Endorsement.Certificates[0], &e.Key, &e.Quote.Statement, &e.Quote.Signature,
			&e.Creation.Seal, &e.Creation.Data, &e.Creation.Approver, &e.Creation.Statement, &e.Creation.Signature, &e.Signature,
		}
	}
	good := map[bool]*attest.Evidence{}
	for i, kind := range recorded {
		e := &attest.Evidence{}
		if err := reparse(read(f, kind, "evidence.json"), e); err != nil {
			f.Fatal(err)
		}
		good[i == 1] = e
		for n, field := range fields(e) {
			f.Add(i == 1, n, *field)
		}
	}
	policies := map[bool]attest.Policy{false: recordedPolicy(f, recorded[0]), true: recordedPolicy(f, recorded[1])}
	f.Fuzz(func(t *testing.T, rsa bool, n int, data []byte) {
		e := again(t, good[rsa])
		all := fields(e)
		if n < 0 || n >= len(all) || bytes.Equal(*all[n], data) {
			return
		}
		*all[n] = data
		text := encode(t, e)
		if r := attest.Verify(text, policies[rsa]); r.OK {
			t.Errorf("passes with field %d: %x", n, data)
		}
		attest.NewChallenge(text, make([]byte, attest.SecretSize), tpm.Credential)
	})
}
