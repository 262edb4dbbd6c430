package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// reads are the verbs that change nothing, so that they need no dry run.
var reads = []string{
	"list", "show", "did", "did resolve", "verify", "key list", "key show", "key export-public",
	"cert export", "migrate list", "backup verify", "pcr show", "srk show", "lockout show", "status", "metrics", "doctor", "version", "agent", "agent list", "agent sign",
	"attest", "attest verify", "attest respond",
}

// verbs are the commands that do something, by name: "key list".
func verbs(t *testing.T) map[string]*cobra.Command {
	t.Helper()
	a := &app{out: io.Discard, err: io.Discard}
	all := map[string]*cobra.Command{}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		name := strings.TrimPrefix(c.CommandPath(), "icn-p11 ")
		switch {
		case name == "completion" || name == "help": // cobra's
			return
		case c.HasParent() && (!c.HasSubCommands() || c.Flags().HasFlags()):
			all[name] = c
		}
		for _, s := range c.Commands() {
			walk(s)
		}
	}
	walk(a.root())
	if len(all) < 30 || all["did"] == nil || all["key"] != nil {
		t.Fatalf("%d verbs", len(all))
	}
	return all
}

// manual is the man page, taken apart.
type manual struct {
	synopsis map[string]string   // of a verb
	sections map[string]bool     // of a verb: in the description
	json     map[string][]string // the fields that a verb prints with --json
}

func readManual(t *testing.T) manual {
	t.Helper()
	data, err := os.ReadFile("../../docs/man/icn-p11.1")
	if err != nil {
		t.Fatal(err)
	}
	part := func(text, from, to string) string {
		_, text, ok := strings.Cut(text, from)
		text, _, ok2 := strings.Cut(text, to)
		if !ok || !ok2 {
			t.Fatalf("the manual has no part from %q to %q", from, to)
		}
		return text
	}
	page := string(data)
	m := manual{map[string]string{}, map[string]bool{}, map[string][]string{}}
	for s := range strings.SplitSeq(part(page, ".Sh SYNOPSIS\n", ".Sh "), ".Nm\n") {
		verb, rest, _ := strings.Cut(s, "\n")
		m.synopsis[strings.TrimPrefix(verb, ".Cm ")] = rest
	}
	items := func(text string, f func(verb, rest string)) {
		for s := range strings.SplitSeq(text, ".It Cm ") {
			names, rest, _ := strings.Cut(s, "\n")
			for verb := range strings.SplitSeq(names, " , ") {
				f(verb, rest)
			}
		}
	}
	description := part(page, ".Sh DESCRIPTION\n", ".Sh ")
	items(part(description, ".Bl ", ".El"), func(verb, _ string) { m.sections[verb] = true })
	items(part(part(page, ".Ss JSON\n", ".Ss "), ".Bl ", ".El"), func(verb, rest string) {
		for line := range strings.SplitSeq(rest, "\n") {
			if names, ok := strings.CutPrefix(line, ".Va "); ok {
				for _, f := range strings.Fields(names) {
					if f = strings.Trim(f, ",:;()"); f != "" && !slices.Contains(m.json[verb], f) {
						m.json[verb] = append(m.json[verb], f)
					}
				}
			}
		}
	})
	return m
}

// scripts is the text of all scripts.
func scripts(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) < 15 {
		t.Fatalf("%d scripts, %v", len(files), err)
	}
	var all strings.Builder
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
	return all.String()
}

// Whatever a verb does, it has what all have: JSON, a dry run where it changes
// something, examples that parse, its places in the manual, and a script.
func TestEveryVerb(t *testing.T) {
	all, man, tested := verbs(t), readManual(t), scripts(t)
	for name, c := range all {
		miss := func(format string, args ...any) { t.Errorf("%s: "+format, append([]any{name}, args...)...) }
		if c.Flags().Lookup("json") == nil {
			miss("no --json")
		}
		if dry := c.Flags().Lookup("dry-run") != nil; dry == slices.Contains(reads, name) {
			miss("has it a dry run, %v, or does it change nothing?", dry)
		}
		if c.Long == "" && c.Short == "" || c.Args == nil {
			miss("no description, or any arguments are taken")
		}
		if !man.sections[name] {
			miss("the manual does not describe it")
		}
		synopsis, ok := man.synopsis[name]
		if !ok {
			miss("no synopsis in the manual")
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !regexp.MustCompile(`Fl -`+f.Name+`\b`).MatchString(synopsis) {
				miss("the synopsis in the manual lacks --%s", f.Name)
			}
		})
		for _, f := range regexp.MustCompile(`Fl -([a-z-]+)`).FindAllStringSubmatch(synopsis, -1) {
			if c.Flags().Lookup(f[1]) == nil {
				miss("the manual tells of --%s", f[1])
			}
		}
		if len(man.json[name]) == 0 {
			miss("the manual does not tell the fields of its JSON")
		}
		if !regexp.MustCompile(`(?m)icn-p11 ` + name + `\b`).MatchString(tested) {
			miss("no script in testdata/script uses it")
		}
		var help bytes.Buffer
		if run(append(strings.Fields(name), "--help"), &help, &help) != exitOK || !strings.HasSuffix(help.String(), "\nExamples:\n"+c.Example+"\n") {
			miss("its help does not end with its examples:\n%s", &help)
		}
		if err := checkExamples(c, name); err != nil {
			miss("%v", err)
		}
	}
	for name := range man.synopsis {
		if all[name] == nil && name != "" && name != "completion" {
			t.Errorf("the manual tells of %s", name)
		}
	}
	for _, name := range reads {
		if all[name] == nil {
			t.Errorf("there is no verb %s", name)
		}
	}
}

// checkExamples makes sure that a verb has one or two examples, whose command
// lines are good.
func checkExamples(c *cobra.Command, name string) error {
	lines := strings.Split(c.Example, "\n")
	if c.Example == "" || len(lines) > 2 {
		return fmt.Errorf("one or two examples are wanted")
	}
	for _, line := range lines {
		if !strings.HasPrefix(line, "  icn-p11 ") {
			return fmt.Errorf("an example is an indented command: %q", line)
		}
		verb, err := parse(line, true)
		if err != nil {
			return err
		}
		if verb != name {
			return fmt.Errorf("it is no example of it: %s", line)
		}
	}
	return nil
}

// parse takes a command line apart, as the command does before it begins, and
// gives the verb. Of one that is not whole, arguments may be missing.
func parse(line string, whole bool) (verb string, err error) {
	words := strings.Fields(line)
	// What the shell takes away.
	words = slices.DeleteFunc(words, func(w string) bool { return strings.ContainsAny(w, "<>") })
	fresh := &app{out: io.Discard, err: io.Discard}
	found, args, err := fresh.root().Find(words[1:])
	if err == nil {
		err = found.ParseFlags(args)
	}
	rest := found.Flags().Args()
	switch {
	case err != nil:
	case found.Args == nil && (whole || len(rest) > 0):
		err = errors.New("there is no such command")
	case whole:
		err = found.ValidateArgs(rest)
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", line, err)
	}
	return strings.TrimPrefix(found.CommandPath(), "icn-p11 "), nil
}
