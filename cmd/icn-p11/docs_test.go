package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// verb is one of a format.
var verb = regexp.MustCompile(`%[-+# 0]*[0-9]*(\.[0-9]+)?[a-zA-Z]`)

// literals collects the strings in the sources that are not tests, with "…" for
// the verbs of formats, and apart from them the cures that errors carry.
func literals(t *testing.T) (printed string, cures []string) {
	t.Helper()
	var all strings.Builder
	text := func(n ast.Node) (string, bool) {
		l, ok := n.(*ast.BasicLit)
		if !ok || l.Kind != token.STRING {
			return "", false
		}
		s, err := strconv.Unquote(l.Value)
		return verb.ReplaceAllString(s, "…"), err == nil
	}
	err := filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := text(n); ok {
				all.WriteString(s + "\n")
			}
			if c, ok := n.(*ast.CallExpr); ok && len(c.Args) == 2 {
				if f, ok := c.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "With" {
					if s, ok := text(c.Args[1]); ok {
						cures = append(cures, s)
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String(), cures
}

// TestTroubleshooting: the messages that docs/troubleshooting.md explains are
// those that the programs print, and it has the cures that they name.
func TestTroubleshooting(t *testing.T) {
	data, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := strings.Join(strings.Fields(string(data)), " ")
	printed, cures := literals(t)
	headings := regexp.MustCompile("(?m)^### `(.*)`$").FindAllStringSubmatch(string(data), -1)
	if len(headings) < 30 || len(cures) < 15 {
		t.Fatalf("only %d messages are explained, and %d cures are known", len(headings), len(cures))
	}
	for _, h := range headings {
		// What a message is made of may stand in several strings.
		for part := range strings.SplitSeq(h[1], "…") {
			if part = strings.Trim(part, " ,:;"); len(part) > 3 && !strings.Contains(printed, part) {
				t.Errorf("no program prints %q of %q", part, h[1])
			}
		}
	}
	for _, c := range cures {
		if !strings.Contains(doc, c) {
			t.Errorf("not explained: %s", c)
		}
	}
}
