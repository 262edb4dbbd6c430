package p11tool

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

// TestDamagedFiles damages files of a store in each way: the log names the
// file, and all other objects stay usable.
func TestDamagedFiles(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		c := newToken(t)
		keys := map[string]ed25519.PublicKey{}
		files := map[string][]string{} // of each key: the first is the private one's
		objects := func() []string {
			all, err := filepath.Glob(filepath.Join(p.store(), "tokens", "*", "objects", "*"))
			ok(t, "objects", err)
			return all
		}
		known := map[string]bool{}
		for _, label := range []string{"one", "two", "three"} {
			pub, _ := c.generate(label, true)
			var err error
			keys[label], err = point(c.Ctx, c.s, pub)
			ok(t, "point", err)
			for _, path := range objects() {
				if known[path] {
					continue
				}
				known[path] = true
				b, err := os.ReadFile(path)
				ok(t, "read", err)
				if b[8]&1 != 0 { // the flag of private objects
					files[label] = append([]string{path}, files[label]...)
				} else {
					files[label] = append(files[label], path)
				}
			}
			if len(files[label]) != 2 {
				t.Fatalf("the files of a key: %v", files[label])
			}
		}
		token := filepath.Join(filepath.Dir(filepath.Dir(files["one"][0])), "token")
		usable := func(what string, labels ...string) {
			t.Helper()
			for _, label := range labels {
				found := c.find(attr(pkcs11.CKA_LABEL, label))
				if len(found) != 2 {
					t.Errorf("%s: %d halves of key %s", what, len(found), label)
					continue
				}
				for _, o := range found {
					if c.get(o, pkcs11.CKA_CLASS)[0] == pkcs11.CKO_PRIVATE_KEY {
						ok(t, what+": sign with "+label, signChecked(c.Ctx, c.s, o, keys[label], []byte(what)))
					}
				}
			}
		}
		logged := 0 // how much of the log is of before
		named := func(what string, paths ...string) {
			t.Helper()
			log, err := os.ReadFile(p.log())
			ok(t, "log", err)
			for _, path := range paths {
				if !bytes.Contains(log[logged:], []byte("damaged or altered")) || !bytes.Contains(log[logged:], []byte(path)) {
					t.Errorf("%s: the log does not name %s: %s", what, path, tail(log[logged:], 1500))
				}
			}
			logged = len(log)
		}
		write := func(path string, b []byte) { t.Helper(); ok(t, "write", os.WriteFile(path, b, 0o600)) }
		usable("at first", "one", "two", "three")
		named("at first")

		for i, half := range files["one"] {
			good, err := os.ReadFile(half)
			ok(t, "read", err)
			try := func(what string, bad []byte) {
				t.Helper()
				what = fmt.Sprintf("half %d, %s", i, what)
				write(half, bad)
				if found := c.find(attr(pkcs11.CKA_LABEL, "one")); len(found) != 1 {
					t.Errorf("%s: %d halves are found", what, len(found))
				}
				usable(what, "two", "three")
				named(what, half)
				write(half, good)
			}
			for _, n := range []int{0, 1, 7, 40, len(good) / 2, len(good) - 1} {
				try(fmt.Sprintf("cut to %d bytes", n), good[:n])
			}
			try("a byte more", append(bytes.Clone(good), 0))
			for at := 0; at < len(good); at += 1 + len(good)/23 {
				bad := bytes.Clone(good)
				bad[at] ^= 1 << (at % 8)
				try(fmt.Sprintf("a bit of byte %d", at), bad)
			}
			usable("restored", "one")

			// Exchanged with the file of another object.
			other := files["two"][i]
			theirs, err := os.ReadFile(other)
			ok(t, "read", err)
			write(half, theirs)
			write(other, good)
			for _, label := range []string{"one", "two"} {
				if found := c.find(attr(pkcs11.CKA_LABEL, label)); len(found) != 1 {
					t.Errorf("half %d, exchanged: %d halves of %s", i, len(found), label)
				}
			}
			usable("exchanged", "three")
			named("exchanged", half, other)
			write(half, good)
			write(other, theirs)
			usable("exchanged back", "one", "two", "three")

			// Renamed.
			away := filepath.Join(filepath.Dir(half), strings.Repeat("0a", 16))
			ok(t, "rename", os.Rename(half, away))
			if found := c.find(attr(pkcs11.CKA_LABEL, "one")); len(found) != 1 {
				t.Errorf("half %d, renamed: %d halves", i, len(found))
			}
			usable("renamed", "two", "three")
			named("renamed", away)
			ok(t, "rename", os.Rename(away, half))
			usable("renamed back", "one")
		}

		// A token's file that is damaged takes this token away, not another.
		slot, err := initToken(c.Ctx, "another token")
		ok(t, "another token", err)
		named("another token")
		good, err := os.ReadFile(token)
		ok(t, "read", err)
		for _, n := range []int{0, 3, len(good) / 2, len(good) - 1} {
			write(token, good[:n])
			if _, err := findToken(c.Ctx, "test token"); err == nil {
				t.Errorf("a token is listed whose file has %d of %d bytes", n, len(good))
			}
			found, err := findToken(c.Ctx, "another token")
			if err != nil || found != slot {
				t.Errorf("the other token: %d, %v", found, err)
			}
			named(fmt.Sprintf("token cut to %d bytes", n), token)
		}
		write(token, good)
		c.slot, err = findToken(c.Ctx, "test token")
		ok(t, "restored token", err)
		c.CloseAllSessions(c.slot)
		c.s = c.open(openRW)
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
		usable("restored", "one", "two", "three")
		// Every other byte is authenticated by the PIN.
		ok(t, "C_Logout", c.Logout(c.s))
		bad := bytes.Clone(good)
		bad[len(bad)-1] ^= 1
		write(token, bad)
		want(t, "C_Login with an altered token file", c.Login(c.s, pkcs11.CKU_USER, userPIN), pkcs11.CKR_DEVICE_ERROR)
		named("an altered token file", token)
		write(token, good)
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
		usable("in the end", "one", "two", "three")
	})
}

