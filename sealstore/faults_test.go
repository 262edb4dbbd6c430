//go:build !race

package sealstore_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/sealtest"
)

// faultVariable has the test binary do one operation on a store, with strace
// killing it or failing its system calls.
const faultVariable = "ICN_P11_FAULT"

func init() {
	players[faultVariable] = func(task string) error {
		op, dir, _ := strings.Cut(task, "\n")
		return faultChild(op, dir)
	}
	// strace counts system calls by thread.
	if os.Getenv(faultVariable) != "" {
		runtime.LockOSThread()
	}
}

var (
	newBody  = []byte("a changed body")
	faultKey = [32]byte{1, 2, 3}
)

func faultDevice() string { return "mem:" + hex.EncodeToString(faultKey[:]) }

// operations are what is interrupted. The objects are in the order of their
// identifiers; the first is the one that is worked on.
var operations = map[string]func(st *sealstore.Store, tok *sealstore.Token, objs []sealstore.Object) error{
	"create": func(_ *sealstore.Store, tok *sealstore.Token, _ []sealstore.Object) error {
		secret := make([]byte, 32)
		rand.Read(secret)
		_, err := tok.CreateObject(true, secret, secret, nil)
		return err
	},
	"destroy": func(_ *sealstore.Store, tok *sealstore.Token, o []sealstore.Object) error {
		return tok.DeleteObject(o[0].ID)
	},
	"set attribute": func(_ *sealstore.Store, tok *sealstore.Token, o []sealstore.Object) error {
		_, err := tok.UpdateObject(o[0].ID, o[0].Stamp, newBody)
		return err
	},
	"PIN change": func(_ *sealstore.Store, tok *sealstore.Token, _ []sealstore.Object) error {
		return tok.SetPIN(sealstore.User, sealtest.UserPIN, newPIN)
	},
	"SO PIN change": func(_ *sealstore.Store, tok *sealstore.Token, _ []sealstore.Object) error {
		return tok.SetPIN(sealstore.SO, sealtest.SOPIN, newPIN)
	},
	"unblock": func(_ *sealstore.Store, tok *sealstore.Token, _ []sealstore.Object) error {
		if err := tok.Login(sealstore.SO, sealtest.SOPIN); err != nil {
			return err
		}
		return tok.InitUserPIN(newPIN)
	},
	"bind": func(_ *sealstore.Store, tok *sealstore.Token, _ []sealstore.Object) error {
		return tok.Bind(sealtest.UserPIN, sealtest.SOPIN, pcrs, nil)
	},
	"rebind": func(_ *sealstore.Store, tok *sealstore.Token, _ []sealstore.Object) error {
		return tok.Rebind(sealtest.SOPIN, map[int][]byte{7: make([]byte, 32)})
	},
	"unbind": func(_ *sealstore.Store, tok *sealstore.Token, _ []sealstore.Object) error {
		return tok.Unbind(sealtest.UserPIN, sealtest.SOPIN, nil)
	},
	"rename": func(_ *sealstore.Store, tok *sealstore.Token, _ []sealstore.Object) error {
		return tok.Rename(sealtest.SOPIN, "a new label")
	},
	"delete": func(st *sealstore.Store, tok *sealstore.Token, _ []sealstore.Object) error {
		info, err := tok.Info()
		if err != nil {
			return err
		}
		return st.Delete(info.Serial, sealtest.SOPIN)
	},
	"keep offer": func(st *sealstore.Store, _ *sealstore.Token, _ []sealstore.Object) error {
		return st.KeepOffer(sealstore.OfferID{9}, []byte("the secret of an offer"))
	},
	"drop offer": func(st *sealstore.Store, _ *sealstore.Token, _ []sealstore.Object) error {
		return st.DropOffer(faultOffer)
	},
	"start move": func(_ *sealstore.Store, tok *sealstore.Token, _ []sealstore.Object) error {
		m, err := tok.Move()
		if err != nil {
			return err
		}
		m.Offer[0]++
		return tok.StartMove(m)
	},
	"cancel move": func(_ *sealstore.Store, tok *sealstore.Token, _ []sealstore.Object) error {
		return tok.CancelMove()
	},
	"finish move": func(st *sealstore.Store, tok *sealstore.Token, _ []sealstore.Object) error {
		info, err := tok.Info()
		if err != nil {
			return err
		}
		m, err := tok.Move()
		if err != nil {
			return err
		}
		return st.FinishMove(info.Serial, sealtest.SOPIN, m)
	},
	"restore": func(st *sealstore.Store, tok *sealstore.Token, _ []sealstore.Object) error {
		return restoreFirst(st, tok, func(c *sealstore.Contents) { c.Serial, c.Label = "0123456789abcdef", "second" })
	},
	"replace": func(st *sealstore.Store, tok *sealstore.Token, _ []sealstore.Object) error {
		return restoreFirst(st, tok, func(*sealstore.Contents) {})
	},
	"new token": func(st *sealstore.Store, _ *sealstore.Token, _ []sealstore.Object) error {
		_, err := st.Create(sealstore.InitParams{Label: "second", SOPIN: sealtest.SOPIN})
		return err
	},
}

