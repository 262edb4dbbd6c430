package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const pin = "user-pin-7"

// Subjects, as the report calls them.
const (
	unlocked = "icn-p11 Ed25519, unlocked"
	sealed   = "icn-p11 Ed25519, unsealed each time"
	alone    = "icn-p11 Ed25519, no snapshot" // a start that finds none
	icnP256  = "icn-p11 P-256"
	softEd   = "SoftHSM2 Ed25519"
	softP256 = "SoftHSM2 P-256"
	tpm2P256 = "tpm2-pkcs11 P-256"
	shared   = "icn-p11 Ed25519, unsealed each time, shared TPM"

	bare       = "bare edwards25519 signature"
	stdSign    = "crypto/ed25519"
	stdVerify  = "crypto/ed25519.Verify"
	stdSHA256  = "crypto/sha256"
	stdRandom  = "crypto/rand"
	twoFsyncs  = "two fsyncs"
	unsealSign = "TPM2_Unseal and bare signature"
)

// bench is a directory with everything that is measured in it.
type bench struct {
	dir     string
	quick   bool
	module  string
	softhsm string
	tpm2    string
	env     []string
	tpms    []*exec.Cmd
}

// references are the functions of the library of reference points, and the
// operations that each stands beside.
var references = []struct{ name, function, operations string }{
	{bare, "reference_edwards25519", "sign-32,sign-32-threads-2,sign-32-threads-8,sign-1MiB,sign-1MiB-threads-2,sign-1MiB-threads-8"},
	{stdSign, "reference_ed25519", "sign-32,sign-1MiB"},
	{unsealSign, "reference_unseal", "sign-32"},
	{stdVerify, "reference_verify", "verify-32"},
	{stdSHA256, "reference_sha256", "digest-32,digest-1MiB"},
	{stdRandom, "reference_random", "random-32"},
	{twoFsyncs, "reference_fsyncs", "create"},
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// subject makes the argument of the host.
func (b *bench) subject(name, module, key, token string) string {
	return strings.Join([]string{name, module, key, token, pin}, "|")
}

func (b *bench) references() (args []string) {
	for _, r := range references {
		args = append(args, strings.Join([]string{r.name, b.path("references.so"), "reference", r.function, "," + r.operations + ","}, "|"))
	}
	return args
}

// find gives the first of some paths that exists.
func find(paths ...string) (string, error) {
	for _, p := range paths {
		if m, _ := filepath.Glob(p); len(m) > 0 {
			return m[0], nil
		}
	}
	return "", fmt.Errorf("none of these exists (test/deps.sh bench): %s", strings.Join(paths, ", "))
}

// prepare builds the hosts and starts the TPMs.
func prepare(quick bool) (b *bench, err error) {
	b = &bench{quick: quick}
	if b.module, err = filepath.Abs(getenv("MODULE", "build/icn-p11.so")); err != nil {
		return nil, err
	}
	if b.softhsm, err = find("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/*/softhsm/libsofthsm2.so"); err != nil {
		return nil, err
	}
	if b.tpm2, err = find("/usr/lib/*/pkcs11/libtpm2_pkcs11.so"); err != nil {
		return nil, err
	}
	// Short, for the addresses of sockets.
	if b.dir, err = os.MkdirTemp("", "bench"); err != nil {
		return nil, err
	}
	if err := b.build(); err != nil {
		return b, err
	}
	// One for each client that keeps its connection: swtpm serves one at a time.
	for _, name := range []string{"icn", "tpm2", "reference"} {
		if err := b.startTPM(name); err != nil {
			return b, err
		}
	}
	for _, name := range []string{"softhsm", "tpm2store"} {
		if err := os.Mkdir(b.path(name), 0o700); err != nil {
			return b, err
		}
	}
	b.env = append(os.Environ(), b.icnEnv("steady", ",exclusive"), b.softEnv("steady"),
		"TPM2_PKCS11_STORE="+b.path("tpm2store"), "TPM2_PKCS11_BACKEND=esysdb", "TPM2_PKCS11_LOG_LEVEL=0", "TSS2_LOG=all+NONE",
		"TPM2_PKCS11_TCTI=swtpm:path="+b.path("tpm2.s"), "BENCH_TPM="+b.path("reference.s"), "BENCH_DIR="+b.dir)
	return b, nil
}

func (b *bench) build() error {
	cc := getenv("CC", "cc")
	if out, err := exec.Command(cc, "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", b.path("host"), "bench/host/host.c", "-ldl").CombinedOutput(); err != nil {
		return fmt.Errorf("building the host: %w\n%s", err, out)
	}
	if out, err := exec.Command("go", "build", "-buildmode=c-shared", "-o", b.path("references.so"), "./bench/references").CombinedOutput(); err != nil {
		return fmt.Errorf("building the references: %w\n%s", err, out)
	}
	return nil
}

func getenv(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// startTPM starts an swtpm with a socket at NAME.s.
func (b *bench) startTPM(name string) error {
	state := b.path(name + ".state")
	if err := os.Mkdir(state, 0o700); err != nil {
		return err
	}
	socket := b.path(name + ".s")
	c := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state, "--server", "type=unixio,path="+socket,
		"--ctrl", "type=unixio,path="+socket+".ctrl", "--flags", "not-need-init,startup-clear")
	if err := c.Start(); err != nil {
		return err
	}
	b.tpms = append(b.tpms, c)
	for range 1000 {
		if conn, err := net.Dial("unix", socket); err == nil {
			return conn.Close()
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("swtpm does not listen at %s", socket)
}

func (b *bench) close() {
	for _, c := range b.tpms {
		c.Process.Kill()
		c.Wait()
	}
	os.RemoveAll(b.dir)
}

// icnEnv writes a configuration for a store, and gives the variable that names it.
func (b *bench) icnEnv(store, options string) string {
	return b.icnConf(store, "icn.s"+options, b.path("icn-"+store))
}

func (b *bench) icnConf(name, device, store string) string {
	path := b.path(name + ".conf")
	text := fmt.Sprintf("device_path = \"swtpm:path=%s\"\nsealed_blob_dir = %q\nlog_file = %q\n[token.unlocked]\nauto_lock_timeout_secs = 3600\n",
		b.path(device), store, b.path("log"))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		panic(err) // in a directory that was just made
	}
	return "ICN_P11_CONF=" + path
}

// softEnv is icnEnv for SoftHSM2.
func (b *bench) softEnv(store string) string {
	dir, path := b.path("softhsm/"+store), b.path("softhsm-"+store+".conf")
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = os.WriteFile(path, fmt.Appendf(nil, "directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n", dir), 0o600)
	}
	if err != nil {
		panic(err)
	}
	return "SOFTHSM2_CONF=" + path
}

// fill makes a store of icn-p11 and one of SoftHSM2 with public keys in it.
func (b *bench) fill(objects int) (icn, soft string, err error) {
	name := fmt.Sprint(objects)
	// In memory first, where durability costs nothing.
	ram, err := os.MkdirTemp(getenv("BENCH_RAM", "/dev/shm"), "bench")
	if err != nil {
		return "", "", err
	}
	defer os.RemoveAll(ram)
	fast := b.icnConf("fill-"+name, "icn.s,exclusive", ram)
	if _, err := b.host(fast, "setup", b.subject(sealed, b.module, "ed25519", "objects"), name); err != nil {
		return "", "", err
	}
	icn, soft = b.icnEnv(name, ",exclusive"), b.softEnv(name)
	if out, err := exec.Command("cp", "-a", ram, b.path("icn-"+name)).CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("%w: %s", err, out)
	}
	if _, err := b.host(soft, "setup", b.subject(softEd, b.softhsm, "ed25519", "objects"), "1"); err != nil {
		return "", "", err
	}
	return icn, soft, b.multiply("softhsm/"+name, objects)
}

