package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// Tokens that applications made with C_InitToken: labels may repeat, hold
// anything, and there need be no user PIN and no key.
func TestOthersTokens(t *testing.T) {
	tpm := swtpmtest.Start(t)
	dir := t.TempDir()
	conf := filepath.Join(dir, "conf")
	t.Setenv("ICN_P11_CONF", conf)
	t.Setenv("A_PIN", "12345678")
	if err := writeConf(conf, tpm.Device(), filepath.Join(dir, "store")); err != nil {
		t.Fatal(err)
	}
	a := &app{out: &bytes.Buffer{}, err: &bytes.Buffer{}}
	p, err := a.open()
	if err != nil {
		t.Fatal(err)
	}
	var serials []string
	for _, label := range []string{"twin", "twin", "\x1b[31mred"} {
		info, err := p.store.Create(sealstore.InitParams{Label: label, SOPIN: []byte("12345678")})
		if err != nil {
			t.Fatal(err)
		}
		serials = append(serials, info.Serial)
	}
	p.tpm.Release()

	for _, c := range []struct {
		args           string
		status         int
		stdout, stderr []string
	}{
		{"did twin", exitFailed, nil, []string{"2 tokens are called twin", serials[0], serials[1]}},
		{"did " + serials[0], exitFailed, nil, []string{"no identity key: token " + serials[0] + " holds no Ed25519 public key"}},
		{"did " + strings.ToUpper(serials[0]), exitFailed, nil, []string{serials[0]}},
		{"pin " + serials[1] + " --pin-source env:A_PIN --new-pin-source env:A_PIN", exitFailed, nil, []string{"the user PIN is not set", "--unblock"}},
		{"list", exitOK, []string{serials[0] + "  -    user PIN not set\n", `"\x1b[31mred"`}, nil},
		{"list --json", exitOK, []string{`"label": "\u001b[31mred"`}, nil},
		{"show " + serials[2], exitOK, []string{`"\x1b[31mred"`, "User PIN       not set"}, nil},
		{"doctor", exitOK, []string{"warn  token twin: no identity key"}, nil},
		{"pin " + serials[1] + " --unblock --so-pin-source env:A_PIN --new-pin-source env:A_PIN", exitOK, nil, []string{"The user PIN of token twin is set"}},
		{"show " + serials[1], exitOK, []string{"State          ready"}, nil},
	} {
		var stdout, stderr bytes.Buffer
		if got := run(strings.Fields(c.args), &stdout, &stderr); got != c.status {
			t.Errorf("%s: status %d, want %d", c.args, got, c.status)
		}
		for _, want := range c.stdout {
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("%s: no %q in\n%s", c.args, want, &stdout)
			}
		}
		for _, want := range c.stderr {
			if !strings.Contains(stderr.String(), want) {
				t.Errorf("%s: no %q in\n%s", c.args, want, &stderr)
			}
		}
		if strings.ContainsRune(stdout.String()+stderr.String(), '\x1b') {
			t.Errorf("%s: a control character reaches the terminal", c.args)
		}
	}
}

// Root may use another user's store, and is told why it cannot change it.
func TestAnothersStore(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving files away needs root")
	}
	tpm := swtpmtest.Start(t)
	dir := t.TempDir()
	conf, store := filepath.Join(dir, "conf"), filepath.Join(dir, "store")
	t.Setenv("ICN_P11_CONF", conf)
	t.Setenv("A_PIN", "12345678")
	if err := writeConf(conf, tpm.Device(), store); err != nil {
		t.Fatal(err)
	}
	command := func(args string, status int, want string) {
		t.Helper()
		var out bytes.Buffer
		if got := run(strings.Fields(args), &out, &out); got != status || !strings.Contains(out.String(), want) {
			t.Errorf("%s: status %d, and not %q:\n%s", args, got, want, &out)
		}
	}
	command("init --label theirs --pin-source env:A_PIN --so-pin-source env:A_PIN", exitOK, "did:icn:")
	err := filepath.WalkDir(store, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, 65534, 65534)
	})
	if err != nil {
		t.Fatal(err)
	}
	command("list", exitOK, " ready")
	command("doctor", exitOK, "ok    store: "+store+" belongs to nobody: tokens can be used, and changed by nobody alone")
	command("pin theirs", exitFailed, "the store cannot be written by root: it belongs to nobody, who could not use what root makes there: run this as nobody")
	if err := os.Lchown(filepath.Join(store, "lock"), 0, 0); err != nil {
		t.Fatal(err)
	}
	command("doctor", exitFailed, "belongs to another user than nobody, who has the store: "+filepath.Join(store, "lock"))
}

// show takes keys of every kind, and gives only those of Ed25519 a DID.
func TestShowOtherKeys(t *testing.T) {
	m := newMachine(t, swtpmtest.Start(t).Device())
	m.run(append([]string{"init", "--label", "node"}, pins...)...)
	before := m.run("show", "node", "--json")
	x25519, p384 := []byte{0x06, 0x03, 0x2b, 0x65, 0x6e}, []byte{0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22}
	m.inside(func(mod *module, s p11.SessionHandle) {
		stored := p11.Attribute{Type: p11.CKA_TOKEN, Value: []byte{1}}
		label := p11.Attribute{Type: p11.CKA_LABEL, Value: []byte("other")}
		for typ, params := range map[p11.MechanismType][]byte{p11.CKM_EC_MONTGOMERY_KEY_PAIR_GEN: x25519, p11.CKM_EC_KEY_PAIR_GEN: p384} {
			if _, _, err := mod.GenerateKeyPair(s, p11.Mechanism{Type: typ},
				[]p11.Attribute{stored, label, {Type: p11.CKA_EC_PARAMS, Value: params}}, []p11.Attribute{stored, label}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := mod.GenerateKey(s, p11.Mechanism{Type: p11.CKM_AES_KEY_GEN},
			[]p11.Attribute{stored, label, {Type: p11.CKA_PRIVATE, Value: []byte{0}}, {Type: p11.CKA_VALUE_LEN, Value: ulong(16)}}); err != nil {
			t.Fatal(err)
		}
	})
	shown := m.run("show", "node", "--json")
	if n, want := strings.Count(shown, `"did"`), strings.Count(before, `"did"`); n != want {
		t.Errorf("%d DIDs, not %d: %s", n, want, shown)
	}
	if n := strings.Count(m.run("show", "node"), "public key other, ID "); n != 2 {
		t.Errorf("%d public keys are shown: %s", n, shown)
	}
	if !strings.Contains(shown, `"class": "secret key"`) {
		t.Errorf("no secret key: %s", shown)
	}
}
