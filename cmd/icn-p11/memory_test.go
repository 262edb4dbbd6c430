package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/icnblob"
	"github.com/InterCooperative-Network/icn-p11/internal/memscantest"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// Builds of the command: with the wiping of registers, stacks and heap where
// the toolchain has it, and without.
var experiments = []string{"noruntimesecret", "runtimesecret"}

func buildCommand(t *testing.T, experiment string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "icn-p11")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "GOEXPERIMENT="+experiment)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// watched runs the command over a TPM that holds each of its commands back
// until the memory of the process has been looked at.
type watched struct {
	t        *testing.T
	command  string
	dir      string
	store    string
	chip     *swtpmtest.TPM
	needles  []memscantest.Needle // of all secrets so far
	commands int                  // of the last run
	look     func(pid, n int)     // is called while the TPM has not got its nth command
	pid      chan int
}

func newWatched(t *testing.T, command string) *watched {
	w := &watched{t: t, command: command, dir: t.TempDir(), chip: swtpmtest.Start(t)}
	w.store = filepath.Join(w.dir, "store")
	w.pid = make(chan int, 1)
	var running atomic.Int64
	p := startProxy(t, w.chip, func() bool {
		select {
		case pid := <-w.pid:
			running.Store(int64(pid))
		default:
		}
		w.commands++
		w.look(int(running.Load()), w.commands)
		return true
	})
	t.Cleanup(p.stop)
	if err := writeConf(w.conf(), p.device(), w.store); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *watched) conf() string { return filepath.Join(w.dir, "conf") }

// start runs the command with PINs on its standard input, a line each. What it
// prints goes to out.
func (w *watched) start(out *os.File, pins []string, args ...string) *exec.Cmd {
	w.t.Helper()
	in, typed, err := os.Pipe()
	if err != nil {
		w.t.Fatal(err)
	}
	fmt.Fprintln(typed, strings.Join(pins, "\n"))
	typed.Close()
	defer in.Close()
	cmd := exec.Command(w.command, args...)
	cmd.Dir = w.dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, out
	cmd.Env = append(os.Environ(), "ICN_P11_CONF="+w.conf(), "GOTRACEBACK=crash")
	w.commands = 0
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	select {
	case <-w.pid: // of a command that has sent nothing to the TPM
	default:
	}
	w.pid <- cmd.Process.Pid
	return cmd
}

// learn finds out the token's present secrets: the PIN's authorisation values,
// the root secrets, and all seeds.
func (w *watched) learn(user, so string) {
	w.t.Helper()
	must := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	d, err := tpm.New(tpm.Config{Device: w.chip.Device(), KeyHandle: 0x81000001})
	must(err)
	defer d.Close()
	rec := &memscantest.Recorder{Sealer: d}
	s := sealstore.Open(w.store, rec, nil)
	defer s.Close()
	tokens, err := s.Tokens()
	must(err)
	if len(tokens) != 1 {
		w.t.Fatalf("%d tokens", len(tokens))
	}
	tok, err := s.Token(tokens[0].Serial)
	must(err)
	must(tok.Login(sealstore.SO, []byte(so)))
	must(tok.Login(sealstore.User, []byte(user)))
	objects, err := tok.Objects()
	must(err)
	buf, err := secmem.New(32)
	must(err)
	defer buf.Destroy()
	seeds := 0
	for _, o := range objects {
		if _, err := tok.Unseal(o.ID, buf.Bytes()); err == nil {
			seeds++
		} else if !errors.Is(err, sealstore.ErrNotFound) {
			w.t.Fatal(err)
		}
	}
	if seeds == 0 {
		w.t.Fatal("no key was found")
	}
	w.needles = append(w.needles, rec.Needles()...)
	for _, pin := range []string{user, so} {
		w.needles = append(w.needles, memscantest.Mask("a PIN", []byte(pin)))
	}
}