// restoreFirst takes a token out and puts it back, under the PINs that it had.
func restoreFirst(st *sealstore.Store, tok *sealstore.Token, change func(*sealstore.Contents)) error {
	c, err := tok.Export(sealtest.UserPIN, sealtest.SOPIN, nil)
	if err != nil {
		return err
	}
	defer c.Destroy()
	change(c)
	_, err = st.Restore(c, sealstore.RestoreParams{UserPIN: sealtest.UserPIN, SOPIN: sealtest.SOPIN, Replace: true})
	return err
}

// costly are the operations that derive four PINs, and are tested at fewer of
// their system calls.
func costly(op string) bool { return op == "restore" || op == "replace" }

// needsBinding are the operations on a token that is bound.
func needsBinding(op string) bool { return op == "rebind" || op == "unbind" }

// faultChild does an operation, and tells when it begins and what came of it.
func faultChild(op, dir string) error {
	dev, err := openDevice(faultDevice())
	if err != nil {
		return err
	}
	st := sealstore.Open(dir, dev, nil)
	tok, objs, err := openFirst(st, sealtest.UserPIN)
	if err != nil {
		return err
	}
	os.Stdout.WriteString("begin\n")
	switch err := operations[op](st, tok, objs); {
	case err == nil:
		fmt.Println("done")
	case errors.Is(err, sealstore.ErrFull):
		fmt.Println("full")
	case errors.Is(err, sealstore.ErrReadOnly):
		fmt.Println("read-only")
	default:
		fmt.Println("failed:", err)
	}
	return nil
}

// openFirst logs in to the token labelled "first", or renamed, and lists its
// objects.
func openFirst(st *sealstore.Store, pin []byte) (*sealstore.Token, []sealstore.Object, error) {
	list, err := st.Tokens()
	if err != nil {
		return nil, nil, err
	}
	for _, info := range list {
		if info.Label == "second" {
			continue
		}
		tok, err := st.Token(info.Serial)
		if err != nil {
			return nil, nil, err
		}
		if err := tok.Login(sealstore.User, pin); err != nil {
			return nil, nil, err
		}
		objs, err := tok.Objects()
		slices.SortFunc(objs, func(a, b sealstore.Object) int { return bytes.Compare(a.ID[:], b.ID[:]) })
		return tok, objs, err
	}
	return nil, nil, sealstore.ErrNotFound
}

// template makes the store that each run gets a copy of.
func template(t *testing.T, bound bool) (dir string, objs []sealstore.Object) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "template")
	dev, err := openDevice(faultDevice())
	check(t, err)
	st := sealstore.Open(dir, dev, nil)
	p := sealstore.InitParams{Label: "first", SOPIN: sealtest.SOPIN, Recoverable: true}
	if bound {
		p.Binding = &pcrs
	}
	info, err := st.Create(p)
	check(t, err)
	tok, err := st.Token(info.Serial)
	check(t, err)
	check(t, tok.Login(sealstore.SO, sealtest.SOPIN))
	check(t, tok.InitUserPIN(sealtest.UserPIN))
	check(t, tok.Login(sealstore.User, sealtest.UserPIN))
	for range 3 {
		secret := make([]byte, 32)
		rand.Read(secret)
		_, err := tok.CreateObject(true, secret, secret, nil)
		check(t, err)
	}
	check(t, st.KeepOffer(faultOffer, []byte("the secret of another offer")))
	check(t, tok.StartMove(testMove(t, tok)))
	_, objs, err = openFirst(st, sealtest.UserPIN)
	check(t, err)
	return dir, objs
}

// faultOffer is an offer of the template.
var faultOffer = sealstore.OfferID{8}

// calls are the system calls that change a store.
const calls = "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,fchmod,fchmodat,fchown,fchownat"

var tracedCall = regexp.MustCompile(`^\d+ +(\w+)\(`)

// strace runs the operation; inject is what strace does to it.
func strace(t *testing.T, op, dir string, inject ...string) (out string, log []byte) {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "trace")
	exe, err := os.Executable()
	check(t, err)
	args := append([]string{"-f", "-qq", "-o", trace, "-e", "trace=" + calls}, inject...)
	cmd := exec.Command("strace", append(args, exe)...)
	cmd.Env = append(os.Environ(), faultVariable+"="+op+"\n"+dir)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if !strings.HasPrefix(stdout.String(), "begin\n") {
		t.Fatalf("%s %v (Debian package strace): %v: %s%s", op, inject, err, &stdout, &stderr)
	}
	if strings.Contains(stderr.String(), "panic") {
		t.Fatalf("%s %v: %s", op, inject, &stderr)
	}
	log, err = os.ReadFile(trace)
	check(t, err)
	return strings.TrimPrefix(stdout.String(), "begin\n"), log
}

