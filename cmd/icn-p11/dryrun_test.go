package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"github.com/spf13/pflag"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// bench is a software TPM and a store, with a configuration that names both, in
// a working directory of its own.
type bench struct {
	t     *testing.T
	tpm   *swtpmtest.TPM
	store string
	conf  string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, tpm: swtpmtest.Start(t)}
	dir := t.TempDir()
	t.Chdir(dir)
	b.store, b.conf = filepath.Join(dir, "store"), filepath.Join(dir, "icn-p11.conf")
	t.Setenv("ICN_P11_CONF", b.conf)
	t.Setenv("USER_PIN", "user-1234")
	t.Setenv("SO_PIN", "so-1234")
	if err := writeConf(b.conf, b.tpm.Device(), b.store); err != nil {
		t.Fatal(err)
	}
	return b
}

// run runs the command. PINs come from the variables USER_PIN and SO_PIN, unless
// args say something else about PINs.
func (b *bench) run(args ...string) (status int, stdout, stderr string) {
	b.t.Helper()
	var out, err bytes.Buffer
	status = run(b.withPINs(args), &out, &err)
	return status, out.String(), err.String()
}

func (b *bench) withPINs(args []string) []string {
	c, _, err := (&app{out: io.Discard, err: io.Discard}).root().Find(args)
	if err != nil {
		b.t.Fatalf("%s: %v", args, err)
	}
	if slices.ContainsFunc(args, func(a string) bool { return strings.HasSuffix(a, "pin-source") || a == "--no-pin" }) {
		return args
	}
	args = slices.Clone(args)
	for flag, source := range map[string]string{"pin-source": "env:USER_PIN", "so-pin-source": "env:SO_PIN"} {
		if c.Flags().Lookup(flag) != nil {
			args = append(args, "--"+flag, source)
		}
	}
	return args
}

// nonce is what evidence on the bench is for.
const nonce = "00112233445566778899aabbccddeeff"

// evidence has a token attested, which it switches on.
func (b *bench) evidence(token string) string {
	b.t.Helper()
	conf, err := os.ReadFile(b.conf)
	if err == nil {
		err = os.WriteFile(b.conf, append(conf, "attestation = true\n"...), 0o600)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	status, stdout, stderr := b.run("attest", token, "--nonce", nonce)
	if status != exitOK {
		b.t.Fatal(stderr)
	}
	return stdout
}

// must runs commands, one a line, that succeed.
func (b *bench) must(commands string) {
	b.t.Helper()
	for line := range strings.Lines(commands) {
		if args := strings.Fields(line); len(args) > 0 {
			if status, _, stderr := b.run(args...); status != exitOK {
				b.t.Fatalf("icn-p11 %s: status %d, %s", strings.Join(args, " "), status, stderr)
			}
		}
	}
}

// snapshot is everything in the store, and what a TPM keeps: the handles in
// use and the counter of wrong PINs.
func (b *bench) snapshot() string {
	b.t.Helper()
	var s strings.Builder
	err := filepath.WalkDir(b.store, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		var data []byte
		if !e.IsDir() {
			data, err = os.ReadFile(path)
		}
		fmt.Fprintf(&s, "%s %s %s %d %x\n", path, st.Mode(), st.ModTime(), st.Size(), sha256.Sum256(data))
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	c, err := linuxudstpm.Open(b.tpm.Path())
	if err != nil {
		b.t.Fatal(err)
	}
	defer c.Close()
	for _, first := range []uint32{0x01000000, 0x02000000, 0x03000000, 0x80000000, 0x81000000} {
		fmt.Fprintf(&s, "handles from %#x: %v\n", first, handles(b.t, c, first))
	}
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTLockoutCounter), PropertyCount: 1}.Execute(c)
	if err != nil {
		b.t.Fatal(err)
	}
	p, err := r.CapabilityData.Data.TPMProperties()
	if err != nil {
		b.t.Fatal(err)
	}
	fmt.Fprintf(&s, "wrong PINs: %v\n", p.TPMProperty)
	return s.String()
}

func handles(t *testing.T, c transport.TPM, first uint32) []tpm2.TPMHandle {
	t.Helper()
	r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	h, err := r.CapabilityData.Data.Handles()
	if err != nil {
		t.Fatal(err)
	}
	return h.Handle
}

// dryRuns has a command line for each verb that changes something, on the
// bench that TestDryRunsChangeNothing makes ready. A verb that is new here
// needs one.
var dryRuns = map[string]string{
	"init":             "--label third",
	"pin":              "node --pin-source env:NOT_SET --new-pin-source env:NOT_SET",
	"sign":             "node message",
	"import":           "node seed --label imported",
	"export-icn-blob":  "bound --out blob",
	"key generate":     "node --label second",
	"key rename":       "node icn-identity other",
	"key delete":       "node icn-identity",
	"cert request":     "node --subject CN=node",
	"cert import":      "node certificate",
	"token rename":     "node other",
	"token delete":     "node",
	"pcr bind":         "node",
	"pcr unbind":       "bound",
	"pcr rebind":       "bound --predict 7=65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068",
	"pcr confirm":      "bound",
	"migrate offer":    "--out new.offer",
	"migrate send":     "leaving --to there.offer --out new.parcel",
	"migrate accept":   "here.parcel",
	"migrate finish":   "leaving there.parcel.proof",
	"migrate cancel":   "leaving",
	"migrate withdraw": "here.offer",
	"backup create":    "node --out new.backup --passphrase-source env:NOT_SET",
	"backup restore":   "lost.backup --passphrase-source env:PASSPHRASE",
	"srk persist":      "",
	"srk evict":        "",
	"lockout reset":    "",
	"attest challenge": "evidence --out challenge --state state",
}