// foreign makes files with keys that other programs have sealed: an ICN blob,
// one of the kind in the clear, and a TSS2 file, with a password.
func (w *watched) foreign(password string) (blob, plain, sealed string) {
	w.t.Helper()
	must := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	file := func(name string, data []byte) string {
		path := filepath.Join(w.dir, name)
		must(os.WriteFile(path, data, 0o600))
		return path
	}
	seeds := make([]byte, 3*32)
	rand.Read(seeds)
	public := func(seed []byte) [32]byte { return [32]byte(ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)) }
	for seed := range slices.Chunk(seeds, 32) {
		w.needles = append(w.needles, memscantest.Mask("a seed from a file", seed))
	}
	w.needles = append(w.needles, memscantest.Mask(memscantest.AuthValue, []byte(password)))

	d, err := tpm.New(tpm.Config{Device: w.chip.Device(), KeyHandle: 0x81000001})
	must(err)
	defer d.Close()
	root, err := d.Parent()
	must(err)
	f, err := d.SealForeign(root, tpm.ICNParent(), nil, seeds[:32])
	must(err)
	blob = file("icn.blob", (&icnblob.Blob{Private: f.Private, Public: f.Public, PublicKey: public(seeds[:32])}).Marshal())

	numbers := strings.ReplaceAll(strings.Trim(fmt.Sprint(seeds[32:64]), "[]"), " ", ",")
	key := strings.ReplaceAll(fmt.Sprint(public(seeds[32:64])), " ", ",")
	w.needles = append(w.needles, memscantest.Mask("the text of a seed", []byte(numbers[:64])))
	plain = file("plain.blob", fmt.Appendf(nil, `{"sealed_data":[%s],"public_key":%s,"pcr_slots":[],"key_handle":null}`, numbers, key))

	path := filepath.Join(w.dir, "seed")
	must(os.WriteFile(path, seeds[64:], 0o600))
	for _, command := range [][]string{
		{"tpm2_createprimary", "-Q", "-C", "o", "-G", "ecc", "-c", "parent.ctx"},
		{"tpm2_create", "-Q", "-C", "parent.ctx", "-i", path, "-p", password, "-u", "pub", "-r", "priv"},
		{"tpm2_flushcontext", "-t"},
		{"tpm2_encodeobject", "-Q", "-C", "parent.ctx", "-u", "pub", "-r", "priv", "-p", "-o", "sealed.pem"},
		{"tpm2_flushcontext", "-t"},
	} {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Dir = w.dir
		cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+w.chip.Device())
		if out, err := cmd.CombinedOutput(); err != nil {
			w.t.Fatalf("%v: %v: %s", command, err, out)
		}
	}
	return blob, plain, filepath.Join(w.dir, "sealed.pem")
}

// blockedWriting waits until a process waits to write what it has to say.
func blockedWriting(t *testing.T, pid int) {
	t.Helper()
	output, errors := fmt.Sprintf("%d 0x1 ", syscall.SYS_WRITE), fmt.Sprintf("%d 0x2 ", syscall.SYS_WRITE)
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		calls, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
		for _, c := range calls {
			if b, err := os.ReadFile(c); err == nil && (strings.HasPrefix(string(b), output) || strings.HasPrefix(string(b), errors)) {
				return
			}
		}
	}
	t.Fatal("the command does not come to its end")
}

// fullPipe gives a pipe that takes nothing before it was read.
func fullPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	size, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	return r, w
}

// run runs the command and gives what its memory held, before every TPM
// command and when it had done everything but say so.
func (w *watched) run(pins []string, args ...string) *memscantest.Memory {
	w.t.Helper()
	m := &memscantest.Memory{}
	w.look = func(pid, n int) { m.Take(w.t, pid, fmt.Sprintf("%s, before TPM command %d", args[0], n)) }
	r, out := fullPipe(w.t)
	defer r.Close()
	cmd := w.start(out, pins, args...)
	out.Close()
	blockedWriting(w.t, cmd.Process.Pid)
	m.Take(w.t, cmd.Process.Pid, args[0]+", at the end")
	said := make(chan string)
	go func() {
		var b strings.Builder
		_, _ = r.WriteTo(&b)
		said <- strings.Trim(b.String(), "\x00")
	}()
	err := cmd.Wait()
	if text := <-said; err != nil {
		w.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, text)
	}
	return m
}