// multiply copies the object of a SoftHSM2 store, under other names and labels:
// making 10,000 with SoftHSM2 takes longer than everything else.
func (b *bench) multiply(store string, objects int) error {
	files, err := filepath.Glob(filepath.Join(b.path(store), "*", "*.object"))
	if err != nil {
		return err
	}
	label := func(i int) []byte { return fmt.Appendf(nil, "object %06d", i) }
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if !bytes.Contains(data, label(0)) {
			continue
		}
		for i := 1; i < objects; i++ {
			var u [16]byte
			rand.Read(u[:])
			name := fmt.Sprintf("%x-%x-%x-%x-%x.object", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
			if err := os.WriteFile(filepath.Join(filepath.Dir(f), name), bytes.ReplaceAll(data, label(0), label(i)), 0o600); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("%s: no object to copy", store)
}

// host runs a host and gives what it writes to standard output.
func (b *bench) host(env string, args ...string) ([]byte, error) {
	c := b.command(env, args...)
	out, err := c.Output()
	if err != nil {
		return nil, failed(c, err)
	}
	return out, nil
}

// command is a host with the variables in env, one a line, besides the usual ones.
func (b *bench) command(env string, args ...string) *exec.Cmd {
	// A host that hangs must not keep the machine busy: timeout(1) ends it.
	c := exec.Command("timeout", append([]string{"600", b.path("host")}, args...)...)
	c.Env = append(b.env[:len(b.env):len(b.env)], strings.Fields(env)...)
	return c
}

func failed(c *exec.Cmd, err error) error {
	if e, ok := err.(*exec.ExitError); ok {
		return fmt.Errorf("%s: %w: %s", strings.Join(c.Args[2:], " "), err, bytes.TrimSpace(e.Stderr))
	}
	return err
}
