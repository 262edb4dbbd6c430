package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/audit"
)

// unitBlock is a block of the document that is a unit of systemd.
var unitBlock = regexp.MustCompile("(?ms)^```ini (\\S+)\n(.*?)^```$")

func observability(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestObservabilityUnits: systemd has nothing to say about the units.
func TestObservabilityUnits(t *testing.T) {
	command, err := exec.LookPath("icn-p11")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	args := []string{"--man=no", "verify"}
	for _, u := range unitBlock.FindAllStringSubmatch(observability(t), -1) {
		path := filepath.Join(dir, u[1])
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(u[2], "/usr/local/bin/icn-p11", command)), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	if len(args) != 4 {
		t.Fatalf("%q", args)
	}
	if out, err := exec.Command("systemd-analyze", args...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze (Debian package systemd): %v: %s", err, out)
	}
}

// TestObservabilityNames: the document has every metric, every field of the
// audit log and every message, and no others.
func TestObservabilityNames(t *testing.T) {
	text := observability(t)
	var metrics []string
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) `).FindAllStringSubmatch(string(sampleFigures().prometheus()), -1) {
		metrics = append(metrics, m[1])
	}
	rows := regexp.MustCompile("(?m)^\\| `(icn_p11_\\w+)` \\|").FindAllStringSubmatch(text, -1)
	for _, r := range rows {
		if !slices.Contains(metrics, r[1]) {
			t.Errorf("there is no metric %s", r[1])
		}
	}
	for _, m := range metrics {
		if !strings.Contains(text, "\n| `"+m+"` |") {
			t.Errorf("%s is not explained", m)
		}
	}
	if len(rows) != len(metrics) {
		t.Errorf("%d metrics are explained, of %d", len(rows), len(metrics))
	}
	record, err := os.ReadFile("../../internal/audit/audit.go")
	if err != nil {
		t.Fatal(err)
	}
	fields := regexp.MustCompile(`json:"(\w+)`).FindAllStringSubmatch(string(record), -1)
	for _, f := range fields {
		if !regexp.MustCompile("(?m)^\\| [^|]*`" + f[1] + "`[^|]* \\|").MatchString(text) {
			t.Errorf("the audit log's %s is not explained", f[1])
		}
	}
	if len(fields) < 14 || !strings.Contains(text, audit.MessageID) {
		t.Errorf("%d fields", len(fields))
	}
	printed, _ := literals(t)
	messages := regexp.MustCompile("(?m)^\\| (?:debug|info|warn) \\| `([^`]+)`").FindAllStringSubmatch(text, -1)
	for _, m := range messages {
		if !strings.Contains("\n"+printed, "\n"+m[1]+"\n") {
			t.Errorf("nothing logs %q", m[1])
		}
	}
	if len(messages) != 11 {
		t.Errorf("%d messages", len(messages))
	}
}
