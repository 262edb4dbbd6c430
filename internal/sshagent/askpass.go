package sshagent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"
)

// Askpass asks a person with a program, as ssh-agent does for the keys of
// "ssh-add -c" (ssh-add(1), SSH_ASKPASS).
type Askpass struct {
	Program string
	Env     []string      // of the program
	Timeout time.Duration // nobody has answered then
}

// errDenied is an answer that is not yes.
var errDenied = errors.New("not confirmed")

// Confirm asks whether a signature may be made. Yes is an exit status of 0 with
// nothing printed, or "yes".
func (p *Askpass) Confirm(ctx context.Context, question string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.Timeout, fmt.Errorf("no answer within %v", p.Timeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, p.Program, question)
	cmd.Env = append(p.Env[:len(p.Env):len(p.Env)], "SSH_ASKPASS_PROMPT=confirm")
	var out bytes.Buffer
	cmd.Stdout = &limited{w: &out, left: 256}
	cmd.WaitDelay = time.Second // for what it has started
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", errDenied, context.Cause(ctx))
	case errors.As(err, &exit):
		return errDenied
	case err != nil:
		return fmt.Errorf("%w: %w", errDenied, err)
	}
	line, _, _ := strings.Cut(out.String(), "\n")
	if answer := strings.TrimSpace(line); answer != "" && !strings.EqualFold(answer, "yes") {
		return errDenied
	}
	return nil
}

// limited drops what is too much.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	if _, err := l.w.Write(p[:n]); err != nil {
		return 0, err
	}
	return len(p), nil
}
