package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/google/go-tpm/tpm2"
)

// spy passes commands on to a TPM, and remembers which ones.
type spy struct {
	net.Listener
	tpm string

	mu   sync.Mutex
	seen []string
}

// listen starts a spy at a socket, in front of an swtpm at another.
func listen(socket, tpm string) (*spy, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	s := &spy{Listener: l, tpm: tpm}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	}()
	return s, nil
}

// take gives the commands since the last time.
func (s *spy) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	return seen
}

func (s *spy) serve(client net.Conn) {
	defer client.Close()
	t, err := net.Dial("unix", s.tpm)
	if err != nil {
		return
	}
	defer t.Close()
	for {
		command, err := frame(client)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.seen = append(s.seen, commandName(binary.BigEndian.Uint32(command[6:])))
		s.mu.Unlock()
		if _, err := t.Write(command); err != nil {
			return
		}
		answer, err := frame(t)
		if err != nil {
			return
		}
		if _, err := client.Write(answer); err != nil {
			return
		}
	}
}

// frame reads a command or a response: a tag, its size, and so on (TPM 2.0
// Library, Part 1, 18).
func frame(r io.Reader) ([]byte, error) {
	head := make([]byte, 10)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[2:])
	if n < 10 || n > 4096 {
		return nil, fmt.Errorf("a frame of %d bytes", n)
	}
	f := append(head, make([]byte, n-10)...)
	_, err := io.ReadFull(r, f[10:])
	return f, err
}

// commandName is a command code in the words of the specification.
func commandName(code uint32) string {
	names := map[tpm2.TPMCC]string{
		tpm2.TPMCCCreate: "Create", tpm2.TPMCCCreatePrimary: "CreatePrimary", tpm2.TPMCCFlushContext: "FlushContext",
		tpm2.TPMCCGetCapability: "GetCapability", tpm2.TPMCCGetRandom: "GetRandom", tpm2.TPMCCLoad: "Load",
		tpm2.TPMCCReadPublic: "ReadPublic", tpm2.TPMCCSign: "Sign", tpm2.TPMCCStartAuthSession: "StartAuthSession",
		tpm2.TPMCCUnseal: "Unseal",
	}
	if n, ok := names[tpm2.TPMCC(code)]; ok {
		return n
	}
	return strings.ToUpper(fmt.Sprintf("0x%x", code))
}
