package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
)

// faultVariable has the test binary be the command, with these arguments, on
// one thread: strace counts system calls by thread.
const faultVariable = "ICN_P11_FAULT"

func init() {
	if args := os.Getenv(faultVariable); args != "" {
		runtime.LockOSThread()
		os.Stdout.WriteString("begin\n")
		os.Exit(run(strings.Split(args, "\n"), os.Stdout, os.Stderr))
	}
}

// mover is the two machines of a move, as they are between two steps of it.
type mover struct {
	t        *testing.T
	dir      string
	from, to *swtpmtest.TPM
}

func newMover(t *testing.T) *mover {
	m := &mover{t, filepath.Join(t.TempDir(), "m"), swtpmtest.Start(t), swtpmtest.Start(t)}
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.path("message"), []byte("what is signed"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.configure()
	return m
}

func (m *mover) path(name string) string { return filepath.Join(m.dir, name) }

func (m *mover) configure() {
	m.t.Helper()
	for name, chip := range map[string]*swtpmtest.TPM{"from": m.from, "to": m.to} {
		if err := writeConf(m.path(name+".conf"), chip.Device(), m.path(name+".store")); err != nil {
			m.t.Fatal(err)
		}
	}
}

// clone gives the machines with a copy of their stores and files.
func (m *mover) clone(t *testing.T) *mover {
	t.Helper()
	c := &mover{t, filepath.Join(t.TempDir(), "m"), m.from, m.to}
	// Modes matter, so that os.CopyFS is of no use.
	if out, err := exec.Command("cp", "-a", m.dir, c.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.configure()
	return c
}

// command is the command on one machine, with both PINs.
func (m *mover) command(machine string, args ...string) *exec.Cmd {
	m.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Dir = m.dir
	cmd.Env = append(os.Environ(), faultVariable+"="+strings.Join(args, "\n"), "ICN_P11_CONF="+m.path(machine+".conf"),
		"USER_PIN=user-1234", "SO_PIN=so-1234")
	return cmd
}

// do runs the command and gives what it printed.
func (m *mover) do(machine string, args ...string) (string, error) {
	m.t.Helper()
	var out, errs bytes.Buffer
	cmd := m.command(machine, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %s: %w: %s", machine, strings.Join(args, " "), err, &errs)
	}
	return strings.TrimPrefix(out.String(), "begin\n"), nil
}

func (m *mover) must(machine string, args ...string) string {
	m.t.Helper()
	out, err := m.do(machine, args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

var withPINs = []string{"--pin-source=env:USER_PIN", "--so-pin-source=env:SO_PIN"}

// With --json, the verbs of migrate print the fields that the manual names.
func TestMigrationJSON(t *testing.T) {
	m, man := newMover(t), readManual(t)
	seen := map[string]map[string]bool{}
	do := func(machine, verb string, args ...string) map[string]any {
		t.Helper()
		out := m.must(machine, append(append(strings.Fields(verb), args...), "--json")...)
		doc, err := document(out)
		if err != nil {
			t.Fatalf("%s: %v: %s", verb, err, out)
		}
		if seen[verb] == nil {
			seen[verb] = map[string]bool{}
		}
		found := map[string]bool{}
		fields(doc, found)
		for name := range found {
			seen[verb][name] = true
			if !slices.Contains(man.json[verb], name) {
				t.Errorf("%s: the manual does not tell of %s", verb, name)
			}
		}
		o, _ := doc.(map[string]any)
		return o
	}
	both := func(args ...string) []string { return append(args, withPINs...) }
	m.must("from", both("init", "--label=node", "--recoverable")...)
	send := func(to *any, out string) {
		t.Helper()
		do("from", "migrate send", both("node", "--to="+out+".offer", "--out="+out, "--move", fmt.Sprint("--fingerprint=", *to))...)
	}
	for _, out := range []string{"first", "second"} {
		offer := do("to", "migrate offer", "--out="+out+".offer")
		do("to", "migrate list")
		fingerprint := offer["fingerprint"]
		send(&fingerprint, out)
		do("from", "migrate list")
		if shown := do("from", "show", "node"); shown["moving"] == nil {
			t.Error("show does not tell of a move")
		}
		if out == "first" {
			do("from", "migrate cancel", "node")
			do("to", "migrate withdraw", "first.offer")
		}
	}
	do("to", "migrate accept", both("second")...)
	do("from", "migrate finish", "node", "second.proof", "--yes", "--so-pin-source=env:SO_PIN")
	for verb, names := range man.json {
		for _, name := range names {
			if strings.HasPrefix(verb, "migrate ") && !seen[verb][name] {
				t.Errorf("%s: no document has the field %s of the manual", verb, name)
			}
		}
	}
}
