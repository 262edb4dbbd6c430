//go:build !race

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// killable are the system calls that change files, or ask the TPM.
const killable = "sendmsg,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,fchmod,fchmodat"

// signature is that of a fixed message, by the identity on one machine; "" if it
// is not there.
func (m *mover) signature(machine string) string {
	m.t.Helper()
	sig, err := m.do(machine, "sign", "node", "message", "--format=raw", "--pin-source=env:USER_PIN")
	if err != nil && !strings.Contains(err.Error(), `no token "node"`) {
		m.t.Error(err)
	}
	return sig
}

// step is one of a move, with what must hold when it was interrupted and
// repeated.
type step struct {
	name, machine string
	args          []string
	after         func(m *mover) // once it has been done
}

func (s step) trace(m *mover, inject ...string) (out string, log []byte) {
	m.t.Helper()
	trace := filepath.Join(m.t.TempDir(), "trace")
	cmd := m.command(s.machine, s.args...)
	args := append([]string{"strace", "-f", "-qq", "-o", trace, "-e", "trace=" + killable}, inject...)
	strace, err := exec.LookPath("strace")
	if err != nil {
		m.t.Fatalf("%v (Debian package strace)", err)
	}
	cmd.Args = append(args, cmd.Path)
	cmd.Path = strace
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if !strings.HasPrefix(stdout.String(), "begin\n") || strings.Contains(stderr.String(), "panic") || err != nil && len(inject) == 0 {
		m.t.Fatalf("%s %v: %v: %s%s", s.name, inject, err, &stdout, &stderr)
	}
	log, err = os.ReadFile(trace)
	if err != nil {
		m.t.Fatal(err)
	}
	return stderr.String(), log
}

var killableCall = regexp.MustCompile(`^\d+ +(\w+)\(`)

// positions are the system calls of a step: for each, its name and which one of
// that name it is in its thread.
func (s step) positions(m *mover) (all []string) {
	m.t.Helper()
	_, log := s.trace(m)
	seen := map[string]int{}
	thread := ""
	for line := range strings.Lines(string(log)) {
		call := killableCall.FindStringSubmatch(line)
		if call == nil {
			continue
		}
		tid, _, _ := strings.Cut(line, " ")
		seen[tid+call[1]]++
		if strings.Contains(line, `"begin\n"`) {
			thread = tid
			continue
		}
		if tid == thread {
			all = append(all, fmt.Sprintf("%s:when=%d", call[1], seen[tid+call[1]]))
		}
	}
	return all
}

// sample takes some of the positions: all with ICN_P11_LONG. What changes files
// is rarer than what asks the TPM, and matters more, most of all at the end.
func sample(all []string) []string {
	if os.Getenv("ICN_P11_LONG") != "" {
		return all
	}
	var some []string
	asks, changes := 0, 0
	for i, at := range all {
		if strings.HasPrefix(at, "sendmsg:") {
			if asks%30 == 14 {
				some = append(some, at)
			}
			asks++
			continue
		}
		if changes%6 == 0 || i >= len(all)-6 {
			some = append(some, at)
		}
		changes++
	}
	return some
}

// TestMigrationFaults kills each step of a move at its system calls, which the
// commands to the TPM are among: the identity signs on at least one machine
// whenever that happens, and the step can be repeated.
func TestMigrationFaults(t *testing.T) {
	m := newMover(t)
	m.must("from", append([]string{"init", "--label=node", "--recoverable"}, withPINs...)...)
	m.must("from", "key", "generate", "node", "--label=second", "--pin-source=env:USER_PIN")
	want := m.signature("from")
	if len(want) != 64 {
		t.Fatalf("a signature of %d bytes", len(want))
	}
	fingerprint := strings.TrimSpace(m.must("to", "migrate", "offer", "--out=offer"))

	send := append([]string{"migrate", "send", "node", "--to=offer", "--out=parcel", "--move", "--fingerprint=" + fingerprint}, withPINs...)
	accept := append([]string{"migrate", "accept", "parcel"}, withPINs...)
	finish := []string{"migrate", "finish", "node", "parcel.proof", "--yes", "--so-pin-source=env:SO_PIN"}
	accepted := func(m *mover) {
		m.t.Helper()
		if got := m.signature("to"); got != want {
			m.t.Errorf("the identity signs otherwise at the target: %x", got)
		}
		m.must("from", "migrate", "finish", "node", "parcel.proof", "--dry-run")
	}
	for _, s := range []step{
		{"send", "from", send, func(m *mover) {
			m.must("to", accept...)
			accepted(m)
		}},
		{"accept", "to", accept, accepted},
		{"finish", "from", finish, func(m *mover) {
			if m.signature("from") != "" {
				m.t.Error("the source signs after the move")
			}
		}},
	} {
		t.Run(s.name, func(t *testing.T) {
			all := s.positions(m.clone(t))
			if len(all) < 12 {
				t.Fatalf("only %d system calls: %v", len(all), all)
			}
			some := sample(all)
			for _, at := range some {
				t.Run(at, func(t *testing.T) { s.killed(m.clone(t), at, want) })
			}
			t.Logf("%d of %d system calls", len(some), len(all))
		})
		m.t = t
		m.must(s.machine, s.args...)
	}
}

// killed kills the step at a system call, and repeats it.
func (s step) killed(m *mover, at, want string) {
	name, when, _ := strings.Cut(at, ":")
	out, _ := s.trace(m, "-e", fmt.Sprintf("inject=%s:signal=SIGKILL:%s", name, when))
	signs := []string{m.signature("from"), m.signature("to")}
	if !slices.Contains(signs, want) {
		m.t.Fatalf("the identity signs nowhere: %x; %s", signs, out)
	}
	for _, sig := range signs {
		if sig != "" && sig != want {
			m.t.Errorf("the identity signs otherwise: %x", sig)
		}
	}
	// What had come to its end is not repeated.
	if _, err := m.do(s.machine, s.args...); err != nil && !s.done(m) {
		m.t.Errorf("repeated: %v", err)
	}
	s.after(m)
}

// done tells whether a step that was killed had done everything.
func (s step) done(m *mover) bool {
	switch s.name {
	case "send":
		_, err := os.Stat(m.path("parcel"))
		return err == nil
	case "accept":
		out, err := m.do("to", "migrate", "list")
		_, perr := os.Stat(m.path("parcel.proof"))
		return err == nil && out == "" && perr == nil
	}
	return m.signature("from") == ""
}