// positions finds the system calls of an operation: for each, its name and
// which one of that name it is in its thread.
func positions(t *testing.T, op, dir string) (all []string) {
	t.Helper()
	out, log := strace(t, op, dir)
	if out != "done\n" {
		t.Fatalf("%s: %s", op, out)
	}
	seen := map[string]int{}
	thread, begun := "", false
	for line := range strings.Lines(string(log)) {
		m := tracedCall.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		tid, _, _ := strings.Cut(line, " ")
		if strings.Contains(line, `"begin\n"`) {
			thread, begun = tid, true
		}
		seen[tid+m[1]]++
		if strings.Contains(line, `"done\n"`) {
			break
		}
		if begun && tid == thread && !strings.Contains(line, `"begin\n"`) {
			all = append(all, fmt.Sprintf("%s:when=%d", m[1], seen[tid+m[1]]))
		}
	}
	return all
}

// TestStoreFaults has each operation killed, and failed by the system, at each
// system call that changes the store: what was reported stored stays, what was
// interrupted is old or new, and the next writer clears up.
func TestStoreFaults(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatalf("%v (Debian package strace)", err)
	}
	for _, op := range slices.Sorted(maps.Keys(operations)) {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			from, objs := template(t, needsBinding(op))
			clone := func() string {
				dir := filepath.Join(t.TempDir(), "store")
				check(t, os.CopyFS(dir, os.DirFS(from)))
				check(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
					if err == nil && e.IsDir() {
						return os.Chmod(path, 0o700)
					}
					if err == nil {
						return os.Chmod(path, 0o600)
					}
					return err
				}))
				return dir
			}
			all := positions(t, op, clone())
			if removes := op == "destroy" || op == "drop offer" || op == "cancel move"; len(all) < 4 && !removes || len(all) < 2 {
				t.Fatalf("only %d system calls: %v", len(all), all)
			}
			errnos := []struct{ name, says string }{{"ENOSPC", "full"}, {"EACCES", "read-only"}, {"EIO", "failed"}}
			for i, at := range all {
				name, when, _ := strings.Cut(at, ":")
				if costly(op) && i%4 != 0 && !strings.HasPrefix(name, "rename") && os.Getenv("ICN_P11_LONG") == "" {
					continue
				}
				dir := clone()
				out, _ := strace(t, op, dir, "-e", fmt.Sprintf("inject=%s:signal=SIGKILL:%s", name, when))
				if out != "" {
					t.Errorf("killed at %s: %s", at, out)
				}
				intact(t, op+" killed at "+at, dir, op, objs, out)

				for n, e := range errnos {
					if n != i%len(errnos) && os.Getenv("ICN_P11_LONG") == "" {
						continue
					}
					dir = clone()
					out, _ = strace(t, op, dir, "-e", fmt.Sprintf("inject=%s:error=%s:%s", name, e.name, when))
					intact(t, fmt.Sprintf("%s, %s at %s", op, e.name, at), dir, op, objs, out)
					// To remove what is unfinished may fail without consequence.
					if what, _, _ := strings.Cut(out, ":"); strings.TrimSpace(what) != e.says && out != "done\n" {
						t.Errorf("%s: %s at %s is reported as %s", op, e.name, at, out)
					}
				}
			}
			t.Logf("%d system calls", len(all))
		})
	}
}

