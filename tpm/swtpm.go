package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
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
	return &stream{c}, nil
}

// dialPatiently waits for a server that has others in its queue, or is being
// restarted.
func dialPatiently(network, address string, timeout time.Duration) (*socket, error) {
	start := time.Now()
	for {
		c, err := net.DialTimeout(network, address, timeout)
		if err == nil {
			return detach(c)
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

// socket is a connected stream socket in a process that is not ours. Whoever
// reads waits on the thread of the caller. The runtime would park the goroutine
// and have another thread wait for the socket, and hand what comes back to this
// one, which the host's call is bound to: that takes as long as a software TPM
// takes for a command.
type socket struct {
	file     *os.File // which the runtime's poller does not know
	raw      syscall.RawConn
	deadline time.Time
}

// newSocket takes over a descriptor.
func newSocket(fd int) (*socket, error) {
	// os.NewFile hands what does not block to the poller.
	if err := syscall.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "socket")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &socket{file: f, raw: raw}, nil
}

// detach takes a connection over from package net.
func detach(c net.Conn) (*socket, error) {
	defer c.Close()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if e := raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, err
	}
	return newSocket(fd)
}

// SetDeadline is for reads and writes that begin afterwards.
func (s *socket) SetDeadline(t time.Time) error {
	s.deadline = t
	return nil
}

// receive calls f when there is something to read, or the other side has gone.
func (s *socket) receive(f func(fd int) error) error {
	var err error
	if e := s.raw.Read(func(fd uintptr) bool {
		if err = ready(int(fd), unix.POLLIN, s.deadline); err == nil {
			err = f(int(fd))
		}
		return true
	}); e != nil {
		return e
	}
	return err
}

// The race detector knows that a read follows the write only of what package
// syscall does, as everybody else here uses.
func (s *socket) Read(p []byte) (n int, err error) {
	err = s.receive(func(fd int) (err error) {
		n, err = syscall.Read(fd, p)
		return err
	})
	if err == syscall.EINTR {
		return 0, nil
	}
	if n <= 0 && err == nil && len(p) > 0 {
		return 0, io.EOF
	}
	return max(n, 0), err
}

// ready waits until a descriptor can be read or written, or the other side has
// gone.
func ready(fd int, event int16, deadline time.Time) error {
	for {
		wait := -1
		if !deadline.IsZero() {
			left := time.Until(deadline)
			if left <= 0 {
				return os.ErrDeadlineExceeded
			}
			wait = int(min(left.Milliseconds(), math.MaxInt32-1)) + 1
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: event}}, wait)
		if err != nil && err != unix.EINTR {
			return err
		}
		if n > 0 {
			return nil
		}
	}
}

// Write raises no SIGPIPE, which would end a host that has set the default
// action for it.
func (s *socket) Write(p []byte) (n int, err error) {
	e := s.raw.Write(func(fd uintptr) bool {
		for n < len(p) && err == nil {
			var sent int
			sent, err = unix.SendmsgN(int(fd), p[n:], nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
			switch err {
			case nil:
				n += sent
			case unix.EINTR:
				err = nil
			case unix.EAGAIN:
				err = ready(int(fd), unix.POLLOUT, s.deadline)
			}
		}
		return true
	})
	if err == nil {
		err = e
	}
	return n, err
}

// Close shuts the connection down first: a child that was forked meanwhile
// has a copy of the descriptor, and the other side would go on waiting for it;
// and so would who reads here.
func (s *socket) Close() error {
	s.raw.Control(func(fd uintptr) { syscall.Shutdown(int(fd), syscall.SHUT_RDWR) })
	return s.file.Close()
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
	const head = 10
	answer := make([]byte, maxFrame)
	n, err := io.ReadAtLeast(s, answer, head)
	if err != nil {
		return nil, s.explain(err, timeout)
	}
	size := binary.BigEndian.Uint32(answer[2:])
	if size < uint32(n) || size > maxFrame {
		return nil, errFrame // what was not asked for came, too
	}
	if _, err := io.ReadFull(s, answer[n:size]); err != nil {
		return nil, s.explain(err, timeout)
	}
	return answer[:size], nil
}

func (s *stream) explain(err error, timeout time.Duration) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &lostError{fmt.Errorf("no answer within %v", timeout), false}
	}
	return err
}