func newPIN() string { return rand.Text()[:24] }

// Whatever the command does with PINs and keys, neither a seed, nor a root or
// approver's secret, nor a PIN is in its memory where root could read it: not
// while it waits for the TPM, and not at its end.
func TestCommandMemory(t *testing.T) {
	for _, experiment := range experiments {
		t.Run(experiment, func(t *testing.T) {
			t.Parallel()
			w := newWatched(t, buildCommand(t, experiment))
			user, so := newPIN(), newPIN()
			user2, user3, so2 := newPIN(), newPIN(), newPIN()
			label := newPIN()
			control := memscantest.Mask("control", []byte(label))
			const fd = "--pin-source=fd:0"
			const soFD = "--so-pin-source=fd:0"
			const newFD = "--new-pin-source=fd:0"
			seed := make([]byte, 32)
			rand.Read(seed)
			der, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(seed))
			if err != nil {
				t.Fatal(err)
			}
			text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
			keyFile := filepath.Join(t.TempDir(), "key.pem")
			if err := os.WriteFile(keyFile, text, 0o600); err != nil {
				t.Fatal(err)
			}
			w.needles = append(w.needles, memscantest.Mask("imported seed", seed), memscantest.Mask("imported file", text[40:72]))
			password := newPIN()
			blob, plain, sealed := w.foreign(password)
			for _, step := range []struct {
				args     []string
				pins     []string
				user, so string // afterwards
			}{
				{[]string{"init", "--label", label, "--recoverable", fd, soFD}, []string{so, user}, user, so},
				{[]string{"key", "generate", label, "--label", "second", fd}, []string{user}, user, so},
				{[]string{"import", label, keyFile, "--label", "imported", fd}, []string{user}, user, so},
				{[]string{"import", label, blob, "--label", "blob", fd}, []string{user}, user, so},
				{[]string{"import", label, plain, "--from-plaintext", "--label", "plain", fd}, []string{user}, user, so},
				{[]string{"import", label, sealed, "--label", "sealed", "--auth-source=fd:0", fd}, []string{password, user}, user, so},
				{[]string{"export-icn-blob", label, "blob", "--out", filepath.Join(w.dir, "exported"), fd, soFD}, []string{so, user}, user, so},
				{[]string{"pin", label, fd, newFD}, []string{user, user2}, user2, so},
				{[]string{"pin", label, "--so", soFD, newFD}, []string{so, so2}, user2, so2},
				{[]string{"pcr", "bind", label, "--pcrs", "7", fd, soFD}, []string{so2, user2}, user2, so2},
				{[]string{"pcr", "rebind", label, "--predict", "7=" + strings.Repeat("00", 32), soFD}, []string{so2}, user2, so2},
				{[]string{"pcr", "confirm", label, soFD}, []string{so2}, user2, so2},
				{[]string{"pcr", "unbind", label, fd, soFD}, []string{so2, user2}, user2, so2},
				{[]string{"pin", label, "--unblock", soFD, newFD}, []string{so2, user3}, user3, so2},
			} {
				m := w.run(step.pins, step.args...)
				w.learn(step.user, step.so)
				for _, h := range m.Search(w.needles) {
					if !h.Locked && h.Name != memscantest.AuthValue {
						t.Error(h)
					}
				}
				if len(m.Search([]memscantest.Needle{control})) == 0 {
					t.Errorf("%v: its arguments were not found: the search is blind", step.args)
				}
			}

			// A core dump in the midst of it.
			for _, n := range []int{w.commands / 3, w.commands / 2, w.commands * 2 / 3, w.commands} {
				core := w.dump(n, []string{so2, user3}, "pin", label, "--unblock", soFD, newFD)
				for _, name := range memscantest.Search(core, w.needles) {
					if name != memscantest.AuthValue {
						t.Errorf("%s in the core dump before TPM command %d", name, n)
					}
				}
				if len(memscantest.Search(core, []memscantest.Needle{control})) == 0 {
					t.Error("the arguments are not in the core dump: the search is blind")
				}
			}

			// Backups. What age holds to encrypt and decrypt a file is on the Go heap,
			// and wiped where the toolchain can do that. Before a file is made, the
			// kernel's generator (vgetrandom) has its key in store.
			pass := newPIN()
			const passFD = "--passphrase-source=fd:0"
			file := filepath.Join(t.TempDir(), "backup")
			ofFile := map[string]bool{memscantest.AuthValue: true}
			for _, step := range []struct {
				args []string
				pins []string
			}{
				{[]string{"backup", "create", label, "--out", file, passFD, fd, soFD}, []string{so2, user3, pass}},
				{[]string{"backup", "verify", file, passFD}, []string{pass}},
				{[]string{"backup", "restore", file, "--label", label, "--replace", "--yes", passFD, fd, soFD}, []string{pass, so2, user3}},
			} {
				m := w.run(step.pins, step.args...)
				if step.args[1] == "create" {
					w.needles = append(w.needles, fileNeedles(t, file, pass, ofFile)...)
				}
				w.learn(user3, so2)
				for _, h := range m.Search(w.needles) {
					switch {
					case h.Locked || h.Name == memscantest.AuthValue:
					case ofFile[h.Name] && (experiment != "runtimesecret" || step.args[1] == "create" && !strings.HasSuffix(h.Where, "at the end")):
					default:
						t.Errorf("%s: %s", step.args[1], h)
					}
				}
				if len(m.Search([]memscantest.Needle{control})) == 0 && step.args[1] != "verify" {
					t.Errorf("%v: its arguments were not found: the search is blind", step.args)
				}
			}
		})
	}
}

