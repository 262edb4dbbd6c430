// Package build checks what the module and the command are built of.
package build

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/dependencies.md anew")

// licences are known by words that each of them has and no other.
var licences = []struct{ name, words string }{
	{"Apache-2.0", "Apache License Version 2.0"},
	{"MIT", "Permission is hereby granted, free of charge, to any person obtaining a copy of this software"},
	{"BSD-3-Clause", "Neither the name of"},
	{"BSD-2-Clause", "Redistributions in binary form must reproduce"},
}

type module struct {
	Path, Version, Dir string
	Main               bool
}

// goList decodes the JSON values that go list prints.
func goList[T any](t *testing.T, args ...string) (all []T) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list"}, args...)...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &stderr)
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var v T
		if err := dec.Decode(&v); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
}

const root = "../.."

// in lists the modules that a program is built of.
func in(t *testing.T, program string) map[string]bool {
	paths := map[string]bool{}
	for _, p := range goList[struct{ Module *module }](t, "-deps", "-json=Module", program) {
		if p.Module != nil && !p.Module.Main {
			paths[p.Module.Path] = true
		}
	}
	return paths
}

func licence(t *testing.T, m module) string {
	files, err := filepath.Glob(filepath.Join(m.Dir, "LICENSE*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s has no licence in %q", m.Path, m.Dir)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Join(strings.Fields(string(text)), " ")
	for _, l := range licences {
		if strings.Contains(words, l.words) {
			return l.name
		}
	}
	t.Fatalf("%s: a licence that nobody has looked at yet", m.Path)
	return ""
}

const begin, end = "<!-- begin: written by go test ./test/build -update -->\n", "<!-- end -->\n"

// TestDependencies compares docs/dependencies.md with what is built.
func TestDependencies(t *testing.T) {
	library, command := in(t, "./cgo"), in(t, "./cmd/icn-p11")
	var table strings.Builder
	table.WriteString("| module | version | licence | part of |\n|---|---|---|---|\n")
	modules := goList[module](t, "-m", "-json", "all")
	if len(library) == 0 || len(command) == 0 {
		t.Fatal("nothing is built")
	}
	// What only tests, or tests of dependencies, need is not listed.
	modules = slices.DeleteFunc(modules, func(m module) bool { return !library[m.Path] && !command[m.Path] })
	for _, m := range modules {
		part := "module, command"
		switch {
		case !library[m.Path]:
			part = "command"
		case !command[m.Path]:
			part = "module"
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", m.Path, m.Version, licence(t, m), part)
	}
	name := filepath.Join(root, "docs", "dependencies.md")
	doc, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(doc), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no table between %q and %q", name, begin, end)
	}
	want := head + begin + table.String() + end + tail
	if want == string(doc) {
		return
	}
	if !*update {
		t.Fatalf("%s is not what is built (go test ./test/build -update writes it):\n%s", name, table.String())
	}
	if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