// intact checks a store after an operation that was interrupted; out is what
// was reported of it.
func intact(t *testing.T, what, dir, op string, objs []sealstore.Object, out string) {
	t.Helper()
	dev, err := openDevice(faultDevice())
	check(t, err)
	defer dev.Close()
	st := sealstore.Open(dir, dev, nil)
	done, failed := out == "done\n", out != "" && out != "done\n"

	old, changed := false, false
	tok, now, err := openFirst(st, sealtest.UserPIN)
	old = err == nil
	if op == "PIN change" || op == "unblock" {
		if errors.Is(err, sealstore.ErrAuth) {
			tok, now, err = openFirst(st, newPIN)
			changed = err == nil
		}
	}
	if op == "delete" || op == "finish move" {
		if errors.Is(err, sealstore.ErrNotFound) {
			if failed {
				// The removal of the leftovers failed; the token is gone all the same.
				done = true
			}
			list, lerr := os.ReadDir(filepath.Join(dir, "tokens"))
			if lerr != nil || slices.ContainsFunc(list, func(e fs.DirEntry) bool { return !strings.HasPrefix(e.Name(), ".tmp-") }) {
				t.Errorf("%s: the token is not listed, and something is left: %v, %v", what, list, lerr)
			}
			return
		}
		if done {
			t.Errorf("%s: a deleted token is there", what)
		}
	}
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if (op == "PIN change" || op == "unblock") && done && !changed || op != "PIN change" && op != "unblock" && !old {
		t.Errorf("%s: the PIN is not the one that was reported", what)
	}
	if op == "SO PIN change" {
		err := tok.Login(sealstore.SO, newPIN)
		if done && err != nil {
			t.Errorf("%s: the new SO PIN: %v", what, err)
		}
		if err != nil {
			err = tok.Login(sealstore.SO, sealtest.SOPIN)
		}
		if err != nil {
			t.Errorf("%s: neither SO PIN opens the token: %v", what, err)
		}
		check(t, tok.Login(sealstore.User, sealtest.UserPIN))
	}
	found := map[sealstore.ID]sealstore.Object{}
	for _, o := range now {
		found[o.ID] = o
	}
	secret, err := secmem.New(sealstore.MaxSecret)
	check(t, err)
	defer secret.Destroy()
	for i, o := range objs {
		got, there := found[o.ID]
		delete(found, o.ID)
		switch first := i == 0; {
		case first && op == "destroy" && !there:
			continue
		case first && op == "destroy" && done:
			t.Errorf("%s: a destroyed object is there", what)
		case !there:
			t.Errorf("%s: object %x is lost", what, o.ID)
			continue
		case first && op == "set attribute" && bytes.Equal(got.Body, newBody):
		case !bytes.Equal(got.Body, o.Body), first && op == "set attribute" && done:
			t.Errorf("%s: object %x has the body %q", what, o.ID, got.Body)
		}
		n, err := tok.Unseal(o.ID, secret.Bytes())
		if err != nil || !bytes.Equal(secret.Bytes()[:n], o.Body) {
			t.Errorf("%s: object %x does not open: %v", what, o.ID, err)
		}
	}
	for id, o := range found {
		n, err := tok.Unseal(id, secret.Bytes())
		if op != "create" || err != nil || !bytes.Equal(secret.Bytes()[:n], o.Body) {
			t.Errorf("%s: object %x appeared: %v", what, id, err)
		}
	}
	if op == "create" && done && len(found) != 1 {
		t.Errorf("%s: %d objects were made", what, len(found))
	}
	migrating(t, what, st, tok, op, done, failed)
	// The next writers clear up.
	_, err = tok.CreateObject(true, []byte("next"), []byte("secret"), nil)
	if err == nil {
		err = tok.SetPIN(sealstore.SO, sealtest.SOPIN, sealtest.SOPIN)
	}
	if errors.Is(err, sealstore.ErrAuth) && op == "SO PIN change" {
		err = tok.SetPIN(sealstore.SO, newPIN, newPIN)
	}
	if err == nil {
		_, err = st.Create(sealstore.InitParams{Label: "third", SOPIN: sealtest.SOPIN})
	}
	if err == nil {
		err = st.KeepOffer(sealstore.OfferID{10}, []byte("secret"))
	}
	if err != nil {
		t.Errorf("%s: the next writer: %v", what, err)
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(e.Name(), ".tmp-") {
			t.Errorf("%s: %s is left", what, path)
		}
		return err
	})
	check(t, err)
}

// migrating checks that offers and the pending move are there, or not, as a
// whole.
func migrating(t *testing.T, what string, st *sealstore.Store, tok *sealstore.Token, op string, done, failed bool) {
	t.Helper()
	buf, err := secmem.New(sealstore.MaxSecret)
	check(t, err)
	defer buf.Destroy()
	for id, made := range map[sealstore.OfferID]bool{faultOffer: op != "drop offer", {9}: false} {
		_, err := st.OpenOffer(id, buf.Bytes())
		switch {
		case err != nil && !errors.Is(err, sealstore.ErrNotFound),
			err != nil && made,
			err != nil && op == "keep offer" && done,
			err == nil && id == faultOffer && op == "drop offer" && done:
			t.Errorf("%s: offer %x: %v", what, id, err)
		}
	}
	m, err := tok.Move()
	if op == "replace" && err == nil && m == nil {
		if failed {
			t.Errorf("%s: the token was replaced all the same", what)
		}
		return // it was that of the token that has gone
	}
	switch {
	case err != nil, m == nil && op != "cancel move", m != nil && op == "cancel move" && done, op == "start move" && done && m.Offer[0] != 2:
		t.Errorf("%s: the pending move: %v, %v", what, m, err)
	}
}
