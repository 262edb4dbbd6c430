package swtpmtest

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// Proxy stands before a TPM. It records every byte, and may change answers.
type Proxy struct {
	path string
	mu   sync.Mutex
	f    func(code tpm2.TPMCC, answer []byte) []byte
	no   func(code tpm2.TPMCC) []byte
	sent []tpm2.TPMCC
	seen bytes.Buffer
}

// StartProxy starts a proxy that ends with the test. It serves one connection
// at a time, as swtpm does.
func StartProxy(t testing.TB, s *TPM) *Proxy {
	t.Helper()
	// t.TempDir is too long for the address of a Unix socket in some tests.
	dir, err := os.MkdirTemp("", "proxy")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{path: filepath.Join(dir, "s")}
	l, err := net.Listen("unix", p.path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
		os.RemoveAll(dir)
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if up, err := net.Dial("unix", s.Path()); err == nil {
				p.serve(c, up)
				up.Close()
			}
			c.Close()
		}
	})
	return p
}

// Device is the device_path of the proxy.
func (p *Proxy) Device() string { return "swtpm:path=" + p.path }

// Decide sets what makes of an answer what is passed on; nil passes all on as
// it is. A function that returns nil breaks the connection.
func (p *Proxy) Decide(f func(code tpm2.TPMCC, answer []byte) []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.f, p.no, p.sent = f, nil, nil
}

// Refuse sets what answers in the TPM's place, which does not see the command
// then; where it returns nil, the TPM answers. Decide ends it.
func (p *Proxy) Refuse(f func(code tpm2.TPMCC) []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.f, p.no, p.sent = nil, f, nil
}

// Decided gives what Decide was given.
func (p *Proxy) Decided() func(code tpm2.TPMCC, answer []byte) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.f
}

// Sent lists the commands since Decide.
func (p *Proxy) Sent() []tpm2.TPMCC {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]tpm2.TPMCC(nil), p.sent...)
}

// Count counts the commands of a kind since Decide.
func (p *Proxy) Count(code tpm2.TPMCC) (n int) {
	for _, c := range p.Sent() {
		if c == code {
			n++
		}
	}
	return n
}

// Seen gives every byte that has passed, in both directions.
func (p *Proxy) Seen() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return bytes.Clone(p.seen.Bytes())
}

func frame(r io.Reader) ([]byte, error) {
	head := make([]byte, 10)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	all := make([]byte, max(10, binary.BigEndian.Uint32(head[2:])))
	copy(all, head)
	_, err := io.ReadFull(r, all[10:])
	return all, err
}

func (p *Proxy) serve(c, up net.Conn) {
	for {
		command, err := frame(c)
		if err != nil {
			return
		}
		code := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
		p.mu.Lock()
		f, no := p.f, p.no
		p.sent = append(p.sent, code)
		p.mu.Unlock()
		var answer []byte
		if no != nil {
			answer = no(code)
		}
		if answer == nil {
			if _, err := up.Write(command); err != nil {
				return
			}
			if answer, err = frame(up); err != nil {
				return
			}
		}
		p.mu.Lock()
		p.seen.Write(command)
		p.seen.Write(answer)
		p.mu.Unlock()
		if f != nil {
			if answer = f(code, answer); answer == nil {
				return
			}
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

// Code makes an answer that is nothing but a response code.
func Code(rc uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, 10}, rc)
}

// Once applies f to the first answer to a command.
func Once(want tpm2.TPMCC, f func(answer []byte) []byte) func(tpm2.TPMCC, []byte) []byte {
	done := false
	return func(code tpm2.TPMCC, answer []byte) []byte {
		if code != want || done {
			return answer
		}
		done = true
		return f(answer)
	}
}
