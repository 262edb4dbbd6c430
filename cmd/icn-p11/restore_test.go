package main

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"filippo.io/age"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/p11"
)

// machine is a TPM with a store, and a configuration that names both.
type machine struct {
	t     *testing.T
	store string
}

// newMachine makes a machine the one that the command runs on.
func newMachine(t *testing.T, device string) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{t, filepath.Join(dir, "store")}
	conf := filepath.Join(dir, "conf")
	if err := writeConf(conf, device, m.store); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ICN_P11_CONF", conf)
	t.Setenv("USER_PIN", "user-1234")
	t.Setenv("SO_PIN", "so-1234")
	return m
}

// pins are where the PINs of all tokens here come from.
var pins = []string{"--pin-source", "env:USER_PIN", "--so-pin-source", "env:SO_PIN"}

// run runs the command, which has to succeed, and gives what it printed.
func (m *machine) run(args ...string) string {
	m.t.Helper()
	var stdout, stderr bytes.Buffer
	if status := run(args, &stdout, &stderr); status != exitOK {
		m.t.Fatalf("%s: %s", strings.Join(args, " "), &stderr)
	}
	return stdout.String()
}

// fails runs the command, which has to fail and to leave the store as it is,
// and gives what it said.
func (m *machine) fails(args ...string) string {
	m.t.Helper()
	before := m.tree()
	var stdout, stderr bytes.Buffer
	if status := run(args, &stdout, &stderr); status == exitOK {
		m.t.Errorf("%s: succeeded: %s", strings.Join(args, " "), &stderr)
	}
	if after := m.tree(); !maps.Equal(before, after) {
		m.t.Errorf("%s: the store has changed: %v, before %v", strings.Join(args, " "), after, before)
	}
	return stderr.String()
}

