package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
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
// module or a newer OpenSSL, scripts those that need certified TPMs, and
// test/pages.sh those of docs/clients.
var documents = map[string]func(t *testing.T, home string, chip *swtpmtest.TPM){
	"usage.md":         nil,
	"recovery.md":      nil,
	"migration.md":     nil,
	"fleet.md":         nil,
	"observability.md": nil,
	"icn.md":           icnHome,
}

// notRun are the commands of documents that stand there for a reader alone, as
// blocks marked console, with what they need and what tests the same thing. Blocks
// marked text, such as the overview of verbs in the README, are not run either:
// they show how a verb is called, with words such as TOKEN and FILE for what it is
// given. TestDocumentsAreRun parses them, and TestEveryVerb sees that a script in
// testdata/script runs each verb.
var notRun = []struct {
	why      string
	commands []string
}{
	{"they build and install: test/run.sh and test/interop/run.sh do so before all else, and test/run.sh runs the demo",
		[]string{"make", "make test", "make demo", "sudo make install"}},
	{"a TPM chip and its device", []string{"ls -l /dev/tpm*", `sudo usermod -aG tss "$USER"`}},
	{"tpm2-abrmd on the system bus: setup.md runs it on one of its own behind them",
		[]string{"sudo apt install tpm2-abrmd && sudo systemctl enable --now tpm2-abrmd", `echo 'device_path = "tabrmd:"' | sudo tee /etc/icn/icn-p11.conf`}},
	{"somebody who types an SO PIN for root: testdata/script/nopin.txtar makes such a token", []string{"icn-p11 init --label server --no-pin"}},
	{"systemd as the user's manager: TestAgentOfSystemd starts the units' service as systemd does",
		[]string{"systemctl --user enable --now icn-p11-agent@node.socket", "export SSH_AUTH_SOCK=$XDG_RUNTIME_DIR/icn-p11/node.sock", "ssh-add -X"}},
	{"a second host, or podman: test/clients/ssh-agent.sh has an sshd and namespaces of its own",
		[]string{"ssh-copy-id -i node.pub host", "ssh host", "ssh -A host icn-p11 agent sign --format raw - <message >message.raw",
			`podman run --volume "$SSH_AUTH_SOCK:/agent.sock" --env SSH_AUTH_SOCK=/agent.sock IMAGE ssh-add -l`}},
	{"a module where ssh-agent allows it", []string{"ssh-add -s /usr/local/lib/pkcs11/icn-p11.so"}},
	{"journald: internal/audit tests what it is sent",
		[]string{"journalctl MESSAGE_ID=4eddab38172d46b690079ae0be6cf51d ICN_P11_OUTCOME=CKR_OK -o json", "journalctl SYSLOG_IDENTIFIER=icn-p11 ICN_P11_TOKEN_LABEL=node _UID=33"}},
	{"systemd: TestObservabilityUnits looks at the units, and what they run is run behind them",
		[]string{"cp icn-p11-metrics.service icn-p11-metrics.timer /etc/systemd/system/", "systemctl enable --now icn-p11-metrics.timer"}},
	{"a group: test/p11tool TestGroupReadStore has one", []string{"chgrp -R GROUP DIR; chmod -R u=rwX,g=rX,o= DIR"}},
	{"much time: make test runs the same tests on samples", []string{"ICN_P11_LONG=1 go test -timeout 0 -run 'Faults|AllOrNothing' ./p11 ./sealstore ./cmd/icn-p11"}},
	{"much time: make fuzz runs these targets among all", []string{"go test -run '^$' -fuzz '^FuzzTemplate$' ./p11", "test/fuzz/go.sh 120 'internal/(backup|migration)'"}},
	{"a sequence that has failed: it is for who looks for the reason, and no test makes one", []string{"test/fuzz/run.sh replay sequence 1234"}},
}

// A block of a document. Those marked sh are run. A document may also have
// these comments on lines of their own, which no reader sees:
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
	kind    string // what it is marked as
	console bool   // run, and compared
}

