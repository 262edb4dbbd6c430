package tpm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/environment"
)

// program is a TPM behind the standard input and output of a command, such as
// tpm2_send. What is behind that command is not known, so that nothing is kept.
type program struct{ line string }

func (p *program) String() string { return "cmd:" + p.line }
func (p *program) keep() bool     { return false }
func (p *program) alone() bool    { return false }
func (p *program) managed() bool  { return false }
func (p *program) startup() bool  { return false }

// open starts the command by the shell, as libtss2 does, so that it may have
// quotes. It has a process group of its own: the terminal's interrupt is for
// the host. Its standard input and output are one socket, since a write to a
// pipe cannot be kept from raising SIGPIPE in the host.
func (p *program) open(time.Duration) (conn, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, &lostError{err, false}
	}
	defer theirs.Close()
	cmd := exec.Command("/bin/sh", "-c", "exec "+p.line)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Env = programEnvironment()
	says := &tail{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, says
	cmd.WaitDelay = glance
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, &lostError{advice.With(fmt.Errorf("%s: %w", p, err), "correct device_path"), false}
	}
	return &running{stream: stream{ours}, cmd: cmd, says: says}, nil
}

// programEnvironment is what a command gets of the environment: what it may
// need to reach a TPM, not what is there for the host, such as a PIN.
func programEnvironment() []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, v := range environment.All() {
		name, _, _ := strings.Cut(v, "=")
		switch {
		case slices.Contains([]string{"PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "XDG_RUNTIME_DIR"}, name),
			strings.HasPrefix(name, "TPM2"), strings.HasPrefix(name, "TSS2"), strings.HasPrefix(name, "DBUS_"):
			env = append(env, v)
		}
	}
	return env
}

// socketPair makes two sockets that are connected to each other.
func socketPair() (ours *socket, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs = os.NewFile(uintptr(fds[1]), "command")
	if ours, err = newSocket(fds[0]); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

type running struct {
	stream
	cmd  *exec.Cmd
	says *tail
}

func (r *running) exchange(command []byte, timeout time.Duration) ([]byte, error) {
	answer, err := r.stream.exchange(command, timeout)
	var lost *lostError
	if err == nil || errors.As(err, &lost) {
		return answer, err
	}
	// It has ended, or sends something else: what it says is the reason.
	r.end()
	if text := r.says.String(); text != "" {
		err = fmt.Errorf("%w: it says %q", err, text)
	}
	return nil, &lostError{advice.With(err, "try the command of device_path by hand"), false}
}

// end lets the command go: the end of its input first.
func (r *running) end() {
	r.stream.Close()
	done := time.AfterFunc(glance, func() { syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL) })
	r.cmd.Wait() // the host may have waited for it already
	done.Stop()
}

func (r *running) Close() error {
	r.end()
	return nil
}

// tail keeps the beginning of what a command says on standard error.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	const most = 300
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[:min(len(p), most-len(t.buf))]...)
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}

var _ io.Writer = (*tail)(nil)