// tree sums up all files and directories of the store, but not locks, which are
// empty, nor the statistics, which count what failed as well.
func (m *machine) tree() map[string]string {
	all := map[string]string{}
	err := filepath.WalkDir(m.store, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path == m.store {
			return nil
		}
		if err != nil || e.Name() == "lock" || e.Name() == "statistics" {
			return err
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		var data []byte
		if !e.IsDir() {
			data, err = os.ReadFile(path)
		}
		all[path] = fmt.Sprintf("%v %x", st.Mode(), sha256.Sum256(data))
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return all
}

// inside runs f in the module, logged in to the one token.
func (m *machine) inside(f func(m *module, s p11.SessionHandle)) {
	m.t.Helper()
	p, err := (&app{}).open()
	if err != nil {
		m.t.Fatal(err)
	}
	defer p.tpm.Close()
	tokens, err := p.store.Tokens()
	if err != nil || len(tokens) != 1 {
		m.t.Fatalf("tokens: %v, %v", tokens, err)
	}
	err = p.inModule(tokens[0], func(mod *module, s p11.SessionHandle) error {
		if err := mod.Login(s, p11.CKU_USER, []byte(os.Getenv("USER_PIN"))); err != nil {
			return err
		}
		f(mod, s)
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

// snapshot is every attribute of every object, and for each private key its
// signature of a message. Ed25519 gives the same one each time.
func (m *machine) snapshot() map[string]string {
	m.t.Helper()
	all := map[string]string{}
	m.inside(func(mod *module, s p11.SessionHandle) {
		objects, err := mod.find(s)
		if err != nil {
			m.t.Fatal(err)
		}
		for _, o := range objects {
			id, err := mod.attribute(s, o, p11.CKA_UNIQUE_ID)
			if err != nil {
				m.t.Fatal(err)
			}
			for t := range p11.AttributeType(0x220) {
				v, err := mod.attribute(s, o, t)
				all[fmt.Sprintf("%s %#x", id, t)] = fmt.Sprintf("%x %v", v, err)
			}
			if class, _ := mod.attribute(s, o, p11.CKA_CLASS); !bytes.Equal(class, ulong(p11.CKO_PRIVATE_KEY)) {
				continue
			}
			sig, err := (&signer{mod, s, o, nil}).Sign(nil, []byte("a message"), crypto.Hash(0))
			if err != nil {
				m.t.Fatal(err)
			}
			all[string(id)+" signature"] = fmt.Sprintf("%x", sig)
		}
	})
	return all
}

// furnish gives the token data objects, which no verb makes.
func (m *machine) furnish() {
	m.inside(func(mod *module, s p11.SessionHandle) {
		for i, private := range [][]byte{{0}, {1}} {
			_, err := mod.CreateObject(s, []p11.Attribute{
				{Type: p11.CKA_CLASS, Value: ulong(p11.CKO_DATA)},
				{Type: p11.CKA_TOKEN, Value: []byte{1}},
				{Type: p11.CKA_PRIVATE, Value: private},
				{Type: p11.CKA_LABEL, Value: []byte("data")},
				{Type: p11.CKA_APPLICATION, Value: []byte("drill")},
				{Type: p11.CKA_VALUE, Value: bytes.Repeat([]byte{byte(i)}, 5000)},
			})
			if err != nil {
				m.t.Fatal(err)
			}
		}
	})
}

// offline makes a key that opens backups, and gives its file and recipient.
func offline(t *testing.T) (file, recipient string) {
	t.Helper()
	k, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "offline.key")
	if err := os.WriteFile(file, []byte(k.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, k.Recipient().String()
}

// Everything of a token comes back: on another TPM, as often as one likes, and
// never half of it.
func TestRecoveryDrill(t *testing.T) {
	identity, recipient := offline(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "node.backup")
	m := newMachine(t, swtpmtest.Start(t).Device())
	did := m.run(append([]string{"init", "--label", "node", "--recoverable"}, pins...)...)
	m.run("key", "generate", "node", "--label", "second", pins[0], pins[1])
	seed := filepath.Join(dir, "seed")
	if err := os.WriteFile(seed, bytes.Repeat([]byte{7}, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	m.run("import", "node", seed, "--label", "third", pins[0], pins[1])
	crt := filepath.Join(dir, "crt")
	if err := os.WriteFile(crt, []byte(m.run("cert", "request", "node", "--subject", "CN=node", "--self-signed", pins[0], pins[1])), 0o600); err != nil {
		t.Fatal(err)
	}
	m.run("cert", "import", "node", crt, pins[0], pins[1])
	m.furnish()
	want := m.snapshot()
	if sigs := strings.Count(fmt.Sprint(want), " signature:"); sigs != 3 || len(want) < 9*0x220 {
		t.Fatalf("%d signatures, %d attributes", sigs, len(want))
	}
	create := append([]string{"backup", "create", "node", "--out", file, "--recipient", recipient}, pins...)
	m.run(create...)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	restore := append([]string{"backup", "restore", file, "--identity", identity}, pins...)

	// Twice, since what was restored is as good as the first.
	for range 2 {
		old := m
		m = newMachine(t, swtpmtest.Start(t).Device())
		if err := os.RemoveAll(old.store); err != nil {
			t.Fatal(err)
		}
		damage(t, m, data, dir, identity)
		if got := m.run(restore...); got != did {
			t.Errorf("DID %s, want %s", got, did)
		}
		if got := m.snapshot(); !maps.Equal(got, want) {
			for k, v := range want {
				if got[k] != v {
					t.Errorf("%s: %s, was %s", k, got[k], v)
				}
			}
			t.Errorf("%d attributes, %d before", len(got), len(want))
		}
		m.fails(restore...)
		m.fails(append(restore, "--replace")...) // nobody says yes
		damage(t, m, data, dir, identity, "--replace", "--yes")
		m.run(append(create, "--force")...)
		if data, err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	before := m.tree()
	m.run(append(restore, "--replace", "--yes")...)
	if after := m.tree(); maps.Equal(before, after) {
		t.Error("nothing was replaced")
	}
	if got := m.snapshot(); !maps.Equal(got, want) {
		t.Error("the token that was replaced is another")
	}
	// An object that cannot be read is no backup, and is named.
	objects, err := filepath.Glob(filepath.Join(m.store, "tokens", "*", "objects", "*"))
	if err != nil || len(objects) != 9 {
		t.Fatalf("%d objects, %v", len(objects), err)
	}
	if err := os.Truncate(objects[0], 100); err != nil {
		t.Fatal(err)
	}
	create[4] = filepath.Join(dir, "damaged.backup")
	if said := m.fails(create...); !strings.Contains(said, filepath.Base(objects[0])) {
		t.Errorf("which object is damaged is not said: %s", said)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*damaged.backup*")); len(left) > 0 || err != nil {
		t.Errorf("%v is left, %v", left, err)
	}
}

// damage tries to restore what is no backup any more.
func damage(t *testing.T, m *machine, data []byte, dir, identity string, flags ...string) {
	t.Helper()
	file := filepath.Join(dir, "damaged")
	try := func(what string, p []byte, identity string) {
		t.Helper()
		if err := os.WriteFile(file, p, 0o600); err != nil {
			t.Fatal(err)
		}
		args := append([]string{"backup", "restore", file, "--identity", identity}, pins...)
		if said := m.fails(append(args, flags...)...); !strings.HasPrefix(said, "icn-p11: "+file+": ") {
			t.Errorf("%s: %s", what, said)
		}
	}
	header := bytes.Index(data, []byte("\n---")) + 1
	for _, n := range []int{0, 1, 10, header, header + 10, header + 48, header + 64, header + 100, len(data) / 2, len(data) - 16, len(data) - 1} {
		try(fmt.Sprintf("cut at %d", n), data[:n], identity)
	}
	for _, n := range []int{5, 30, header - 10, header + 10, header + 50, header + 70, len(data) / 2, len(data) - 40, len(data) - 1} {
		p := bytes.Clone(data)
		p[n] ^= 4
		try(fmt.Sprintf("altered at %d", n), p, identity)
	}
	try("longer", append(bytes.Clone(data), 0), identity)
	stranger, _ := offline(t)
	try("for somebody else", data, stranger)
}

// Whichever command is the last that the TPM answers, the whole token is
// restored or none of it.
func TestRestoreIsAllOrNothing(t *testing.T) {
	identity, recipient := offline(t)
	file := filepath.Join(t.TempDir(), "node.backup")
	m := newMachine(t, swtpmtest.Start(t).Device())
	m.run(append([]string{"init", "--label", "node", "--recoverable"}, pins...)...)
	m.run(append([]string{"backup", "create", "node", "--out", file, "--recipient", recipient}, pins...)...)
	restore := append([]string{"backup", "restore", file, "--identity", identity}, pins...)
	step := 7
	if os.Getenv("ICN_P11_LONG") != "" {
		step = 1
	}
	const most = 500
	for n := 0; n <= most; n += step {
		done := false
		if !t.Run(strconv.Itoa(n), func(t *testing.T) {
			chip := swtpmtest.Start(t)
			var left atomic.Int64
			left.Store(int64(n))
			proxy := startProxy(t, chip, func() bool { return left.Add(-1) >= 0 })
			defer proxy.stop()
			m := newMachine(t, proxy.device())
			var stdout, stderr bytes.Buffer
			switch status := run(restore, &stdout, &stderr); {
			case status == exitOK:
				done = true
			case strings.Contains(stderr.String(), "is restored, but does not sign"):
				// The TPM has gone after the token was complete.
			case status != exitFailed || stdout.Len() > 0 || stderr.Len() == 0:
				t.Fatalf("status %d, %q, %s", status, &stdout, &stderr)
			default:
				if left, err := os.ReadDir(filepath.Join(m.store, "tokens")); len(left) > 0 {
					t.Fatalf("%v is left, %v: %s", left, err, &stderr)
				}
			}
		}) || done {
			return
		}
	}
	t.Errorf("restoring does not end after %d commands", most)
}
