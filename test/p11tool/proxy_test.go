package p11tool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TPM command codes that the tests look for (TPM 2.0 Part 2, 6.5.2).
const (
	ccObjectChangeAuth = 0x150
	ccCreate           = 0x153
	ccLoad             = 0x157
	ccUnseal           = 0x15E
)

// proxy stands between the module and a TPM. It records every frame.
type proxy struct {
	upstream string
	mu       sync.Mutex
	codes    []uint32 // the command codes in order
	wire     [][]byte // the frames of both directions

	answered func(code uint32) // called before an answer is passed on; may be nil

	fault fault // befalls the command that makes left zero; nil for none
	left  int
}

// fault answers a command in the TPM's place, which forward asks. The
// connection is cut after the answer if it says so.
type fault func(forward func() []byte) (answer []byte, cut bool)

// inject has the n-th command from now befallen by f.
func (p *proxy) inject(n int, f fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.left = f, n
}

// befalls tells what befalls the command that has just come.
func (p *proxy) befalls() fault {
	p.left--
	if p.left == 0 {
		return p.fault
	}
	return nil
}

// startProxy listens at path and forwards to the TPM at upstream.
func startProxy(t *testing.T, path, upstream string) *proxy {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &proxy{upstream: upstream}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p
}

func (p *proxy) serve(down net.Conn) {
	defer down.Close()
	up, err := dialTPM(p.upstream)
	if err != nil {
		return
	}
	defer up.Close()
	for {
		// Both directions begin alike: tag, size and a code of four bytes.
		cmd, err := readFrame(down)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.codes = append(p.codes, binary.BigEndian.Uint32(cmd[6:]))
		p.wire = append(p.wire, cmd)
		f := p.befalls()
		p.mu.Unlock()
		if f != nil {
			answer, cut := f(func() []byte {
				up.Write(cmd)
				rsp, _ := readFrame(up)
				return rsp
			})
			if _, err := down.Write(answer); err != nil || cut {
				return
			}
			continue
		}
		if _, err := up.Write(cmd); err != nil {
			return
		}
		rsp, err := readFrame(up)
		if err != nil {
			return
		}
		p.mu.Lock()
		p.wire = append(p.wire, rsp)
		answered := p.answered
		p.mu.Unlock()
		if answered != nil {
			answered(binary.BigEndian.Uint32(cmd[6:]))
		}
		if _, err := down.Write(rsp); err != nil {
			return
		}
	}
}

// dialTPM connects to swtpm, whose backlog holds two connections: the next
// one gets EAGAIN.
func dialTPM(path string) (net.Conn, error) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		c, err := net.Dial("unix", path)
		if err == nil || !errors.Is(err, syscall.EAGAIN) || time.Now().After(deadline) {
			return c, err
		}
	}
}

func readFrame(r io.Reader) ([]byte, error) {
	h := make([]byte, 10)
	if _, err := io.ReadFull(r, h); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(h[2:])
	if n < 10 || n > 4096 {
		return nil, fmt.Errorf("frame of %d bytes", n)
	}
	f := slices.Grow(h, int(n)-10)[:n]
	_, err := io.ReadFull(r, f[10:])
	return f, err
}

// take returns the command codes since the last call.
func (p *proxy) take() codes {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.codes
	p.codes = nil
	return c
}

// onAnswer sets what is called before an answer is passed on.
func (p *proxy) onAnswer(f func(code uint32)) {
	p.mu.Lock()
	p.answered = f
	p.mu.Unlock()
}

// recorded returns all frames so far.
func (p *proxy) recorded() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.wire)
}

type codes []uint32

func (c codes) count(code uint32) int {
	n := 0
	for _, x := range c {
		if x == code {
			n++
		}
	}
	return n
}

func (c codes) String() string {
	s := make([]string, len(c))
	for i, x := range c {
		s[i] = fmt.Sprintf("%#x", x)
	}
	return "[" + strings.Join(s, " ") + "]"
}
