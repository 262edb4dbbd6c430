package p11tool

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
)

func init() {
	workers["slots"] = func([]string) error {
		c, err := loadModule()
		if err != nil {
			return err
		}
		slots, err := c.GetSlotList(false)
		fmt.Println(slots)
		return err
	}
	workers["init"] = func(args []string) error {
		c, err := loadModule()
		if err != nil {
			return err
		}
		slot, err := initToken(c, args[0])
		fmt.Println(slot)
		return err
	}
	workers["generate-at-signal"] = generateAtSignal
	workers["init-at-signal"] = initAtSignal
	workers["change"] = change
}

// loginWorker opens a logged-in RW session of the token with a label.
func loginWorker(label string) (*pkcs11.Ctx, pkcs11.SessionHandle, error) {
	c, err := loadModule()
	if err != nil {
		return nil, 0, err
	}
	slot, err := findToken(c, label)
	if err != nil {
		return nil, 0, err
	}
	s, err := c.OpenSession(slot, openRW)
	if err != nil {
		return nil, 0, err
	}
	return c, s, c.Login(s, pkcs11.CKU_USER, userPIN)
}

// generateAtSignal says that it is ready, waits for a byte on its standard
// input and then makes, uses and reports one key pair.
func generateAtSignal(args []string) error {
	c, s, err := loginWorker("test token")
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := io.ReadFull(os.Stdin, make([]byte, 1)); err != nil {
		return err
	}
	pub, priv, err := generate(c, s, args[0], true)
	if err != nil {
		return fmt.Errorf("C_GenerateKeyPair: %w", err)
	}
	key, err := point(c, s, pub)
	if err != nil {
		return err
	}
	if err := signChecked(c, s, priv, key, []byte(args[0])); err != nil {
		return err
	}
	fmt.Println(hex.EncodeToString(key))
	return c.Finalize()
}

// initAtSignal is generateAtSignal for tokens.
func initAtSignal(args []string) error {
	c, err := loadModule()
	if err != nil {
		return err
	}
	fmt.Println("ready")
	if _, err := io.ReadFull(os.Stdin, make([]byte, 1)); err != nil {
		return err
	}
	// Another process may have taken the free slot since it was listed; then
	// the token there refuses this SO PIN, or the slot has a session already.
	// Whoever loses looks for the free slot again.
	for try := 0; ; try++ {
		slot, err := freeSlot(c)
		if err != nil {
			return err
		}
		err = c.InitToken(slot, soPIN+args[0], "token "+args[0])
		if err == nil {
			fmt.Println(slot)
			return c.Finalize()
		}
		if try == 20 {
			return fmt.Errorf("C_InitToken: %w", err)
		}
	}
}

// crowd starts n workers, waits until all are ready, lets them go at once
// and returns what each printed.
func crowd(t *testing.T, n int, name, label string) []string {
	t.Helper()
	type member struct {
		cmd  *exec.Cmd
		gate io.WriteCloser
		out  *bufio.Reader
		errs *bytes.Buffer
	}
	members := make([]member, n)
	for i := range members {
		m := &members[i]
		m.cmd = worker(t, name, fmt.Sprintf("%s%d", label, i))
		m.errs = &bytes.Buffer{}
		m.cmd.Stderr = m.errs
		var err error
		m.gate, err = m.cmd.StdinPipe()
		ok(t, "pipe", err)
		out, err := m.cmd.StdoutPipe()
		ok(t, "pipe", err)
		m.out = bufio.NewReader(out)
		ok(t, "start", m.cmd.Start())
	}
	for i, m := range members {
		if line, err := m.out.ReadString('\n'); err != nil || line != "ready\n" {
			m.cmd.Wait()
			t.Fatalf("process %d: %q, %v\n%s", i, line, err, m.errs)
		}
	}
	for _, m := range members {
		m.gate.Write([]byte{1})
	}
	said := make([]string, n)
	for i, m := range members {
		rest, _ := io.ReadAll(m.out)
		said[i] = strings.TrimSpace(string(rest))
		if err := m.cmd.Wait(); err != nil {
			t.Errorf("process %d: %v\n%s", i, err, m.errs)
		}
	}
	return said
}

// TestParallelGeneration has 24 processes make a key in one token at once.
func TestParallelGeneration(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		const n = 24
		c := newToken(t)
		keys := crowd(t, n, "generate-at-signal", "key ")
		if t.Failed() {
			return
		}
		// This process was initialised before; it sees them without more.
		for i, text := range keys {
			label := attr(pkcs11.CKA_LABEL, fmt.Sprintf("key %d", i))
			pub := c.find(attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), label)
			priv := c.find(attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), label)
			if len(pub) != 1 || len(priv) != 1 {
				t.Errorf("key %d: %d public and %d private halves", i, len(pub), len(priv))
				continue
			}
			key, err := point(c.Ctx, c.s, pub[0])
			ok(t, "public key", err)
			equal(t, "public key", key, unhex(t, text))
			if err := signChecked(c.Ctx, c.s, priv[0], ed25519.PublicKey(key), []byte("afterwards")); err != nil {
				t.Errorf("key %d: %v", i, err)
			}
		}
		if all := c.find(); len(all) != 2*n {
			t.Errorf("the token holds %d objects, want %d", len(all), 2*n)
		}
	})
}