func init() {
	// churn NAME SECONDS: makes, finds and destroys objects, and says of each
	// what it does.
	workers["churn"] = churn
}

func churn(args []string) error {
	c, s, err := loginWorker("test token")
	if err != nil {
		return err
	}
	defer c.Finalize()
	seconds, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	var mine, gone []string
	for n, end := 0, time.Now().Add(time.Duration(seconds)*time.Second); time.Now().Before(end); n++ {
		label := fmt.Sprintf("%s-%d", args[0], n)
		if n%8 == 0 {
			_, _, err = generate(c, s, label, true)
		} else {
			_, err = c.CreateObject(s, dataTemplate(label, []byte(label), true, n%2 == 0))
		}
		if err != nil {
			return fmt.Errorf("creating %s: %w", label, err)
		}
		fmt.Println("stored", label)
		mine = append(mine, label)
		if n%3 != 0 || len(mine) > 12 {
			label := mine[0]
			mine = mine[1:]
			found, err := find(c, s, attr(pkcs11.CKA_LABEL, label))
			if err != nil || len(found) == 0 {
				return fmt.Errorf("%s, which is to be destroyed: %d objects, %v", label, len(found), err)
			}
			fmt.Println("destroying", label)
			for _, o := range found {
				if err := c.DestroyObject(s, o); err != nil {
					return fmt.Errorf("destroying %s: %w", label, err)
				}
			}
			fmt.Println("destroyed", label)
			gone = append(gone, label)
		}
		// What this process has made is there, what it has destroyed is not,
		// whatever others do.
		there := map[string]bool{}
		all, err := find(c, s)
		if err != nil {
			return err
		}
		for _, o := range all {
			a, err := c.GetAttributeValue(s, o, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, nil)})
			if err == pkcs11.Error(pkcs11.CKR_OBJECT_HANDLE_INVALID) {
				continue // another process destroyed it since
			}
			if err != nil {
				return err
			}
			there[string(a[0].Value)] = true
		}
		for _, label := range mine {
			if !there[label] {
				return fmt.Errorf("%s is lost", label)
			}
		}
		for _, label := range gone {
			if there[label] {
				return fmt.Errorf("%s has come back", label)
			}
		}
	}
	return nil
}

// TestChurn has 8 processes create, find and destroy objects of one token at
// once: nothing that was reported stored is lost, nothing destroyed comes back.
func TestChurn(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		const processes = 8
		seconds := 15
		if os.Getenv(longEnv) != "" {
			seconds = 60
		}
		c := newToken(t)
		stored, destroyed := map[string]bool{}, map[string]bool{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for n := range processes {
			wg.Go(func() {
				cmd := worker(t, "churn", fmt.Sprintf("process %d", n), strconv.Itoa(seconds))
				var errs bytes.Buffer
				cmd.Stderr = &errs
				out, err := cmd.StdoutPipe()
				if err == nil {
					err = cmd.Start()
				}
				if err != nil {
					t.Error(err)
					return
				}
				made := 0
				for lines := bufio.NewScanner(out); lines.Scan(); {
					what, label, _ := strings.Cut(lines.Text(), " ")
					mu.Lock()
					switch what {
					case "stored":
						stored[label] = true
						made++
					case "destroying":
						delete(stored, label)
					case "destroyed":
						destroyed[label] = true
					}
					mu.Unlock()
				}
				if err := cmd.Wait(); err != nil {
					t.Errorf("process %d: %v: %s", n, err, &errs)
				}
				if made < 5 {
					t.Errorf("process %d made %d objects only", n, made)
				}
			})
		}
		wg.Wait()
		there := map[string]bool{}
		for _, o := range c.find() {
			label := string(c.get(o, pkcs11.CKA_LABEL))
			there[label] = true
			if destroyed[label] {
				t.Errorf("%s has come back", label)
			}
			if c.get(o, pkcs11.CKA_CLASS)[0] == pkcs11.CKO_PRIVATE_KEY {
				pub, err := point(c.Ctx, c.s, o)
				ok(t, "point", err)
				ok(t, "sign", signChecked(c.Ctx, c.s, o, pub, []byte(label)))
			}
		}
		for label := range stored {
			if !there[label] {
				t.Errorf("%s is lost", label)
			}
		}
		if log, _ := os.ReadFile(p.log()); bytes.Contains(log, []byte("left out")) {
			t.Errorf("files were found damaged: %s", tail(log, 2000))
		}
		t.Logf("%d objects are left, %d were destroyed", len(stored), len(destroyed))
	})
}