// fileNeedles are the secrets of a file that is encrypted with age.
func fileNeedles(t *testing.T, file, pass string, names map[string]bool) (needles []memscantest.Needle) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	header, err := age.ExtractHeader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	id, err := age.NewScryptIdentity(pass)
	if err != nil {
		t.Fatal(err)
	}
	key, err := age.DecryptHeader(header, id)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := hkdf.Key(sha256.New, key, data[len(header):len(header)+16], "payload", 32)
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string][]byte{"the passphrase": []byte(pass), "the key of the file": key, "the key of the stream": stream} {
		needles = append(needles, memscantest.Mask(name, secret))
		names[name] = true
	}
	return needles
}

// dump runs the command up to its nth TPM command and gives its core dump: the
// kernel's where that goes to a file in the working directory, else gdb's.
func (w *watched) dump(n int, pins []string, args ...string) (core []byte) {
	w.t.Helper()
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil {
		w.t.Fatal(err)
	}
	dumped := make(chan error, 1)
	w.look = func(pid, at int) {
		if at != n {
			return
		}
		if strings.ContainsAny(string(pattern), "|/") {
			out, err := exec.Command("gcore", "-o", filepath.Join(w.dir, "core"), fmt.Sprint(pid)).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			dumped <- err
			syscall.Kill(pid, syscall.SIGKILL)
			return
		}
		unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
		dumped <- unix.Prlimit(pid, unix.RLIMIT_CORE, &unlimited, nil)
		syscall.Kill(pid, syscall.SIGABRT)
	}
	cmd := w.start(nil, pins, args...)
	cmd.Wait()
	select {
	case err := <-dumped:
		if err != nil {
			w.t.Fatal(err)
		}
	default:
		w.t.Fatalf("there is no TPM command %d", n)
	}
	files, _ := filepath.Glob(filepath.Join(w.dir, "core*"))
	if len(files) != 1 {
		w.t.Fatalf("core dumps: %v", files)
	}
	if core, err = os.ReadFile(files[0]); err != nil {
		w.t.Fatal(err)
	}
	os.Remove(files[0])
	return core
}
