// Package swtpmtest starts a software TPM for one test.
package swtpmtest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// TPM is a running swtpm with a state directory and a socket of its own.
type TPM struct {
	t    testing.TB
	dir  string
	port int // 0: a Unix socket
	cmd  *exec.Cmd
	log  bytes.Buffer // read only after the process has ended
}

// Start starts a TPM that ends with the test. Without swtpm the test fails.
func Start(t testing.TB) *TPM {
	t.Helper()
	return start(t, 0)
}

// StartTCP is Start for a TPM on a TCP port of 127.0.0.1.
func StartTCP(t testing.TB) *TPM {
	t.Helper()
	data, control := ListenPair(t)
	data.Close()
	control.Close()
	return start(t, data.Addr().(*net.TCPAddr).Port)
}

// ListenPair listens on a free TCP port of 127.0.0.1 and the one behind it.
func ListenPair(t testing.TB) (first, second net.Listener) {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		next, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", l.Addr().(*net.TCPAddr).Port+1))
		if err == nil {
			return l, next
		}
		l.Close()
	}
	t.Fatal("no two free ports in a row")
	return nil, nil
}

func start(t testing.TB, port int) *TPM {
	t.Helper()
	return startFrom(t, port, func(string) {})
}

// startFrom starts a TPM whose state directory prepare fills.
func startFrom(t testing.TB, port int, prepare func(dir string)) *TPM {
	t.Helper()
	// t.TempDir is too long for the address of a Unix socket in some tests.
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	s := &TPM{t: t, dir: dir, port: port}
	t.Cleanup(func() {
		s.Stop()
		if t.Failed() {
			t.Logf("swtpm: %s", s.log.Bytes())
		}
		os.RemoveAll(dir)
	})
	prepare(dir)
	s.start()
	return s
}

func (s *TPM) start() {
	s.t.Helper()
	server, ctrl, network, address := "type=unixio,path="+s.Path(), "type=unixio,path="+s.Path()+".ctrl", "unix", s.Path()
	if s.port != 0 {
		server, ctrl = fmt.Sprintf("type=tcp,port=%d", s.port), fmt.Sprintf("type=tcp,port=%d", s.port+1)
		network, address = "tcp", s.Address()
	}
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+s.dir,
		"--server", server, "--ctrl", ctrl, "--flags", "not-need-init,startup-clear")
	cmd.Stderr = &s.log
	if err := cmd.Start(); err != nil {
		s.t.Fatalf("starting swtpm (Debian package swtpm): %v", err)
	}
	s.cmd = cmd
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial(network, address)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("swtpm does not listen: %v", err)
		}
	}
}

// Stop kills the TPM, as a power failure would.
func (s *TPM) Stop() {
	if s.cmd != nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
		s.cmd = nil
		os.Remove(s.Path())
		os.Remove(s.Path() + ".ctrl")
	}
}

// Restart kills the TPM and starts it again with its state.
func (s *TPM) Restart() {
	s.t.Helper()
	s.Stop()
	s.start()
}

// Freeze keeps the TPM from answering, until Thaw.
func (s *TPM) Freeze() { signal(s.t, s.cmd, syscall.SIGSTOP) }

// Thaw has it answer again, first what was asked meanwhile.
func (s *TPM) Thaw() { signal(s.t, s.cmd, syscall.SIGCONT) }

func signal(t testing.TB, cmd *exec.Cmd, s syscall.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// Reboot restarts the TPM as a machine does that is shut down in order: unlike
// after a power failure, no try of a PIN is counted for it.
func (s *TPM) Reboot() {
	s.t.Helper()
	c, err := linuxudstpm.Open(s.Path())
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}.Execute(c)
	c.Close()
	if err != nil {
		s.t.Fatal(err)
	}
	s.Restart()
}

// Extend extends a PCR of the sha256 bank, as firmware that measures does.
func (s *TPM) Extend(pcr int, digest []byte) {
	s.t.Helper()
	ExtendAt(s.t, s.Path(), pcr, digest)
}

// ExtendAt is Extend for a TPM that another process has started.
func ExtendAt(t testing.TB, path string, pcr int, digest []byte) {
	t.Helper()
	c, err := linuxudstpm.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest}}},
	}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
}

// ResetLockout has the TPM forget the wrong PINs that it has counted.
func (s *TPM) ResetLockout() {
	s.t.Helper()
	// TPM2_DictionaryAttackLockReset (Part 3, section 25.2) with the empty
	// authorisation of TPM_RH_LOCKOUT.
	command := []byte{0x80, 0x02, 0, 0, 0, 27, 0, 0, 0x01, 0x39, 0x40, 0, 0, 0x0A,
		0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0}
	c := s.Dial()
	defer c.Close()
	if _, err := c.Write(command); err != nil {
		s.t.Fatal(err)
	}
	answer := make([]byte, 10)
	if _, err := io.ReadFull(c, answer); err != nil {
		s.t.Fatal(err)
	}
	if rc := binary.BigEndian.Uint32(answer[6:]); rc != 0 {
		s.t.Fatalf("TPM2_DictionaryAttackLockReset: %#x", rc)
	}
}

// Path is the data socket's; the control socket has ".ctrl" after it, where
// libtss2 looks for it.
func (s *TPM) Path() string { return filepath.Join(s.dir, "s") }

// Address is where a TPM of StartTCP listens.
func (s *TPM) Address() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// Port is that of Address.
func (s *TPM) Port() int { return s.port }

// Dial connects to the TPM, which takes and gives bare frames.
func (s *TPM) Dial() net.Conn {
	s.t.Helper()
	network, address := "unix", s.Path()
	if s.port != 0 {
		network, address = "tcp", s.Address()
	}
	c, err := net.Dial(network, address)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// Device is the device_path of the TPM.
func (s *TPM) Device() string { return fmt.Sprintf("swtpm:path=%s", s.Path()) }
