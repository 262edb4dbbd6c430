package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
)

// documents are those whose commands TestDocuments runs, with what their
// machines have besides. test/interop has others, which need the installed
// module or a newer OpenSSL, and scripts those that need certified TPMs.
var documents = map[string]func(t *testing.T, home string, chip *swtpmtest.TPM){
	"usage.md":         nil,
	"recovery.md":      nil,
	"migration.md":     nil,
	"fleet.md":         nil,
	"observability.md": nil,
	"icn.md":           icnHome,
}

// A block of a document that is run. Besides what is marked sh, a document may
// have these comments on lines of their own, which no reader sees:
//
//	<!-- on NAME -->  what follows runs on another machine
//	<!-- compare -->  the next block, marked console, is run too: what stands
//	                  behind "$ " is, and the rest is what it prints, with "…"
//	                  for anything
//	<!-- run by X --> what follows, up to the next heading, has a test of its own
//
// A machine has a home directory with a configuration, and a TPM of its own.
// All work in one directory, as if files were carried from one to the other.
type block struct {
	line    int
	machine string
	lines   []string
	console bool
}

func blocks(text string) (all []block) {
	machine, compare, elsewhere := "machine", false, false
	var b *block
	for i, line := range strings.Split(text, "\n") {
		on := regexp.MustCompile(`^<!-- on (\w+) -->$`).FindStringSubmatch(line)
		switch {
		case b != nil && line == "```":
			if b.line > 0 && !elsewhere {
				all = append(all, *b)
			}
			b = nil
		case b != nil:
			b.lines = append(b.lines, line)
		case on != nil:
			machine = on[1]
		case strings.HasPrefix(line, "<!-- run by "):
			elsewhere = true
		case strings.HasPrefix(line, "## "):
			elsewhere = false
		case line == "<!-- compare -->":
			compare = true
		case line == "```sh":
			b = &block{line: i + 1, machine: machine}
		case line == "```console" && compare:
			b = &block{line: i + 1, machine: machine, console: true}
			compare = false
		case strings.HasPrefix(line, "```"):
			b = &block{} // not run
		}
	}
	return all
}

// printed is a command of a console block with what it shall print.
type printed struct {
	line    int
	command string
	want    []string
}

func (b *block) commands() (all []printed) {
	for i, line := range b.lines {
		last := len(all) - 1
		command, ok := strings.CutPrefix(line, "$ ")
		switch {
		case ok:
			all = append(all, printed{line: b.line + 1 + i, command: command})
		case last >= 0 && strings.HasSuffix(all[last].command, "\\"):
			all[last].command += "\n" + line
		case last >= 0:
			all[last].want = append(all[last].want, line)
		}
	}
	return all
}

// matches compares what a command has printed. Columns may have other widths.
func (p *printed) matches(got string) bool {
	words := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	pattern := strings.ReplaceAll(regexp.QuoteMeta(words(strings.Join(p.want, "\n"))), "…", ".*")
	return regexp.MustCompile("^" + pattern + "$").MatchString(words(got))
}

// script makes one script of all blocks. DIR/line tells how far it has come; what
// a compared command prints goes to DIR/LINE.
func script(all []block, dir string) (text string, compared []printed) {
	var s strings.Builder
	at := func(line int) { fmt.Fprintf(&s, "echo %d >%s/line\n", line, dir) }
	for _, b := range all {
		home := filepath.Join(dir, b.machine)
		fmt.Fprintf(&s, "export HOME=%s XDG_RUNTIME_DIR=%s\n", home, home)
		if !b.console {
			at(b.line)
			fmt.Fprintln(&s, strings.Join(b.lines, "\n"))
			continue
		}
		for _, p := range b.commands() {
			at(p.line)
			fmt.Fprintf(&s, "{ %s\n} >%s/%d 2>&1 || true\n", p.command, dir, p.line)
			compared = append(compared, p)
		}
	}
	return s.String(), compared
}

// Every command of the documents does what it is said to do.
func TestDocuments(t *testing.T) {
	for name, prepare := range documents {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile("../../docs/" + name)
			if err != nil {
				t.Fatal(err)
			}
			runDocument(t, string(text), prepare)
		})
	}
}

