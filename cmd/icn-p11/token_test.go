package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
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