// TestParallelInitToken has 6 processes make a token at once: each gets a
// slot of its own, and none loses its token.
func TestParallelInitToken(t *testing.T) {
	// Who loses the race for a slot is refused without a try of the winner's
	// SO PIN: six losers that tried would lock the TPM, and with one SO PIN
	// for all they would wipe each other's tokens.
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		slots := crowd(t, 6, "init-at-signal", "")
		if t.Failed() {
			return
		}
		c := load(t)
		seen := map[string]bool{}
		for i, slot := range slots {
			if seen[slot] {
				t.Errorf("slot %s was given twice", slot)
			}
			seen[slot] = true
			got, err := findToken(c, fmt.Sprintf("token %d", i))
			if err != nil || fmt.Sprint(got) != slot {
				t.Errorf("token %d is in slot %d (%v), its maker saw %s", i, got, err, slot)
			}
		}
	})
}

// change does one thing to the token's objects.
func change(args []string) error {
	c, s, err := loginWorker("test token")
	if err != nil {
		return err
	}
	label := attr(pkcs11.CKA_LABEL, args[1])
	found, err := find(c, s, label)
	if err != nil {
		return err
	}
	switch args[0] {
	case "generate":
		_, _, err = generate(c, s, args[1], true)
	case "data":
		_, err = c.CreateObject(s, dataTemplate(args[1], []byte(args[2]), true, args[3] == "private"))
	case "rename":
		for _, o := range found {
			if err := c.SetAttributeValue(s, o, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, args[2])}); err != nil {
				return err
			}
		}
	case "destroy":
		for _, o := range found {
			if err := c.DestroyObject(s, o); err != nil {
				return err
			}
		}
	default:
		err = fmt.Errorf("change %q?", args[0])
	}
	if err != nil {
		return err
	}
	return c.Finalize()
}

// TestOtherProcess has another process change a token: each change shows at
// the next C_FindObjectsInit.
func TestOtherProcess(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		count := func(what string, n int, template ...*pkcs11.Attribute) []pkcs11.ObjectHandle {
			t.Helper()
			found := c.find(template...)
			if len(found) != n {
				t.Fatalf("%s: %d objects, want %d", what, len(found), n)
			}
			return found
		}
		count("at first", 0)

		runWorker(t, "change", "generate", "theirs")
		label := attr(pkcs11.CKA_LABEL, "theirs")
		count("generated", 2, label)
		priv := count("generated", 1, label, attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))[0]
		key, err := point(c.Ctx, c.s, priv)
		ok(t, "CKA_EC_POINT of a private key", err)
		ok(t, "sign with another process's key", signChecked(c.Ctx, c.s, priv, key, []byte("x")))

		runWorker(t, "change", "rename", "theirs", "renamed")
		count("renamed", 0, label)
		if again := count("renamed", 2, attr(pkcs11.CKA_LABEL, "renamed")); again[0] != priv && again[1] != priv {
			t.Errorf("the handle of a renamed key changed from %d to %v", priv, again)
		}

		runWorker(t, "change", "data", "note", "first", "public")
		runWorker(t, "change", "data", "secret note", "second", "private")
		o := count("data", 1, attr(pkcs11.CKA_LABEL, "note"))[0]
		equal(t, "value", c.get(o, pkcs11.CKA_VALUE), []byte("first"))
		o2 := count("private data", 1, attr(pkcs11.CKA_LABEL, "secret note"))[0]
		equal(t, "value", c.get(o2, pkcs11.CKA_VALUE), []byte("second"))

		runWorker(t, "change", "destroy", "renamed")
		count("destroyed", 0, attr(pkcs11.CKA_LABEL, "renamed"))
		_, err = c.GetAttributeValue(c.s, priv, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, nil)})
		want(t, "an attribute of what another process destroyed", err, pkcs11.CKR_OBJECT_HANDLE_INVALID)
		want(t, "C_SignInit with what another process destroyed", c.SignInit(c.s, mech(ckmEdDSA), priv),
			pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID)

		// And the other way round, with a process that has nothing cached.
		c.create(dataTemplate("mine", []byte("x"), true, false))
		runWorker(t, "change", "rename", "mine", "theirs now")
		count("renamed", 1, attr(pkcs11.CKA_LABEL, "theirs now"))
	})
}

// TestOtherProcessWhileSigning destroys a key behind the back of a process
// that signs with it: a clean error or, before the next search, a signature.
func TestOtherProcessWhileSigning(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		_, priv := c.generate("short lived", true)
		ok(t, "C_SignInit", c.SignInit(c.s, mech(ckmEdDSA), priv))
		runWorker(t, "change", "destroy", "short lived")
		_, err := c.Sign(c.s, []byte("x"))
		want(t, "C_Sign after the key is destroyed", err, pkcs11.CKR_OK, pkcs11.CKR_KEY_HANDLE_INVALID,
			pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_FUNCTION_FAILED, pkcs11.CKR_DEVICE_ERROR)
		c.find()
		want(t, "C_SignInit after the key is destroyed", c.SignInit(c.s, mech(ckmEdDSA), priv),
			pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID)
	})
}