// runDocument runs a document in one shell, which ends with the first command
// that fails.
func runDocument(t *testing.T, text string, prepare func(t *testing.T, home string, chip *swtpmtest.TPM)) {
	all := blocks(text)
	if len(all) == 0 {
		t.Fatal("nothing to run")
	}
	dir := t.TempDir()
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		home := filepath.Join(dir, b.machine)
		if chip := makeMachine(t, home); chip != nil && prepare != nil {
			prepare(t, home, chip)
		}
	}
	lines, compared := script(all, dir)
	if err := runScript(t, work, lines); err != nil {
		t.Errorf("the block at line %s: %v", reached(t, dir), err)
	}
	for _, p := range compared {
		got, err := os.ReadFile(filepath.Join(dir, strconv.Itoa(p.line)))
		if err == nil && !p.matches(string(got)) {
			t.Errorf("line %d: %s prints\n%s", p.line, p.command, got)
		}
	}
}

// reached is the line of the last command that was begun.
func reached(t *testing.T, dir string) string {
	line, err := os.ReadFile(filepath.Join(dir, "line"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(line))
}

// makeMachine makes a home with a configuration and a TPM; nil if it is there.
func makeMachine(t *testing.T, home string) *swtpmtest.TPM {
	conf := filepath.Join(home, ".config", "icn", "icn-p11.conf")
	if _, err := os.Stat(conf); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(conf), 0o700); err != nil {
		t.Fatal(err)
	}
	chip := swtpmtest.Start(t)
	if err := writeConf(conf, chip.Device(), filepath.Join(home, ".local", "share", "icn", "p11")); err != nil {
		t.Fatal(err)
	}
	return chip
}

// icnHome is that of a node with ICN's own TPM backend: it has an identity that
// is sealed, and one in the clear.
func icnHome(t *testing.T, home string, chip *swtpmtest.TPM) {
	blobs := filepath.Join(home, ".local", "share", "icn", "tpm")
	if err := os.MkdirAll(blobs, 0o700); err != nil {
		t.Fatal(err)
	}
	w := &watched{t: t, chip: chip, dir: t.TempDir()}
	blob, plain, _ := w.foreign(newPIN())
	for from, to := range map[string]string{blob: "sealed-0x81000001.blob", plain: "sealed-0x81000002.blob"} {
		if err := os.Rename(from, filepath.Join(blobs, to)); err != nil {
			t.Fatal(err)
		}
	}
}

// runScript runs a script in a directory.
func runScript(t *testing.T, work, lines string) error {
	// Files, since a document may leave something running that keeps a pipe open.
	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-eu", "-c", lines)
	cmd.Dir, cmd.Stdout, cmd.Stderr = work, out, out
	for _, name := range []string{"PATH", "TMPDIR", "GOCOVERDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.Env = append(cmd.Env, "LANG=C.UTF-8", "TERM=dumb")
	// Without a terminal, nothing waits for somebody to type. What is left running
	// ends with the document.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	status := cmd.Wait()
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	if status != nil {
		text, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s", text)
	}
	return status
}

// Every document with commands is run somewhere.
func TestDocumentsAreRun(t *testing.T) {
	elsewhere, err := os.ReadFile("../../test/interop/clients/docs.sh")
	if err != nil {
		t.Fatal(err)
	}
	run := scripts(t)
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(files) < 5 {
		t.Fatalf("%d documents, %v", len(files), err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(f)
		if _, here := documents[name]; len(blocks(string(text))) > 0 && !here && !bytes.Contains(elsewhere, []byte(`"$docs/`+name+`"`)) &&
			!strings.Contains(run, "$DOCS/"+name) {
			t.Errorf("nothing runs the commands of %s", name)
		}
	}
}

// What the documents' tests would not see, they would not test.
func TestDocumentsCanFail(t *testing.T) {
	const document = "```sh\nname=node\n```\n\n<!-- compare -->\n```console\n$ echo \"$name\" \\\n    1234\nnode  …\n$ false\n```\n\n" +
		"```console\n$ false\nnot run\n```\n\n<!-- on other -->\n```sh\nbasename \"$HOME\" >name\n```\n\n<!-- compare -->\n```console\n$ cat name\nother\n$ true\nother\n```\n\n```sh\ntrue\nfalse\n```\n"
	all := blocks(document)
	if len(all) != 5 || all[0].machine != "machine" || all[4].machine != "other" || all[4].line != 31 {
		t.Fatalf("%+v", all)
	}
	dir := t.TempDir()
	lines, compared := script(all, dir)
	if err := runScript(t, dir, lines); err == nil || reached(t, dir) != "31" {
		t.Errorf("it ended at line %s, %v", reached(t, dir), err)
	}
	var good []bool
	for _, p := range compared {
		got, err := os.ReadFile(filepath.Join(dir, strconv.Itoa(p.line)))
		if err != nil {
			t.Fatal(err)
		}
		good = append(good, p.matches(string(got)))
	}
	if want := []bool{true, true, true, false}; !slices.Equal(good, want) {
		t.Errorf("compared: %v, not %v", good, want)
	}
}
