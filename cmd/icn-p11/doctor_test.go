package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
)

// What the doctor advises about the store is what the user who runs it, or the
// user it names, can do; and once that is done it finds nothing more.
func TestStoreAdvice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing users needs root")
	}
	const nobody = 65534
	tpm := swtpmtest.Start(t)
	dir, err := os.MkdirTemp("", "doctor")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	conf, store := filepath.Join(dir, "conf"), filepath.Join(dir, "store")
	must(os.Chmod(dir, 0o711))
	must(writeConf(conf, tpm.Device(), store))
	must(os.Chmod(conf, 0o644))
	// The software TPM is for everybody, too.
	must(os.Chmod(filepath.Dir(tpm.Path()), 0o711))
	must(os.Chmod(tpm.Path(), 0o666))
	t.Setenv("ICN_P11_CONF", conf)
	t.Setenv("A_PIN", "12345678")
	icn := func(uid int, args ...string) string {
		t.Helper()
		must(syscall.Seteuid(uid))
		defer func() { must(syscall.Seteuid(0)) }()
		var out bytes.Buffer
		run(args, &out, &out)
		return out.String()
	}
	if out := icn(0, "init", "--label", "node", "--pin-source", "env:A_PIN", "--so-pin-source", "env:A_PIN"); !strings.Contains(out, "did:icn:") {
		t.Fatal(out)
	}
	each := func(f func(path string) error) {
		t.Helper()
		must(filepath.WalkDir(store, func(path string, _ fs.DirEntry, err error) error {
			must(err)
			return f(path)
		}))
	}
	chown := func(uid int) { each(func(path string) error { return os.Lchown(path, uid, uid) }) }
	objects, _ := filepath.Glob(filepath.Join(store, "tokens", "*", "objects"))
	const mixed = "fail  store: belongs to another user than nobody, who has the store: "
	for _, c := range []struct {
		name       string
		owner, uid int
		change     func() error
		line, cure string // "" for none
	}{
		{"root's, by root", 0, 0, nil, "ok    store: " + store + ", accessible to root alone", ""},
		{"a user's, by the user", nobody, nobody, nil, "ok    store: " + store + ", accessible to nobody alone", ""},
		{"a user's, by root", nobody, 0, nil, "ok    store: " + store + " belongs to nobody: tokens can be used, and changed by nobody alone", ""},
		{"root's, by a user", 0, nobody, nil, "fail  tokens: " + store + "/tokens: permission denied", "run this as root, or set sealed_blob_dir"},
		{"root's file in a user's store", nobody, 0, func() error { return os.Chown(objects[0], 0, 0) }, mixed + objects[0], "chown -R nobody " + store},
		{"the same, told to the user", nobody, nobody, func() error { return os.Chown(objects[0], 0, 0) }, mixed + objects[0], "as root: chown -R nobody " + store},
		{"open to all", nobody, nobody, func() error { return os.Chmod(objects[0], 0o755) }, "fail  store: open to other users: " + objects[0], "chmod -R u=rwX,g-w,o= " + store},
		{"open to all, told to root", nobody, 0, func() error { return os.Chmod(objects[0], 0o755) }, "fail  store: open to other users: " + objects[0], "chmod -R u=rwX,g-w,o= " + store},
		{"closed to its owner", nobody, nobody, func() error { return os.Chmod(objects[0], 0o100) }, "fail  store: closed to nobody, whose store this is: " + objects[0], "chmod -R u=rwX " + store},
		{"no store, and no room", 0, nobody, func() error { return os.Rename(store, store+"-away") },
			"fail  store: " + dir + ": the store cannot be written: permission denied", "run this as root, or set sealed_blob_dir"},
	} {
		chown(c.owner)
		if c.change != nil {
			must(c.change())
		}
		out := icn(c.uid, "doctor")
		if want := "\n" + c.line + "\n"; !strings.Contains(out, want) {
			t.Errorf("%s: no %q in\n%s", c.name, c.line, out)
		} else if _, rest, _ := strings.Cut(out, want); c.cure != "" && !strings.HasPrefix(rest, "      -> "+c.cure+"\n") {
			t.Errorf("%s: no %q in\n%s", c.name, c.cure, out)
		}
		if _, err := os.Stat(store + "-away"); err == nil {
			must(os.Rename(store+"-away", store))
		}
		must(os.Chmod(objects[0], 0o700))
	}
}
