package main

import (
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// fields adds the names of all fields in a document to seen. A JWK is not ours
// to describe.
func fields(v any, seen map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			seen[name] = true
			if name != "jwk" {
				fields(value, seen)
			}
		}
	case []any:
		for _, value := range v {
			fields(value, seen)
		}
	}
}

// one JSON document and nothing else.
func document(text string) (v any, err error) {
	d := json.NewDecoder(strings.NewReader(text))
	if err = d.Decode(&v); err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = more
		}
	}
	return v, err
}

// unseen are documented fields that this test cannot bring about.
var unseen = map[string][]string{
	"init":           {"event_log"},                              // not where the machine has a readable one
	"backup restore": {"event_log"},                              // the same
	"pcr show":       {"events_gone", "events_added"},            // script pcr has them
	"show":           {"moving", "offer", "srk_name", "started"}, // TestMigrationJSON has them
}

// elsewhere are verbs whose JSON other tests look at.
var elsewhere = []string{
	"agent", // TestAgentOfSystemd
	// TestMigrationJSON
	"migrate offer", "migrate send", "migrate accept", "migrate finish", "migrate cancel", "migrate withdraw", "migrate list",
}

// With --json, each verb prints one document, whose fields are those that the
// manual names.
func TestJSON(t *testing.T) {
	man := readManual(t)
	b := newBench(t)
	seen := map[string]map[string]bool{}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	do := func(want int, verb string, args ...string) map[string]any {
		t.Helper()
		status, stdout, stderr := b.run(append(append(strings.Fields(verb), args...), "--json")...)
		doc, err := document(stdout)
		if status != want || err != nil {
			t.Fatalf("%s %s: status %d, %v, %q, %q", verb, args, status, err, stdout, stderr)
		}
		if seen[verb] == nil {
			seen[verb] = map[string]bool{}
		}
		found := map[string]bool{}
		fields(doc, found)
		for name := range found {
			if name != "dry_run" && !(name == "error" && len(found) == 1) && !slices.Contains(man.json[verb], name) {
				t.Errorf("%s: the manual does not tell of %s", verb, name)
			}
		}
		maps.Copy(seen[verb], found)
		o, _ := doc.(map[string]any)
		return o
	}
	fail := func(status int, verb string, args ...string) {
		t.Helper()
		o := do(status, verb, args...)
		if text, ok := o["error"].(string); !ok || text == "" || len(o) != 1 {
			t.Errorf("%s %s: %v is not the failure", verb, args, o)
		}
	}
	write("message", "a message")
	write("seed", strings.Repeat("s", 32))

	text := "platform_binding = true\n"
	conf, err := os.ReadFile(b.conf)
	if err != nil {
		t.Fatal(err)
	}
	write(b.conf, string(conf)+text)
	do(exitOK, "init", "--label", "bound", "--recoverable")
	do(exitOK, "export-icn-blob", "bound", "--out", "blob")
	fail(exitFailed, "export-icn-blob", "bound", "--out", "blob")
	write(b.conf, string(conf))
	do(exitOK, "init", "--label", "adopted", "--import", "seed")
	did := do(exitOK, "init", "--label", "node")["did"].(string)
	fail(exitFailed, "init", "--label", "node")
	fail(exitUsage, "init", "--label", "")
	do(exitOK, "list")
	do(exitOK, "did", "node")
	fail(exitFailed, "did", "nobody")
	fail(exitUsage, "did")
	do(exitOK, "did resolve", did)
	fail(exitUsage, "did resolve", "did:icn:nonsense")
	do(exitOK, "pin", "node", "--pin-source", "env:USER_PIN", "--new-pin-source", "env:USER_PIN")
	fail(exitFailed, "pin", "node", "--pin-source", "env:NOT_SET")

	do(exitOK, "sign", "node", "message", "--out", "signature")
	do(exitOK, "sign", "node", "message")
	do(exitOK, "verify", "message", "--signature", "signature", "--did", did)
	write("other", "another message")
	do(exitFailed, "verify", "other", "--signature", "signature", "--did", did)
	fail(exitUsage, "verify", "message")

	do(exitOK, "import", "node", "seed", "--label", "imported")
	do(exitOK, "key generate", "node", "--label", "second")
	do(exitOK, "key list", "node")
	do(exitOK, "key show", "node", "imported")
	do(exitOK, "key export-public", "node")
	fail(exitUsage, "key export-public", "node", "--format", "pem")
	fail(exitFailed, "key export-public", "node", "nobody")
	do(exitOK, "key rename", "node", "second", "third")
	do(exitOK, "key delete", "node", "third", "--yes")
	do(exitOK, "cert request", "node", "--subject", "CN=node")
	certificate := do(exitOK, "cert request", "node", "--subject", "CN=node", "--self-signed")["pem"].(string)
	write("certificate", certificate)
	do(exitOK, "cert import", "node", "certificate")
	do(exitOK, "cert export", "node")
	do(exitOK, "show", "node")

	other := otherAgent(t)
	do(exitOK, "agent list", "--socket", other)
	do(exitOK, "agent sign", "message", "--socket", other)
	fail(exitFailed, "agent list", "--socket", "nowhere")
	fail(exitFailed, "agent sign", "nothing", "--socket", other)

	identity, recipient := offline(t)
	do(exitOK, "backup create", "bound", "--out", "bound.backup", "--recipient", recipient, "--force")
	fail(exitUsage, "backup create", "bound", "--out", "bound.backup")
	do(exitOK, "backup verify", "bound.backup", "--identity", identity)
	fail(exitFailed, "backup verify", "message", "--identity", identity)
	do(exitOK, "backup restore", "bound.backup", "--identity", identity, "--replace", "--yes")
	fail(exitFailed, "backup restore", "bound.backup", "--identity", identity)

	do(exitOK, "pcr show", "node")
	do(exitOK, "pcr bind", "node", "--event-log", "nowhere")
	do(exitOK, "pcr show", "node")
	do(exitOK, "pcr rebind", "node", "--event-log", "nowhere")
	do(exitOK, "pcr confirm", "node")
	do(exitOK, "pcr unbind", "node")
	b.tpm.Extend(7, make([]byte, 32))
	fail(exitFailed, "pcr confirm", "bound")
	do(exitOK, "pcr show", "bound", "--event-log", "nowhere")

	write("evidence", b.evidence("node"))
	do(exitOK, "attest", "node", "--nonce", nonce)
	b.must("pcr bind node --event-log nowhere")
	do(exitOK, "attest", "node", "--nonce", nonce) // with an approver
	b.must("pcr unbind node")
	fail(exitUsage, "attest", "node")
	do(exitOK, "attest verify", "evidence", "--nonce", nonce)
	do(exitFailed, "attest verify", "evidence", "--nonce", nonce+"00")
	fail(exitUsage, "attest verify", "evidence")
	do(exitOK, "attest challenge", "evidence", "--out", "challenge")
	do(exitOK, "attest challenge", "evidence", "--out", "challenge", "--state", "state", "--force")
	fail(exitFailed, "attest challenge", "message", "--out", "another")
	do(exitOK, "attest respond", "node", "challenge")
	fail(exitFailed, "attest respond", "bound", "challenge")

	do(exitOK, "srk persist")
	do(exitOK, "srk show")
	do(exitOK, "srk evict")
	do(exitOK, "lockout show")
	do(exitOK, "lockout reset")
	do(exitOK, "status", "node")
	do(exitOK, "metrics")
	fail(exitUsage, "metrics", "--out", "metrics")
	fail(exitFailed, "status", "nobody")
	do(exitFailed, "doctor", "--event-log", "nowhere") // PCR 7
	do(exitOK, "token rename", "node", "other")
	do(exitOK, "version")

	objects, err := filepath.Glob(filepath.Join(b.store, "tokens", "*", "objects", "*"))
	if err != nil || len(objects) == 0 {
		t.Fatalf("no objects, %v", err)
	}
	for _, o := range objects {
		write(o, "damaged")
	}
	do(exitOK, "show", "other")
	b.tpm.Stop()
	do(exitFailed, "show", "other")
	do(exitOK, "list")
	fail(exitFailed, "srk show")
	fail(exitFailed, "lockout show")
	do(exitFailed, "status", "other")
	do(exitOK, "metrics")
	b.tpm.Restart()
	do(exitOK, "token delete", "other", "--yes")

	for verb, names := range man.json {
		if seen[verb] == nil {
			if !slices.Contains(elsewhere, verb) {
				t.Errorf("%s: nothing here looks at its JSON", verb)
			}
			continue
		}
		for _, name := range names {
			if !seen[verb][name] && !slices.Contains(unseen[verb], name) {
				t.Errorf("%s: no document has the field %s of the manual", verb, name)
			}
		}
	}
}
