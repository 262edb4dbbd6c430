package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
)

// swtpm is a software TPM: bare frames over a Unix or TCP socket. It serves
// one connection at a time; others wait in the listener's queue without a
// word, and beyond that get EAGAIN. Being connected is therefore being alone.
type swtpm struct {
	network, address string
	exclusive        bool // nobody else uses it at all
}

func (s *swtpm) String() string {
	if s.network == "unix" {
		return "swtpm:path=" + s.address
	}
	return "swtpm:" + s.address
}

func (s *swtpm) keep() bool    { return s.exclusive }
func (s *swtpm) alone() bool   { return true }
func (s *swtpm) managed() bool { return false }
func (s *swtpm) startup() bool { return true }

// restartWait is how long a socket that nobody listens on is tried again: a
// swtpm that is being restarted is back by then.
const restartWait = time.Second

func (s *swtpm) open(timeout time.Duration) (conn, error) {
	c, err := dialPatiently(s.network, s.address, timeout)
	if err != nil {
		return nil, &lostError{s.openError(err, timeout), false}
	}
	return &stream{socket{c}}, nil
}

// dialPatiently waits for a server that has others in its queue, or is being
// restarted.
func dialPatiently(network, address string, timeout time.Duration) (net.Conn, error) {
	start := time.Now()
	for {
		c, err := net.DialTimeout(network, address, timeout)
		if err == nil {
			return c, nil
		}
		limit := time.Duration(0)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			limit = timeout
		case errors.Is(err, syscall.ECONNREFUSED):
			limit = restartWait
		}
		if time.Since(start) >= limit {
			return nil, err
		}
		time.Sleep(time.Millisecond/2 + rand.N(10*time.Millisecond))
	}
}

// openError says why there is no connection, and what to do about it.
func (s *swtpm) openError(err error, timeout time.Duration) error {
	switch {
	case errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("%s: other programs kept it busy for %v", s, timeout)
	case timedOut(err):
		return noConnection(s, timeout)
	}
	cure := "start swtpm there, or correct device_path"
	if errors.Is(err, os.ErrPermission) {
		cure = "give this user access to the socket"
	}
	return advice.With(fmt.Errorf("%s: %w", s, plain(err)), cure)
}

func timedOut(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// noConnection is the error for a TCP port where nothing happens: its queue is
// full, or packets are lost.
func noConnection(o opener, timeout time.Duration) error {
	return advice.With(fmt.Errorf("%s: no connection within %v", o, timeout), "see whether the host can be reached, and whether other programs keep it busy")
}

// plain takes away what was dialled, which stands in the name of the device.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// socket is a connected socket in a process that is not ours.
type socket struct{ net.Conn }

// Write raises no SIGPIPE, which would end a host that has set the default
// action for it.
func (s socket) Write(p []byte) (n int, err error) {
	raw, err := s.Conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return 0, err
	}
	for n < len(p) {
		var sent int
		e := raw.Write(func(fd uintptr) bool {
			sent, err = unix.SendmsgN(int(fd), p[n:], nil, nil, unix.MSG_NOSIGNAL)
			return err != unix.EAGAIN
		})
		switch {
		case e != nil:
			return n, e
		case err == nil:
			n += sent
		case err != unix.EINTR:
			return n, err
		}
	}
	return n, nil
}

// Close shuts the connection down first: a child that was forked meanwhile
// has a copy of the descriptor, and the other side would go on waiting for it.
func (s socket) Close() error {
	if raw, err := s.Conn.(syscall.Conn).SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { syscall.Shutdown(int(fd), syscall.SHUT_RDWR) })
	}
	return s.Conn.Close()
}

// stream carries frames over a socket.
type stream struct{ duplex }

// duplex is what of a socket is needed.
type duplex interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

func (s *stream) exchange(command []byte, timeout time.Duration) ([]byte, error) {
	s.SetDeadline(time.Now().Add(timeout))
	if _, err := s.Write(command); err != nil {
		return nil, s.explain(err, timeout)
	}
	var head [10]byte
	if _, err := io.ReadFull(s, head[:]); err != nil {
		return nil, s.explain(err, timeout)
	}
	n := binary.BigEndian.Uint32(head[2:])
	if n < uint32(len(head)) || n > maxFrame {
		return nil, errFrame
	}
	answer := make([]byte, n)
	copy(answer, head[:])
	if _, err := io.ReadFull(s, answer[len(head):]); err != nil {
		return nil, s.explain(err, timeout)
	}
	return answer, nil
}

func (s *stream) explain(err error, timeout time.Duration) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &lostError{fmt.Errorf("no answer within %v", timeout), false}
	}
	return err
}
