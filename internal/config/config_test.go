package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/account"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

func TestParse(t *testing.T) {
	c, err := Parse("f", []byte(`
device_path = "swtpm:path=/run/tpm.sock"
key_handle = 0x81000002
pcrs = [1, 4]
pcr_bank = "sha384"
sealed_blob_dir = "/var/lib/x/"
auto_lock_timeout_secs = 300
ec_point_encoding = "raw"
free_slot = false
log_level = "debug"
log_file = "/var/log/p11"
log_format = "json"
audit_log = "/var/log/p11-audit"
statistics = false
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.DevicePath != "swtpm:path=/run/tpm.sock" || c.KeyHandle != 0x81000002 || len(c.PCRs) != 2 || c.PCRBank != "sha384" ||
		c.SealedBlobDir != "/var/lib/x" || c.AutoLockTimeout != 5*time.Minute || c.ECPointEncoding != "raw" || c.FreeSlot ||
		c.LogLevel != slog.LevelDebug || c.LogFile != "/var/log/p11" || c.LogFormat != "json" ||
		c.AuditLog != "/var/log/p11-audit" || c.Statistics || c.Source != "f" {
		t.Errorf("%+v", c)
	}
}

func TestErrorsNameTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"\nfoo = 1":                             "f:2: unknown key foo",
		"free_slot = true\npcrs = \"x\"":        "f:2: ",
		"\n\nkey_handle = 1":                    "f:3: key_handle",
		"key_handle = -1":                       "f:1: key_handle",
		"\npcrs = [24]":                         "f:2: pcrs",
		"pcrs = [1, 1]":                         "f:1: pcrs",
		"pcrs = []":                             "f:1: pcrs",
		"# c\npcr_bank = \"md5\"":               "f:2: pcr_bank",
		"auto_lock_timeout_secs = -1":           "f:1: auto_lock",
		"auto_lock_timeout_secs = 86401":        "f:1: auto_lock",
		"auto_lock_timeout_secs = 1.5":          "f:1: ",
		"ec_point_encoding = \"DER\"":           "f:1: ec_point_encoding",
		"log_level = \"loud\"":                  "f:1: log_level",
		"sealed_blob_dir = \"p11\"":             "f:1: sealed_blob_dir",
		"sealed_blob_dir = \"~/p11\"":           "f:1: sealed_blob_dir",
		"log_file = \"p11.log\"":                "f:1: log_file",
		"log_format = \"JSON\"":                 "f:1: log_format: \"JSON\" is none of text, json",
		"\naudit_log = \"audit\"":               "f:2: audit_log: an absolute path",
		"audit_log = true":                      "f:1: audit_log: a text in quotes is expected",
		"statistics = 1":                        "f:1: statistics: true or false is expected",
		"[section]\nx = 1":                      "f:",
		"device_path = ":                        "f:1: ",
		"\ndevice_path = \"tpm\"":               "f:2: device_path: \"tpm\": not /dev/tpmrm0, ",
		"free_slot = \"yes\"":                   "f:1: free_slot: true or false is expected",
		"key_handle = \"0x81000001\"":           "f:1: key_handle: a whole number is expected",
		"pcrs = 7":                              "f:1: pcrs: a list of whole numbers, such as [0, 7], is expected",
		"pcrs = [\"7\"]":                        "f:1: pcrs: a list of whole numbers, such as [0, 7], is expected",
		"[pcrs]\na = 1":                         "f:1: pcrs: a list of whole numbers, such as [0, 7], is expected",
		"log_level = 3":                         "f:1: log_level: a text in quotes is expected",
		"[token]\nhide = true":                  "f:2: token.hide: a table [token.LABEL] is expected",
		"[token.a]\nhide = 1":                   "f:2: token.a.hide: true or false is expected",
		"token = 1":                             "f:1: token: a table [token.LABEL] is expected",
		"free_slot = true\nfree_slot = false\n": "f:2: ",

		"[token.a]\npin = \"x\"":                                        "f:2: unknown key token.a.pin",
		"[token.a]\nfree_slot = true":                                   "f:2: unknown key token.a.free_slot",
		"[token.a.b]\nslot = 1":                                         "f:1: unknown key token.a.b",
		"[token]\na = 1":                                                "f:2: ",
		"[[token.a]]\nslot = 1":                                         "f:1: ",
		"[token.a]\n[token.a]":                                          "f:2: ",
		"[token.a]\nread_only = \"yes\"":                                "f:2: ",
		"[token.a]\nslot = \"1\"":                                       "f:2: ",
		"[token.a]\nhide = true\nslot = -1":                             "f:3: token.a.slot: between",
		"[token.a]\nslot = 2147483647":                                  "f:2: token.a.slot: between",
		"slot = 1":                                                      "f:1: unknown key slot",
		"[token.a]\nslot = 1\n[token.b]\nhide = true\nslot = 1":         "f:5: token.b.slot: slot 1 is that of token \"a\"",
		"[token.b]\nslot = 1\n[token.a]\nslot = 1":                      "f:4: token.a.slot: slot 1 is that of token \"b\"",
		"[token]\nb.slot = 1\na.slot = 1":                               "f:3: token.a.slot: slot 1",
		"token = {b = {slot = 1}, a = {slot = 1}}":                      "f:1: token.b.slot: slot 1 is that of token \"a\"",
		"[token]\nb = {slot = 1}\na = {slot = 1}":                       "f:3: token.a.slot: slot 1",
		"[token.a]\nauto_lock_timeout_secs = 86401":                     "f:2: token.a.auto_lock",
		"auto_lock_timeout_secs = 1\n[token.a]\nec_point_encoding=\"\"": "f:3: token.a.ec_point_encoding",
		"pcrs = [0]\n[token.a]\npin_source = \"prompt\"":                "f:3: token.a.pin_source: a module has nobody to ask",
		"[token.a]\npin_source = \"1234\"":                              "f:2: token.a.pin_source: a PIN source is file:PATH",
		"[token.a]\npin_source = \"\"":                                  "f:2: token.a.pin_source",
		"\n[token.\"123456789 123456789 123456789 123\"]\nslot = 1":     "f:2: token.123456789 123456789 123456789 123: a label has",
		"[token.\"a \"]":                                                "f:1: token.a : a label has",
		"[token.\"\"]":                                                  "f:1: token.: a label has",
	} {
		_, err := Parse("f", []byte(text))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s…", text, err, want)
		}
	}
}

func TestTokens(t *testing.T) {
	c, err := Parse("f", []byte(`
auto_lock_timeout_secs = 5
[token.plain]
pin_source = "credential:p11.pin"
slot = 7
[token."with blanks. and dots"]
auto_lock_timeout_secs = 60
ec_point_encoding = "raw"
hide = true
read_only = true
slot = 0
`))
	if err != nil {
		t.Fatal(err)
	}
	if p := c.Token("plain"); p.AutoLockTimeout != 5*time.Second || p.ECPointEncoding != "der" || p.PINSource.String() != "credential:p11.pin" ||
		p.Hide || p.ReadOnly || *p.Slot != 7 || p.Where != "f:3" {
		t.Errorf("%+v", p)
	}
	if p := c.Token("with blanks. and dots"); p.AutoLockTimeout != time.Minute || p.ECPointEncoding != "raw" || p.PINSource != nil ||
		!p.Hide || !p.ReadOnly || *p.Slot != 0 || p.Where != "f:6" {
		t.Errorf("%+v", p)
	}
	if p := c.Token("other"); p != (Token{AutoLockTimeout: 5 * time.Second, ECPointEncoding: "der"}) {
		t.Errorf("%+v", p)
	}
	if n := c.FixedSlots(); len(n) != 2 || n[0]+n[1] != 7 {
		t.Errorf("fixed slots %v", n)
	}
}

func TestLoadOrder(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("ICN_P11_CONF", "")
	if c, err := Load(); err != nil || c.Source != "" && c.Source != systemFile {
		t.Fatalf("%+v, %v", c, err)
	}
	own := filepath.Join(dir, "icn", "icn-p11.conf")
	os.MkdirAll(filepath.Dir(own), 0o700)
	os.WriteFile(own, []byte("free_slot = false"), 0o600)
	if c, err := Load(); err != nil || c.Source != own || c.FreeSlot {
		t.Errorf("%+v, %v", c, err)
	}
	t.Setenv("ICN_P11_CONF", filepath.Join(dir, "missing"))
	if _, err := Load(); err == nil {
		t.Error("a missing ICN_P11_CONF is accepted")
	}
}

// Who cannot read a file, or has no home, is told what to do.
func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	for name, want := range map[string]string{
		filepath.Join(dir, "missing"): "missing, named by ICN_P11_CONF: no such file or directory: correct ICN_P11_CONF, or unset it to have the usual places searched",
		dir:                           ", named by ICN_P11_CONF: is a directory: correct ICN_P11_CONF",
	} {
		t.Setenv("ICN_P11_CONF", name)
		if _, err := Load(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	os.MkdirAll(filepath.Join(dir, "icn", "icn-p11.conf"), 0o700)
	t.Setenv("ICN_P11_CONF", "")
	t.Setenv("XDG_CONFIG_HOME", dir)
	if _, err := Load(); err == nil || !strings.HasSuffix(err.Error(), "icn-p11.conf: is a directory: let this user read it, or name another file by ICN_P11_CONF") {
		t.Error(err)
	}
	if _, err := (&Config{}).stored(); err == nil || !strings.HasSuffix(err.Error(), ": set sealed_blob_dir, or HOME") {
		t.Error(err)
	}
}

// Without HOME, the home directory is the one of /etc/passwd.
func TestHomeUnset(t *testing.T) {
	t.Setenv("HOME", "")
	t.Setenv("XDG_CONFIG_HOME", "")
	home := account.Home(uint32(os.Geteuid()))
	if home == "" {
		t.Fatal("this user has no home directory in /etc/passwd")
	}
	if got := xdg("XDG_CONFIG_HOME", ".config"); got != filepath.Join(home, ".config") {
		t.Error(got)
	}
}

// The example parses as it stands, and with every key switched on.
func TestExample(t *testing.T) {
	data, err := os.ReadFile("../../icn-p11.conf.example")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("example", data)
	if err != nil {
		t.Fatal(err)
	}
	d := Default()
	if got.KeyHandle != d.KeyHandle || got.FreeSlot != d.FreeSlot || got.SealedBlobDir != d.SealedBlobDir ||
		got.LogFormat != "text" || got.AuditLog != "" || !got.Statistics {
		t.Error("the example as it stands changes a default")
	}
	var on strings.Builder
	keys := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		rest, ok := strings.CutPrefix(line, "#")
		switch {
		case ok && strings.HasPrefix(rest, "["):
			line = rest
		case ok && !strings.HasPrefix(rest, " ") && strings.Contains(rest, " = "):
			line = rest
			keys[strings.Fields(rest)[0]] = true
		}
		on.WriteString(line)
	}
	c, err := Parse("example", []byte(on.String()))
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Token("web server"); len(c.Tokens) != 1 || s.PINSource == nil || s.Slot == nil {
		t.Errorf("the example's token: %+v", c.Tokens)
	}
	for _, k := range append(keysOf(file{}), keysOf(tokenTable{})...) {
		if !keys[k] {
			t.Errorf("%s is not in the example", k)
		}
	}
}

// keysOf are the keys that a table takes.
func keysOf(table any) (keys []string) {
	for f := range reflect.TypeOf(table).Fields() {
		if key := f.Tag.Get("toml"); key != "token" {
			keys = append(keys, key)
		}
	}
	return keys
}

// icn-p11.conf(5) has every key, and no other, and its example parses.
func TestManual(t *testing.T) {
	data, err := os.ReadFile("../../docs/man/icn-p11.conf.5")
	if err != nil {
		t.Fatal(err)
	}
	description, rest, ok := strings.Cut(string(data), "\n.Sh FILES\n")
	_, example, ok2 := strings.Cut(rest, "\n.Bd -literal -offset indent\n")
	example, _, ok3 := strings.Cut(example, "\n.Ed\n")
	forAll, forOne, ok4 := strings.Cut(description, "\n.Ss ")
	if !ok || !ok2 || !ok3 || !ok4 {
		t.Fatal("the manual has other parts")
	}
	for _, part := range []struct {
		text  string
		table any
	}{{forAll, file{}}, {forOne, tokenTable{}}} {
		var items []string
		for _, m := range regexp.MustCompile(`(?m)^\.It Cm (.*)$`).FindAllStringSubmatch(part.text, -1) {
			items = append(items, strings.Split(m[1], " , ")...)
		}
		keys := keysOf(part.table)
		slices.Sort(items)
		slices.Sort(keys)
		if !slices.Equal(items, keys) {
			t.Errorf("the manual has the keys %q, not %q", items, keys)
		}
	}
	if _, err := Parse("example", []byte(strings.ReplaceAll(example, `\(dq`, `"`))); err != nil {
		t.Error(err)
	}
}

func TestLogger(t *testing.T) {
	c := Default()
	c.LogFile = filepath.Join(t.TempDir(), "log")
	log, to, err := c.Logger()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.LogFile); err == nil {
		t.Error("the log exists before the first record")
	}
	log.Info("not this")
	log.Warn("but this")
	to.Close()
	b, err := os.ReadFile(c.LogFile)
	if err != nil || !strings.Contains(string(b), "but this") || strings.Contains(string(b), "not this") {
		t.Errorf("%s, %v", b, err)
	}
	if st, _ := os.Stat(c.LogFile); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
}

// TestLogFormats: both formats say the same; JSON has durations in seconds.
func TestLogFormats(t *testing.T) {
	for format, want := range map[string]string{
		"text": `^time=\S+ level=WARN msg="a message" pid=\d+ took=1.5ms error="a: b"\n$`,
		"json": `^{"time":"[^"]+","level":"WARN","msg":"a message","pid":\d+,"took":0.0015,"error":"a: b"}\n$`,
	} {
		c := Default()
		c.LogFile, c.LogFormat = filepath.Join(t.TempDir(), "log"), format
		log, to, err := c.Logger()
		if err != nil {
			t.Fatal(err)
		}
		log.Warn("a message", "took", 1500*time.Microsecond, "error", errors.New("a: b"))
		to.Close()
		if b, err := os.ReadFile(c.LogFile); err != nil || !regexp.MustCompile(want).Match(b) {
			t.Errorf("%s: %s, %v", format, b, err)
		}
	}
}

// TestSyslogSeverity: syslog learns the level of a record in either format.
func TestSyslogSeverity(t *testing.T) {
	severities := map[slog.Level]int{slog.LevelDebug: 7, slog.LevelInfo: 6, slog.LevelWarn: 4, slog.LevelError: 3}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(shortDir(t), "log"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetReadDeadline(time.Now().Add(10 * time.Second))
	for _, format := range []string{"text", "json"} {
		for level, severity := range severities {
			c := Default()
			c.LogLevel, c.LogFormat = slog.LevelDebug, format
			log, to, err := c.Logger()
			if err != nil {
				t.Fatal(err)
			}
			to.(*sink).open = func() (io.WriteCloser, error) {
				w, err := syslog.Dial("unixgram", l.LocalAddr().String(), syslog.LOG_WARNING|syslog.LOG_USER, "icn-p11")
				return syslogWriter{w}, err
			}
			log.Log(t.Context(), level, "a message")
			to.Close()
			buf := make([]byte, 4096)
			n, err := l.Read(buf)
			// Facility 1, user-level messages, times 8, and the severity (RFC 5424, 6.2.1).
			want := fmt.Sprintf("<%d>", 8+severity)
			if err != nil || !strings.HasPrefix(string(buf[:n]), want) || strings.Contains(string(buf[:n]), "time") {
				t.Errorf("%s, %v: %q, %v", format, level, buf[:n], err)
			}
		}
	}
}

// shortDir is one whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "log")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestBinding(t *testing.T) {
	c, err := Parse("f", []byte("pcrs = [1, 4]\n"))
	if err != nil || c.Binding() != nil {
		t.Errorf("%+v, %v", c.Binding(), err)
	}
	c, err = Parse("f", []byte("platform_binding = true\npcrs = [1, 4]\npcr_bank = \"sha1\"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if b := c.Binding(); b == nil || b.Bank != "sha1" || !slices.Equal(b.PCRs, []int{1, 4}) {
		t.Errorf("%+v", b)
	}
}

// FuzzParse: what is read holds only what the rest of the program can work with.
func FuzzParse(f *testing.F) {
	f.Add("free_slot = true\npcrs = [0, 7]\n")
	f.Add("[a]\nb = {c = 1}\n")
	f.Add("[token.a]\nslot = 1\n[token]\nb.slot = 1\n")
	f.Add("device_path = \"swtpm:path=/s,exclusive\"\nkey_handle = 0x81000002\nsealed_blob_dir = \"/x/../y\"\nlog_level = \"debug\"\nlog_file = \"/l\"\naudit_log = \"journal\"\n")
	f.Add("auto_lock_timeout_secs = 86400\nec_point_encoding = \"raw\"\npcr_bank = \"sha512\"\n[token.n]\npin_source = \"env:P\"\nhide = true\nread_only = true\nslot = 3\n")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := Parse("f", []byte(s))
		if err != nil {
			if line := strings.HasPrefix(err.Error(), "f:") || strings.HasPrefix(err.Error(), "there is no place"); !line {
				t.Errorf("%q: an error without a line: %v", s, err)
			}
			return
		}
		tokens := slices.Collect(maps.Values(c.Tokens))
		slots := map[uint32]bool{}
		for label, tok := range c.Tokens {
			if label == "" || len(label) > sealstore.MaxLabel || tok.Where == "" || tok.PINSource != nil && tok.PINSource.Prompt() {
				t.Errorf("%q: token %q: %+v", s, label, tok)
			}
			if tok.Slot != nil && (*tok.Slot > sealstore.MaxSlot || slots[*tok.Slot]) {
				t.Errorf("%q: slot %d of %q", s, *tok.Slot, label)
			}
			if tok.Slot != nil {
				slots[*tok.Slot] = true
			}
		}
		for _, tok := range append(tokens, c.Token("no such token")) {
			if tok.AutoLockTimeout < 0 || tok.AutoLockTimeout > 24*time.Hour || tok.ECPointEncoding != "der" && tok.ECPointEncoding != "raw" {
				t.Errorf("%q: %+v", s, tok)
			}
		}
		pcrs := slices.Sorted(slices.Values(c.PCRs))
		if len(pcrs) == 0 || pcrs[0] < 0 || pcrs[len(pcrs)-1] > 23 || len(slices.Compact(pcrs)) != len(c.PCRs) {
			t.Errorf("%q: PCRs %v", s, c.PCRs)
		}
		if c.KeyHandle>>24 != 0x81 || !filepath.IsAbs(c.SealedBlobDir) || tpm.CheckDevice(c.DevicePath) != nil {
			t.Errorf("%q: %+v", s, c)
		}
		for _, file := range []string{c.LogFile, c.AuditLog} {
			if file != "" && file != "stderr" && file != "journal" && !filepath.IsAbs(file) {
				t.Errorf("%q: %q is no absolute path", s, file)
			}
		}
	})
}