// blocks are those of a document that are run, and the others. Those that have a
// test of their own are neither.
func blocks(text string) (run, others []block) {
	machine, compare, elsewhere := "machine", false, false
	var b *block
	for i, line := range strings.Split(text, "\n") {
		on := regexp.MustCompile(`^<!-- on (\w+) -->$`).FindStringSubmatch(line)
		switch {
		case b != nil && line == "```":
			switch {
			case elsewhere:
			case b.kind == "sh" || b.console:
				run = append(run, *b)
			default:
				others = append(others, *b)
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
		case strings.HasPrefix(line, "```"):
			b = &block{line: i + 1, machine: machine, kind: line[3:]}
			if b.kind == "console" {
				b.console, compare = compare, false
			}
		}
	}
	return run, others
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
		if !ok && !b.console {
			command, ok = strings.CutPrefix(line, "# ") // root's prompt
		}
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
	all, _ := blocks(text)
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

// allDocuments are the README and those in docs and docs/clients: their texts by
// their paths from the root.
func allDocuments(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, pattern := range []string{"README.md", "docs/*.md", "docs/clients/*.md"} {
		files, err := filepath.Glob("../../" + pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("no %s, %v", pattern, err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all[strings.TrimPrefix(f, "../../")] = string(text)
		}
	}
	return all
}

// Every command of every document is run somewhere, or is among those that are
// known not to be.
func TestDocumentsAreRun(t *testing.T) {
	elsewhere, err := os.ReadFile("../../test/interop/clients/docs.sh")
	if err != nil {
		t.Fatal(err)
	}
	testscripts := scripts(t)
	unseen := map[string]bool{}
	for _, n := range notRun {
		for _, c := range n.commands {
			unseen[c] = true
		}
	}
	known := maps.Clone(unseen)
	for name, text := range allDocuments(t) {
		run, others := blocks(text)
		base, inDocs := strings.CutPrefix(name, "docs/")
		_, here := documents[base]
		if len(run) > 0 && !(here && inDocs) && !bytes.Contains(elsewhere, []byte(`"$ROOT/`+name+`"`)) &&
			!strings.Contains(testscripts, "$DOCS/"+base) && !strings.HasPrefix(base, "clients/") {
			t.Errorf("nothing runs the commands of %s", name)
		}
		for _, b := range others {
			for _, c := range unmarked(&b, known) {
				t.Errorf("%s, line %d: %s", name, b.line, c)
			}
			for _, p := range b.commands() {
				delete(unseen, plain(p.command))
			}
		}
		if i := regexp.MustCompile("\n\n    \\S").FindStringIndex(text); i != nil {
			t.Errorf("%s, line %d: an indented block tells nobody what it is", name, strings.Count(text[:i[1]], "\n")+1)
		}
	}
	for c := range unseen {
		t.Errorf("no document has the command %s", c)
	}
	clients(t)
}

// plain is a command without the comment behind it.
func plain(command string) string {
	return regexp.MustCompile(`\s+# .*$`).ReplaceAllString(command, "")
}

// unmarked are the commands of a block, none of those that are run, that are not
// known as such. Lines of a text that begin with the name of this program show
// how it is called, and must be such that it takes them.
func unmarked(b *block, known map[string]bool) (wrong []string) {
	switch b.kind {
	case "":
		return []string{"a block that is marked as nothing"}
	case "console":
		all := b.commands()
		if len(all) == 0 {
			return []string{"a console without a command"}
		}
		for _, p := range all {
			if !known[plain(p.command)] {
				wrong = append(wrong, "nothing runs "+p.command)
			}
		}
	case "text":
		for _, line := range b.lines {
			if strings.HasPrefix(line, "icn-p11 ") {
				if _, err := parse(plain(line), true); err != nil {
					wrong = append(wrong, err.Error())
				}
			}
		}
	}
	return wrong
}

// Whatever documents and manuals say of the program in passing are commands and
// flags that there are.
func TestMentions(t *testing.T) {
	mention := regexp.MustCompile("`(icn-p11 [^`]+)`")
	// What is signed or derived from begins with the name, too, and VERB is any.
	label := regexp.MustCompile(`^icn-p11 (VERB .*|\d.*|approver|migration (offer|proof)|attestation .* v1)$`)
	seen := 0
	for name, text := range allDocuments(t) {
		for _, m := range mention.FindAllStringSubmatch(text, -1) {
			line := strings.Join(strings.Fields(m[1]), " ")
			if label.MatchString(line) {
				continue
			}
			seen++
			if _, err := parse(line, false); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	manuals, err := filepath.Glob("../../docs/man/*")
	if err != nil || len(manuals) != 3 {
		t.Fatalf("manuals: %v, %v", manuals, err)
	}
	examples := regexp.MustCompile(`(?m)^\.(?:Dl|Ql) (icn-p11 .*?)(?: [;:,.])?$`)
	for _, f := range manuals {
		page, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		_, part, ok := strings.Cut(string(page), "\n.Sh EXAMPLES\n")
		if !ok {
			t.Errorf("%s has no examples", f)
		}
		found := examples.FindAllStringSubmatch(part, -1)
		if strings.HasSuffix(f, ".1") && len(found) < 5 {
			t.Errorf("%s has %d examples", f, len(found))
		}
		for _, m := range found {
			if _, err := parse(m[1], true); err != nil {
				t.Errorf("%s: %v", f, err)
			}
		}
	}
	if seen < 40 {
		t.Errorf("only %d mentions", seen)
	}
}

// What stands in the README first is run by make test.
func TestDemoIsRun(t *testing.T) {
	text, err := os.ReadFile("../../test/run.sh")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^ *step test/demo\.sh$`).Match(text) {
		t.Error("test/run.sh does not run test/demo.sh")
	}
}

// clients checks that each page of docs/clients is among those that test/pages.sh
// runs, here or in the root of test/interop, and that the README there has it.
func clients(t *testing.T) {
	var run []string
	for file, list := range map[string]string{
		"../../test/pages.sh":          `(?m)^.*pages=\((\w.*)\)$`,
		"../../test/interop/inside.sh": `(?m)test/pages\.sh (\w.*); then$`,
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pages := regexp.MustCompile(list).FindSubmatch(text)
		if pages == nil {
			t.Fatalf("%s names no pages", file)
		}
		run = append(run, strings.Fields(string(pages[1]))...)
	}
	index, err := os.ReadFile("../../docs/clients/README.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("../../docs/clients/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".md")
		if name == "README" {
			continue
		}
		if !slices.Contains(run, name) {
			t.Errorf("nothing runs the commands of clients/%s.md", name)
		}
		if !bytes.Contains(index, []byte("("+name+".md)")) {
			t.Errorf("clients/README.md does not have %s.md", name)
		}
	}
}

// What the documents' tests would not see, they would not test.
func TestDocumentsCanFail(t *testing.T) {
	const document = "```sh\nname=node\n```\n\n<!-- compare -->\n```console\n$ echo \"$name\" \\\n    1234\nnode  …\n$ false\n```\n\n" +
		"```console\n$ cp a b  # and so on\n# mv a \\\n    b\nnot run\n```\n\n```\nfalse\n```\n\n```text\nicn-p11 pin TOKEN --sideways\nicn-p11 pcr TOKEN\nicn-p11 list  # all\n```\n\n<!-- on other -->\n```sh\nbasename \"$HOME\" >name\n```\n\n<!-- compare -->\n```console\n$ cat name\nother\n$ true\nother\n```\n\n```sh\ntrue\nfalse\n```\n"
	all, others := blocks(document)
	if len(all) != 5 || all[0].machine != "machine" || all[4].machine != "other" || all[4].line != 43 {
		t.Fatalf("%+v", all)
	}
	var wrong []string
	for _, b := range others {
		wrong = append(wrong, unmarked(&b, map[string]bool{"cp a b": true})...)
	}
	if want := []string{"nothing runs mv a \\\n    b", "a block that is marked as nothing",
		"icn-p11 pin TOKEN --sideways: unknown flag: --sideways", "icn-p11 pcr TOKEN: there is no such command"}; !slices.Equal(wrong, want) {
		t.Errorf("found wrong: %q", wrong)
	}
	dir := t.TempDir()
	lines, compared := script(all, dir)
	if err := runScript(t, dir, lines); err == nil || reached(t, dir) != "43" {
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
