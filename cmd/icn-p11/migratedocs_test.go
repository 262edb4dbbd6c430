package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// step of a document: what is typed on one of two machines.
var machineBlock = regexp.MustCompile("(?ms)^```sh (source|target)\n(.*?)^```$")

// TestMigrationDocument does what docs/migration.md tells, on two machines that
// share a directory in the place of whatever carries their files.
func TestMigrationDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/migration.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := machineBlock.FindAllStringSubmatch(string(text), -1)
	if all := strings.Count(string(text), "```sh"); len(blocks) != all || all < 6 {
		t.Fatalf("%d of %d blocks are of a machine", len(blocks), all)
	}
	m := newMover(t)
	bin := filepath.Join(m.dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The test binary is the command when it is called so (TestMain).
	if err := os.Symlink(exe, filepath.Join(bin, "icn-p11")); err != nil {
		t.Fatal(err)
	}
	for name, pin := range map[string]string{"user.pin": "user-1234", "so.pin": "so-1234", "new-user.pin": "user-5678", "new-so.pin": "so-5678"} {
		if err := os.WriteFile(m.path(name), []byte(pin+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := strings.TrimSpace(m.must("from", append([]string{"init", "--label=node", "--recoverable"}, withPINs...)...))
	for _, b := range blocks {
		machine := map[string]string{"source": "from", "target": "to"}[b[1]]
		cmd := exec.Command("sh", "-eu", "-c", b[2])
		cmd.Dir = m.dir
		cmd.Env = append(os.Environ(), "ICN_P11_CONF="+m.path(machine+".conf"), "PATH="+bin+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("on the %s: %v\n%s%s", b[1], err, b[2], out)
		}
		t.Logf("on the %s:\n%s%s", b[1], b[2], out)
	}
	if got := strings.TrimSpace(m.must("to", "did", "node")); got != want {
		t.Errorf("the target has %q, not %q", got, want)
	}
	if _, err := m.do("from", "did", "node"); err == nil {
		t.Error("the source still has the token")
	}
	for _, machine := range []string{"from", "to"} {
		if left := m.must(machine, "migrate", "list"); left != "" {
			t.Errorf("left behind: %s", left)
		}
	}
}
