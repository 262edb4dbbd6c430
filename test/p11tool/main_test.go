package p11tool

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/miekg/pkcs11"
)

// The environment of the processes that the tests start. A module has one
// state per process and reads its configuration at C_Initialize, so each
// test runs its body in a process of its own; workers are further processes
// that do one thing with the same token.
const (
	childEnv  = "ICN_P11_TEST_CHILD"
	workerEnv = "ICN_P11_TEST_WORKER"
	dirEnv    = "ICN_P11_TEST_DIR"
	tpmEnv    = "ICN_P11_TEST_TPM"
)

// workers by name; each gets the arguments behind its name.
var workers = map[string]func(args []string) error{}

func TestMain(m *testing.M) {
	name := os.Getenv(workerEnv)
	if name == "" {
		os.Exit(m.Run())
	}
	w, ok := workers[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "no worker %q\n", name)
		os.Exit(2)
	}
	if err := w(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// setup is what a test wants of its configuration.
type setup struct {
	autoLock  int  // auto_lock_timeout_secs
	exclusive bool // nobody else uses the TPM
	proxy     bool // the module reaches the TPM through the test's proxy
	extra     string
}

// place is a TPM, a store and a configuration file of a test's own.
type place struct {
	dir   string // holds all the files
	tpm   string // the TPM's socket
	proxy *proxy // nil where setup.proxy is false
}

func (p *place) conf() string  { return filepath.Join(p.dir, "icn-p11.conf") }
func (p *place) store() string { return filepath.Join(p.dir, "store") }
func (p *place) log() string   { return filepath.Join(p.dir, "log") }

// writeConf writes the configuration for a device.
func (p *place) writeConf(t *testing.T, device string, s setup) {
	t.Helper()
	text := fmt.Sprintf("device_path = %q\nsealed_blob_dir = %q\nauto_lock_timeout_secs = %d\nlog_level = \"debug\"\nlog_file = %q\n%s",
		device, p.store(), s.autoLock, p.log(), s.extra)
	if err := os.WriteFile(p.conf(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// modulePath is the module under test.
func modulePath() (string, error) {
	path := os.Getenv("ICN_P11_MODULE")
	if path == "" {
		path = filepath.Join("..", "..", "build", "icn-p11.so")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the module under test is missing (build it with make, or set ICN_P11_MODULE): %w", err)
	}
	return path, nil
}

// isolated runs body in a process of its own, with a TPM, a store and a
// configuration of its own.
func isolated(t *testing.T, s setup, body func(t *testing.T, p *place)) {
	t.Helper()
	if os.Getenv(childEnv) == t.Name() {
		p := &place{dir: os.Getenv(dirEnv), tpm: os.Getenv(tpmEnv)}
		if s.proxy {
			p.proxy = startProxy(t, filepath.Join(p.dir, "proxy.sock"), p.tpm)
		}
		body(t, p)
		return
	}
	t.Parallel() // its process shares nothing with those of other tests
	module, err := modulePath()
	if err != nil {
		t.Fatal(err)
	}
	p := &place{dir: shortDir(t), tpm: swtpmtest.Start(t).Path()}
	device := p.tpm
	if s.proxy {
		device = filepath.Join(p.dir, "proxy.sock")
	}
	device = "swtpm:path=" + device
	if s.exclusive {
		device += ",exclusive"
	}
	p.writeConf(t, device, s)

	// What a busy machine takes for it says nothing of the module: the limit is
	// that of the whole run, before which the process shows where it hangs.
	ctx, limit := t.Context(), time.Duration(0)
	if end, limited := t.Deadline(); limited {
		limit = max(time.Second, time.Until(end)-30*time.Second)
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-15*time.Second))
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout="+limit.String())
	cmd.Env = append(os.Environ(), childEnv+"="+t.Name(), dirEnv+"="+p.dir, tpmEnv+"="+p.tpm,
		"ICN_P11_CONF="+p.conf(), "ICN_P11_MODULE="+module, "HOME="+p.dir)
	out, err := cmd.CombinedOutput()
	passed := bytes.Contains(out, []byte("--- PASS: "+t.Name()+" "))
	if err != nil || !passed {
		log, _ := os.ReadFile(p.log())
		t.Fatalf("%v\n%s\nthe module's log:\n%s", err, out, tail(log, 4000))
	}
	t.Logf("%s", out)
}

// shortDir is a directory whose name leaves room for socket names, which
// end at 107 bytes.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "p11tool")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func tail(b []byte, n int) []byte {
	if len(b) > n {
		return b[len(b)-n:]
	}
	return b
}

// worker is a further process with the place's configuration, which runs a
// function of workers.
func worker(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), workerEnv+"="+name)
	return cmd
}

// runWorker runs a worker to its end and returns its standard output.
func runWorker(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := worker(t, name, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("worker %s %q: %v\n%s%s", name, args, err, &out, &errs)
	}
	return strings.TrimSpace(out.String())
}

// loadModule loads and initialises the module.
func loadModule() (*pkcs11.Ctx, error) {
	path, err := modulePath()
	if err != nil {
		return nil, err
	}
	c := pkcs11.New(path)
	if c == nil {
		return nil, fmt.Errorf("%s cannot be loaded", path)
	}
	return c, c.Initialize()
}

// load is loadModule for a test, finalised at its end.
func load(t *testing.T) *pkcs11.Ctx {
	t.Helper()
	c, err := loadModule()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Finalize(); err != nil && err != pkcs11.Error(pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED) {
			t.Errorf("C_Finalize: %v", err)
		}
	})
	return c
}

// raw is the function list of the module that is loaded.
func raw(t *testing.T) *Raw {
	t.Helper()
	path, err := modulePath()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
