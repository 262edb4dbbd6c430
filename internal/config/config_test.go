package config

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
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
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.DevicePath != "swtpm:path=/run/tpm.sock" || c.KeyHandle != 0x81000002 || len(c.PCRs) != 2 || c.PCRBank != "sha384" ||
		c.SealedBlobDir != "/var/lib/x" || c.AutoLockTimeout != 5*time.Minute || c.ECPointEncoding != "raw" || c.FreeSlot ||
		c.LogLevel != slog.LevelDebug || c.LogFile != "/var/log/p11" || c.Source != "f" {
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
		"[section]\nx = 1":                      "f:",
		"device_path = ":                        "f:1: ",
		"free_slot = true\nfree_slot = false\n": "f:2: ",
	} {
		_, err := Parse("f", []byte(text))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s…", text, err, want)
		}
	}
}

func TestLoadOrder(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("ICN_P11_CONF", "")
	if c, err := Load(); err != nil || c.Source != "" && c.Source != SystemFile {
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
	if got.KeyHandle != d.KeyHandle || got.FreeSlot != d.FreeSlot || got.SealedBlobDir != d.SealedBlobDir {
		t.Error("the example as it stands changes a default")
	}
	var on strings.Builder
	keys := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "#"); ok && !strings.HasPrefix(rest, " ") && strings.Contains(rest, " = ") {
			line = rest
			keys[strings.Fields(rest)[0]] = true
		}
		on.WriteString(line)
	}
	if _, err := Parse("example", []byte(on.String())); err != nil {
		t.Error(err)
	}
	for _, k := range []string{"device_path", "key_handle", "platform_binding", "pcrs", "pcr_bank", "attestation", "sealed_blob_dir",
		"auto_lock_timeout_secs", "ec_point_encoding", "free_slot", "log_level", "log_file"} {
		if !keys[k] {
			t.Errorf("%s is not in the example", k)
		}
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

func TestUnsupported(t *testing.T) {
	c := Default()
	if err := c.Unsupported(); err != nil {
		t.Error(err)
	}
	c.Attestation = true
	if err := c.Unsupported(); err == nil {
		t.Error("attestation passes")
	}
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

func FuzzParse(f *testing.F) {
	f.Add("free_slot = true\npcrs = [0, 7]\n")
	f.Add("[a]\nb = {c = 1}\n")
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := Parse("f", []byte(s)); err == nil && c.KeyHandle>>24 != 0x81 {
			t.Errorf("%q: handle %x", s, c.KeyHandle)
		}
	})
}
