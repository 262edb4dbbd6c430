package sshagent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// Limits of what clients may do.
const (
	maxRequest = 256 << 10 // ssh-agent's, in bytes
	maxClients = 64
	maxStall   = 30 * time.Second // between the first byte of a request and its last, and until an answer is taken
)

// Numbers of the requests that do not reach the agent package, because
// secrets are in them (PROTOCOL.agent; draft-ietf-sshm-ssh-agent, section 6.1).
const (
	requestAdd            = 17
	requestAddCard        = 20
	requestRemoveCard     = 21
	requestLock           = 22
	requestUnlock         = 23
	requestAddConstrained = 25
	requestAddCardLimited = 26
	answerFailure         = 5
	answerSuccess         = 6
)

// clients are the connections.
type clients struct {
	mu     sync.Mutex
	all    map[*client]bool
	closed bool
	done   sync.WaitGroup
}

type client struct {
	*net.UnixConn
	idle time.Duration // since when it has been quiet, by uptime; 0: its request is at work
}

// gone tells whether the other end has been closed.
func (c *client) gone() bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	n := 1
	if cerr := raw.Control(func(fd uintptr) {
		n, _, err = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	}); cerr != nil {
		return true
	}
	return err == nil && n == 0 || errors.Is(err, unix.ECONNRESET)
}

// add takes a connection in. Where there are too many, the one that has been
// quiet for longest goes, so that clients that only hold connections keep
// nobody out.
func (s *clients) add(c *client) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if len(s.all) >= maxClients {
		var oldest *client
		for c := range s.all {
			if c.idle != 0 && (oldest == nil || c.idle < oldest.idle) {
				oldest = c
			}
		}
		if oldest == nil {
			return false
		}
		delete(s.all, oldest)
		oldest.Close()
	}
	if s.all == nil {
		s.all = map[*client]bool{}
	}
	c.idle = uptime()
	s.all[c] = true
	s.done.Add(1)
	return true
}

// busy notes whether a client's request is at work.
func (s *clients) busy(c *client, busy bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.idle = 0
	if !busy {
		c.idle = uptime()
	}
}

func (s *clients) remove(c *client) {
	c.Close()
	s.mu.Lock()
	delete(s.all, c)
	s.mu.Unlock()
	s.done.Done()
}

// close ends all connections, and waits for the requests that are at work.
func (s *clients) close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.all {
		c.Close()
	}
	s.mu.Unlock()
	s.done.Wait()
}

// Serve takes connections in until the listener is closed.
func (a *Agent) Serve(l *net.UnixListener) error {
	for {
		conn, err := l.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOBUFS):
			a.log.Error("no connection can be taken in", "error", err)
			time.Sleep(100 * time.Millisecond)
			continue
		case errors.Is(err, unix.ECONNABORTED):
			continue
		case err != nil:
			return err
		}
		peer, err := peerOf(conn)
		if err == nil && !a.admits(peer.UID) {
			err = errors.New("the agent serves its own user and root, and those of --allow-uid")
		}
		c := &client{UnixConn: conn}
		if err == nil && !a.clients.add(c) {
			err = fmt.Errorf("%d clients wait for answers", maxClients)
		}
		if err != nil {
			a.log.Warn("connection refused", "client_pid", peer.PID, "client_uid", peer.UID, "error", err)
			conn.Close()
			continue
		}
		go a.serve(c, peer)
	}
}

// peerOf asks the kernel who is at the other end.
func peerOf(c *net.UnixConn) (process, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return process{}, err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		err = cerr
	}
	if err != nil {
		return process{}, err
	}
	return process{int(cred.Pid), cred.Uid}, nil
}

func (a *Agent) admits(uid uint32) bool {
	return uid == 0 || uid == uint32(os.Geteuid()) || slices.Contains(a.opt.UIDs, uid)
}