// migrations makes, with another machine, what the dry runs of migrate need: a
// token that has arrived there, and one that was sent here.
func (b *bench) migrations() {
	b.t.Helper()
	away := filepath.Join(b.t.TempDir(), "conf")
	if err := writeConf(away, swtpmtest.Start(b.t).Device(), away+".store"); err != nil {
		b.t.Fatal(err)
	}
	there := func(commands string) {
		b.t.Helper()
		b.t.Setenv("ICN_P11_CONF", away)
		b.must(commands)
		b.t.Setenv("ICN_P11_CONF", b.conf)
	}
	to := func(file string) string {
		b.t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			b.t.Fatal(err)
		}
		return fmt.Sprintf(" --to %s --fingerprint %x", file, sha256.Sum256(text))
	}
	there(`
		init --label coming --recoverable
		migrate offer --out there.offer`)
	b.must(`
		init --label leaving --recoverable
		migrate offer --out here.offer
		migrate send leaving --move --out there.parcel` + to("there.offer"))
	there(`
		migrate accept there.parcel
		migrate send coming --out here.parcel` + to("here.offer"))
}

// A dry run asks for no PIN, reads none, and leaves store and TPM as they were.
func TestDryRunsChangeNothing(t *testing.T) {
	b := newBench(t)
	t.Setenv("PASSPHRASE", "correct horse battery staple")
	b.must(`
		init --label node
		init --label bound --recoverable
		init --label lost --recoverable
		backup create lost --out lost.backup --passphrase-source env:PASSPHRASE
		token delete lost --yes
		pcr bind bound`)
	status, certificate, stderr := b.run("cert", "request", "node", "--subject", "CN=node", "--self-signed")
	if status != exitOK {
		t.Fatal(stderr)
	}
	for name, data := range map[string]string{
		"message": "a message", "seed": strings.Repeat("s", 32), "certificate": certificate, "evidence": b.evidence("node"),
	} {
		if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.migrations()
	if status, _, _ := b.run("pin", "node", "--pin-source", "env:SO_PIN", "--new-pin-source", "env:SO_PIN"); status == exitOK {
		t.Fatal("a wrong PIN changes the PIN") // and so the counter is not 0
	}
	before := b.snapshot()
	all := verbs(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		c := all[name]
		if c.Flags().Lookup("dry-run") == nil {
			continue
		}
		more, ok := dryRuns[name]
		if !ok {
			t.Errorf("%s: dryRuns has no command line for it", name)
			continue
		}
		args := append(strings.Fields(name), strings.Fields(more)...)
		args = append(args, "--dry-run")
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if strings.HasSuffix(f.Name, "pin-source") && !strings.Contains(more, "pin-source") {
				args = append(args, "--"+f.Name, "env:NOT_SET")
			}
		})
		status, stdout, stderr := b.run(args...)
		if status != exitOK || !strings.HasPrefix(stderr, "Would: ") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: status %d, %q, %q", name, status, stdout, stderr)
		}
		status, stdout, stderr = b.run(append(args, "--json")...)
		if status != exitOK || stderr != "" || !json.Valid([]byte(stdout)) || !strings.Contains(stdout, `"dry_run": true`) {
			t.Errorf("%s --json: status %d, %q, %q", name, status, stdout, stderr)
		}
		if after := b.snapshot(); after != before {
			t.Fatalf("%s changed something:\n%s\nbefore:\n%s", name, after, before)
		}
	}
	for name := range dryRuns {
		if all[name] == nil {
			t.Errorf("there is no verb %s", name)
		}
	}
	if c, err := linuxudstpm.Open(b.tpm.Path()); err != nil || len(handles(t, c, 0x40000000)) == 0 {
		t.Errorf("the test sees no handles, %v", err)
	}
}

// A token whose user PIN was never set is sent, and its dry run says so.
func TestDryRunWithoutUserPIN(t *testing.T) {
	b := newBench(t)
	dev, err := tpm.New(tpm.Config{Device: b.tpm.Device(), KeyHandle: 0x81000001})
	if err != nil {
		t.Fatal(err)
	}
	_, err = sealstore.Open(b.store, dev, nil).Create(sealstore.InitParams{Label: "node", SOPIN: []byte(os.Getenv("SO_PIN")), Recoverable: true})
	dev.Close()
	if err != nil {
		t.Fatal(err)
	}
	there := filepath.Join(t.TempDir(), "conf")
	if err := writeConf(there, swtpmtest.Start(t).Device(), there+".store"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ICN_P11_CONF", there)
	_, fingerprint, _ := b.run("migrate", "offer", "--out", "offer")
	t.Setenv("ICN_P11_CONF", b.conf)
	args := []string{"migrate", "send", "node", "--to", "offer", "--out", "parcel", "--fingerprint", strings.TrimSpace(fingerprint)}
	if status, _, stderr := b.run(append(args, "--dry-run")...); status != exitOK || !strings.HasPrefix(stderr, "Would: ") {
		t.Errorf("status %d, %s", status, stderr)
	}
	if status, _, stderr := b.run(args...); status != exitOK {
		t.Errorf("not sent: status %d, %s", status, stderr)
	}
}
