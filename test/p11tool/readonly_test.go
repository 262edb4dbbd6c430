package p11tool

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/miekg/pkcs11"
)

func init() { workers["read-only"] = readOnlyWorker }

// readOnlyWorker finds and signs in a store that it cannot write to, and tries
// to write.
func readOnlyWorker(args []string) error {
	c, err := loadModule()
	if err != nil {
		return err
	}
	slot, err := findToken(c, "test token")
	if err != nil {
		return err
	}
	s, err := c.OpenSession(slot, openRO)
	if err != nil {
		return err
	}
	if err := c.Login(s, pkcs11.CKU_USER, args[0]); err != nil {
		return err
	}
	keys, err := find(c, s, privateKeys)
	if err != nil {
		return err
	}
	for _, k := range keys {
		key, err := point(c, s, k)
		if err == nil {
			err = signChecked(c, s, k, key, []byte("m"))
		}
		if err != nil {
			return err
		}
	}
	if err := protected(c, slot, s, keys[0]); err != nil {
		return err
	}
	free, err := freeSlot(c)
	if err != nil {
		return err
	}
	i, err := c.GetTokenInfo(free)
	if err != nil || i.Flags&pkcs11.CKF_WRITE_PROTECTED == 0 {
		return fmt.Errorf("the free slot: flags %#x, %v", i.Flags, err)
	}
	if err := c.InitToken(free, soPIN, "new"); err != pkcs11.Error(pkcs11.CKR_TOKEN_WRITE_PROTECTED) {
		return fmt.Errorf("C_InitToken in the free slot: %v", err)
	}
	fmt.Println(len(keys))
	return c.Finalize()
}

// snapshot describes every file of the store, so that any change shows.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	ok(t, "walk", filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		var content []byte
		if e.Type().IsRegular() {
			if content, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		fmt.Fprintln(&b, path, info.Mode(), st.Ino, st.Uid, st.Gid, st.Size, st.Mtim, st.Ctim, sha256.Sum256(content))
		return nil
	}))
	return b.String()
}

// readOnlyToken makes a token with one key, and leaves the module.
func readOnlyToken(t *testing.T) *client {
	c := newToken(t)
	c.generate("key", true)
	ok(t, "C_Finalize", c.Finalize())
	return c
}

// unwritten runs a worker and makes sure that it found n keys and wrote nothing.
func unwritten(t *testing.T, p *place, cmd *exec.Cmd, n int, cause string) {
	t.Helper()
	before := snapshot(t, p.store())
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil || strings.TrimSpace(string(out)) != fmt.Sprint(n) {
		t.Errorf("%v, %q\n%s", err, out, &errs)
	}
	if after := snapshot(t, p.store()); after != before {
		t.Errorf("the store was\n%sand is\n%s", before, after)
	}
	if !strings.Contains(errs.String(), cause) {
		t.Errorf("the log does not say %q:\n%s", cause, &errs)
	}
}

// logToStderr has the next processes log where the test reads it.
func (p *place) logToStderr(t *testing.T) {
	t.Helper()
	text := fmt.Sprintf("device_path = \"swtpm:path=%s\"\nsealed_blob_dir = %q\nlog_file = \"stderr\"\n", p.tpm, p.store())
	ok(t, "configuration", os.WriteFile(p.conf(), []byte(text), 0o600))
	ok(t, "configuration", os.Chmod(p.conf(), 0o644))
}

// TestReadOnlyStore uses a store on a file system that is mounted read-only,
// as on an immutable image. Where only root may mount, permissions do it.
func TestReadOnlyStore(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		readOnlyToken(t)
		p.logToStderr(t)
		cmd := worker(t, "read-only", userPIN)
		cause := "read-only file system: mount the file system read-write"
		if os.Geteuid() == 0 {
			script := `mount --bind "$0" "$0"; mount -o remount,bind,ro "$0"; exec "$@"`
			env := cmd.Env
			cmd = exec.CommandContext(t.Context(), "unshare", append([]string{"--mount", "sh", "-ec", script, p.store()}, cmd.Args...)...)
			cmd.Env = env
		} else {
			cause = "permission denied: chmod u=rwx "
			out, err := exec.Command("chmod", "-R", "a-w", p.store()).CombinedOutput()
			ok(t, "chmod: "+string(out), err)
			t.Cleanup(func() { exec.Command("chmod", "-R", "u+w", p.store()).Run() })
		}
		unwritten(t, p, cmd, 1, cause)
	})
}

// TestGroupReadStore has another user use a store that its group may read, and
// go on doing so after its owner has changed things.
func TestGroupReadStore(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("being another user needs root")
	}
	isolated(t, setup{}, func(t *testing.T, p *place) {
		const user, group = 47110, 47111
		readOnlyToken(t)
		p.logToStderr(t)
		// What else the other user needs: the test, the module and the TPM.
		module, err := modulePath()
		ok(t, "module", err)
		for from, to := range map[string]string{os.Args[0]: "test", module: "icn-p11.so"} {
			data, err := os.ReadFile(from)
			ok(t, "read", err)
			ok(t, "write", os.WriteFile(filepath.Join(p.dir, to), data, 0o755))
		}
		ok(t, "chmod", os.Chmod(p.dir, 0o755))
		ok(t, "chmod", os.Chmod(filepath.Dir(p.tpm), 0o755))
		ok(t, "chmod", os.Chmod(p.tpm, 0o666))
		other := func(gid uint32, pin string) *exec.Cmd {
			cmd := worker(t, "read-only", pin)
			cmd.Path = filepath.Join(p.dir, "test")
			cmd.Env = append(cmd.Env, "ICN_P11_MODULE="+filepath.Join(p.dir, "icn-p11.so"))
			cmd.Dir = p.dir
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: gid}}
			return cmd
		}
		refused := func(gid uint32) {
			t.Helper()
			out, err := other(gid, userPIN).CombinedOutput()
			if err == nil || !bytes.Contains(out, []byte("no token")) || !bytes.Contains(out, []byte("permission denied: run this as root, or set sealed_blob_dir")) {
				t.Errorf("%v\n%s", err, out)
			}
		}
		refused(group)
		for _, args := range [][]string{{"chgrp", "-R", fmt.Sprint(group), p.store()}, {"chmod", "-R", "u=rwX,g=rX,o=", p.store()}} {
			out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
			ok(t, string(out), err)
		}
		refused(group + 1)
		cause := "permission denied: run this as root, or set sealed_blob_dir"
		unwritten(t, p, other(group, userPIN), 1, cause)

		c := &client{Ctx: load(t), t: t}
		c.slot, err = findToken(c.Ctx, "test token")
		ok(t, "the token", err)
		c.s = c.open(openRW)
		ok(t, "C_SetPIN", c.SetPIN(c.s, userPIN, "another pin"))
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, "another pin"))
		c.generate("second", true)
		ok(t, "C_Finalize", c.Finalize())
		unwritten(t, p, other(group, "another pin"), 2, cause)
	})
}