// serve answers one client until it leaves.
func (a *Agent) serve(c *client, peer process) {
	defer a.clients.remove(c)
	defer func() {
		if v := recover(); v != nil {
			a.log.Error("internal error", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		}
	}()
	s := &session{a: a, peer: peer, gone: c.gone}
	for {
		answer, err := a.answer(s, c)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				a.log.Warn("connection ended", "client_pid", peer.PID, "client_uid", peer.UID, "error", err)
			}
			return
		}
		c.SetWriteDeadline(time.Now().Add(a.stall))
		if _, err := c.Write(answer); err != nil {
			return
		}
		a.clients.busy(c, false)
	}
}

// answer reads one request, and gives the answer as it is sent.
func (a *Agent) answer(s *session, c *client) ([]byte, error) {
	// A client may be quiet for as long as it likes, but not within a request.
	var head [5]byte
	c.SetReadDeadline(time.Time{})
	if _, err := io.ReadFull(c, head[:1]); err != nil {
		return nil, err
	}
	c.SetReadDeadline(time.Now().Add(a.stall))
	if _, err := io.ReadFull(c, head[1:]); err != nil {
		return nil, fmt.Errorf("in the midst of a request: %w", err)
	}
	size := binary.BigEndian.Uint32(head[:])
	if size == 0 || size > maxRequest {
		return nil, fmt.Errorf("a request of %d bytes", size)
	}
	body := int(size) - 1
	switch head[4] {
	case requestLock:
		return a.passphrase(c, body, s.Lock)
	case requestUnlock:
		return a.passphrase(c, body, s.Unlock)
	case requestAdd, requestAddConstrained, requestAddCard, requestAddCardLimited, requestRemoveCard:
		if err := discard(c, body); err != nil {
			return nil, err
		}
		a.clients.busy(c, true)
		return simple(s.refuse("adding or removing a key")), nil
	}
	request := make([]byte, len(head)+body)
	copy(request, head[:])
	if _, err := io.ReadFull(c, request[len(head):]); err != nil {
		return nil, fmt.Errorf("in the midst of a request: %w", err)
	}
	a.clients.busy(c, true)
	// It answers the one request and finds no second one.
	var answer bytes.Buffer
	err := agent.ServeAgent(s, struct {
		io.Reader
		io.Writer
	}{bytes.NewReader(request), &answer})
	if !errors.Is(err, io.EOF) {
		return nil, err
	}
	return answer.Bytes(), nil
}

// passphrase reads the rest of a request to lock or unlock, from the kernel
// into secret memory.
func (a *Agent) passphrase(c *client, body int, f func([]byte) error) ([]byte, error) {
	if body > 4+maxPassphrase {
		if err := discard(c, body); err != nil {
			return nil, err
		}
		return simple(errPassphrase), nil
	}
	buf, err := secmem.New(4 + maxPassphrase)
	if err != nil {
		return nil, err
	}
	defer buf.Destroy()
	b := buf.Bytes()[:body]
	if _, err := io.ReadFull(c, b); err != nil {
		return nil, fmt.Errorf("in the midst of a request: %w", err)
	}
	a.clients.busy(c, true)
	if body < 4 || binary.BigEndian.Uint32(b) != uint32(body-4) {
		return simple(errPassphrase), nil
	}
	return simple(f(b[4:])), nil
}

// discard takes in what may be a private key or a PIN, and keeps nothing.
func discard(r io.Reader, n int) error {
	buf, err := secmem.New(secmem.Max)
	if err != nil {
		return err
	}
	defer buf.Destroy()
	for n > 0 {
		m, err := r.Read(buf.Bytes()[:min(n, secmem.Max)])
		if n -= m; err != nil {
			return fmt.Errorf("in the midst of a request: %w", err)
		}
	}
	return nil
}

// simple is an answer that is only yes or no.
func simple(err error) []byte {
	if err != nil {
		return []byte{0, 0, 0, 1, answerFailure}
	}
	return []byte{0, 0, 0, 1, answerSuccess}
}
