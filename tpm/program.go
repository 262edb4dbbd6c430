package tpm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
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
// quotes and variables. It has a process group of its own: the terminal's
// interrupt is for the host.
func (p *program) open(time.Duration) (conn, error) {
	cmd := exec.Command("/bin/sh", "-c", "exec "+p.line)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	says := &tail{}
	cmd.Stderr = says
	cmd.WaitDelay = glance
	// Files of our own, with deadlines, instead of those that Wait closes.
	inRead, inWrite, err := os.Pipe()
	if err != nil {
		return nil, &lostError{err, false}
	}
	outRead, outWrite, err := os.Pipe()
	if err != nil {
		inRead.Close()
		inWrite.Close()
		return nil, &lostError{err, false}
	}
	cmd.Stdin, cmd.Stdout = inRead, outWrite
	err = cmd.Start()
	inRead.Close()
	outWrite.Close()
	if err != nil {
		inWrite.Close()
		outRead.Close()
		return nil, &lostError{advice.With(fmt.Errorf("%s: %w", p, err), "correct device_path"), false}
	}
	return &pipes{stream: stream{pipeConn{inWrite, outRead}}, cmd: cmd, says: says}, nil
}

// pipeConn makes a connection of two pipes.
type pipeConn struct {
	*os.File // to the command
	from     *os.File
}

func (c pipeConn) Read(p []byte) (int, error) { return c.from.Read(p) }

func (c pipeConn) SetDeadline(t time.Time) error {
	return errors.Join(c.File.SetDeadline(t), c.from.SetDeadline(t))
}

func (c pipeConn) Close() error { return errors.Join(c.File.Close(), c.from.Close()) }

type pipes struct {
	stream
	cmd  *exec.Cmd
	says *tail
}

func (p *pipes) exchange(command []byte, timeout time.Duration) ([]byte, error) {
	answer, err := p.stream.exchange(command, timeout)
	var lost *lostError
	if err == nil || errors.As(err, &lost) {
		return answer, err
	}
	// It has ended, or sends something else: what it says is the reason.
	p.end()
	if text := p.says.String(); text != "" {
		err = fmt.Errorf("%w: it says %q", err, text)
	}
	return nil, &lostError{advice.With(err, "try the command of device_path by hand"), false}
}

// end lets the command go: the end of its input first.
func (p *pipes) end() {
	p.stream.Close()
	done := time.AfterFunc(glance, func() { syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) })
	p.cmd.Wait() // the host may have waited for it already
	done.Stop()
}

func (p *pipes) Close() error {
	p.end()
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
