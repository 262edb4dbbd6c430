package tpm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// hiccups is a proxy that has a function decide about each answer.
type hiccups struct {
	device string
	mu     sync.Mutex
	f      func(code tpm2.TPMCC, answer []byte) []byte
	log    []tpm2.TPMCC
}

// decide sets the function; nil lets all answers through. One that returns nil
// breaks the connection.
func (h *hiccups) decide(f func(code tpm2.TPMCC, answer []byte) []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.f, h.log = f, nil
}

// sent lists the commands since decide.
func (h *hiccups) sent(code tpm2.TPMCC) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.log {
		if c == code {
			n++
		}
	}
	return n
}

func startHiccups(t *testing.T, s *swtpmtest.TPM) *hiccups {
	t.Helper()
	path := filepath.Join(t.TempDir(), "h")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	h := &hiccups{device: "swtpm:path=" + path}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("unix", s.Path())
			if err == nil {
				h.serve(c, up)
				up.Close()
			}
			c.Close()
		}
	})
	return h
}

func frame(r io.Reader) ([]byte, error) {
	head := make([]byte, 10)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	all := make([]byte, binary.BigEndian.Uint32(head[2:]))
	copy(all, head)
	_, err := io.ReadFull(r, all[10:])
	return all, err
}

func (h *hiccups) serve(c, up net.Conn) {
	for {
		command, err := frame(c)
		if err != nil {
			return
		}
		if _, err := up.Write(command); err != nil {
			return
		}
		answer, err := frame(up)
		if err != nil {
			return
		}
		code := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
		h.mu.Lock()
		f := h.f
		h.log = append(h.log, code)
		h.mu.Unlock()
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

// once applies f to the first answer to a command.
func once(want tpm2.TPMCC, f func(answer []byte) []byte) func(tpm2.TPMCC, []byte) []byte {
	done := false
	return func(code tpm2.TPMCC, answer []byte) []byte {
		if code != want || done {
			return answer
		}
		done = true
		return f(answer)
	}
}

// An answer that comes after we stopped waiting for it is not taken for that
// of a later command.
func TestLateAnswer(t *testing.T) {
	for _, late := range []tpm2.TPMCC{tpm2.TPMCCPolicyAuthorize, tpm2.TPMCCPolicyPCR, tpm2.TPMCCUnseal} {
		s := swtpmtest.Start(t)
		h := startHiccups(t, s)
		d, err := tpm.New(tpm.Config{Device: h.device + ",exclusive", KeyHandle: handle, Timeout: 300 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		p, data := parent(t, d), secret()
		b := bind(t, d, secret())
		blob := bound(t, d, p, data, b)
		wantSecret(t, d, p, blob, auth, data)
		h.decide(once(late, func(answer []byte) []byte {
			time.Sleep(500 * time.Millisecond)
			return answer
		}))
		if _, err := unseal(d, p, blob, auth); !errors.Is(err, sealstore.ErrUnavailable) {
			t.Errorf("%v: %v", late, err)
		}
		for range 3 {
			wantSecret(t, d, p, blob, auth, data)
			values(t, d, b)
		}
		d.Close()
		if left := handles(t, s); len(left) != 0 && late != tpm2.TPMCCUnseal {
			// What was loaded on the connection that failed is found stale, and
			// flushed when slots run out.
			t.Logf("left in the TPM: %x", left)
		}
	}
}

// A PIN whose answer is lost is not tried again: the TPM may have counted it.
func TestPINIsTriedOnce(t *testing.T) {
	for _, mode := range []string{"", ",exclusive"} {
		s := swtpmtest.Start(t)
		h := startHiccups(t, s)
		d := open(t, h.device+mode)
		p, data := parent(t, d), secret()
		pin, key := seal(t, d, p, data, auth, true), seal(t, d, p, data, auth, false)
		counter := func() uint32 {
			t.Helper()
			l, err := d.Lockout()
			if err != nil {
				t.Fatal(err)
			}
			return l.Counter
		}
		hangUp := func([]byte) []byte { return nil }
		wantSecret(t, d, p, pin, auth, data) // the first use is answered by RETRY

		h.decide(once(tpm2.TPMCCUnseal, hangUp))
		if _, err := unseal(d, p, pin, wrong); !errors.Is(err, sealstore.ErrUnavailable) {
			t.Errorf("unsealing with a PIN: %v", err)
		}
		if n := h.sent(tpm2.TPMCCUnseal); n != 1 || counter() != 1 {
			t.Errorf("a wrong PIN was tried %d times, %d were counted", n, counter())
		}
		h.decide(once(tpm2.TPMCCObjectChangeAuth, hangUp))
		if _, err := d.ChangeAuth(p, pin, wrong, auth); !errors.Is(err, sealstore.ErrUnavailable) {
			t.Errorf("changing a PIN: %v", err)
		}
		if n := h.sent(tpm2.TPMCCObjectChangeAuth); n != 1 || counter() != 2 {
			t.Errorf("a wrong PIN was tried %d times for another, %d were counted", n, counter())
		}
		// Where nothing is counted, and nothing was changed, it is repeated.
		for _, code := range []tpm2.TPMCC{tpm2.TPMCCUnseal, tpm2.TPMCCStartAuthSession, tpm2.TPMCCLoad} {
			d.Release()
			h.decide(once(code, hangUp))
			wantSecret(t, d, p, key, auth, data)
		}
		for _, code := range []tpm2.TPMCC{tpm2.TPMCCStartAuthSession, tpm2.TPMCCLoad} {
			d.Release()
			h.decide(once(code, hangUp))
			wantSecret(t, d, p, pin, auth, data)
		}
		// A PIN is in no session that is kept.
		d.Release()
		wantSecret(t, d, p, pin, auth, data)
		h.decide(nil)
		wantSecret(t, d, p, pin, auth, data)
		if n := h.sent(tpm2.TPMCCStartAuthSession); n != 1 {
			t.Errorf("%d sessions were started for a second login", n)
		}
	}
}

// Whoever still asks after Close gets an error, and leaves no connection.
func TestClosed(t *testing.T) {
	s := swtpmtest.Start(t)
	d := open(t, s.Device()+",exclusive")
	parent(t, d)
	before := descriptors(t)
	d.Close()
	if _, err := d.Lockout(); !errors.Is(err, sealstore.ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
	if after := descriptors(t); after >= before {
		t.Errorf("%d descriptors, %d before Close", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// Release leaves nothing behind, and does not wait for a TPM that is busy.
func TestRelease(t *testing.T) {
	s := swtpmtest.Start(t)
	h := startHiccups(t, s)
	d := open(t, h.device+",exclusive")
	p, data := parent(t, d), secret()
	b := seal(t, d, p, data, auth, false)
	wantSecret(t, d, p, b, auth, data)
	d.Release()
	if left := handles(t, s); len(left) != 0 {
		t.Errorf("left in the TPM: %x", left)
	}
	wantSecret(t, d, p, b, auth, data)
	running, goOn := make(chan bool), make(chan bool)
	h.decide(once(tpm2.TPMCCUnseal, func(answer []byte) []byte {
		running <- true
		<-goOn
		return answer
	}))
	var wg sync.WaitGroup
	wg.Go(func() { wantSecret(t, d, p, b, auth, data) })
	<-running
	d.Release()
	goOn <- true
	wg.Wait()
	if left := handles(t, s); len(left) != 0 {
		t.Errorf("left in the TPM after the operation: %x", left)
	}
}

// code makes an answer that is nothing but a response code.
func code(rc uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, 10}, rc)
}

// A TPM that asks for it gets a command again, and not for ever.
func TestRepeatedCommands(t *testing.T) {
	t.Parallel()
	s := swtpmtest.Start(t)
	h := startHiccups(t, s)
	d := open(t, h.device+",exclusive")
	p, data := parent(t, d), secret()
	b := seal(t, d, p, data, auth, false)
	wantSecret(t, d, p, b, auth, data)
	for _, rc := range []uint32{0x922, 0x908, 0x90A, 0x920} { // RETRY, YIELDED, TESTING, NV_RATE
		left := 4
		h.decide(func(c tpm2.TPMCC, answer []byte) []byte {
			if c == tpm2.TPMCCGetRandom && left > 0 {
				left--
				return code(rc)
			}
			return answer
		})
		if err := d.Random(make([]byte, 8)); err != nil || left != 0 {
			t.Errorf("%#x: %v, %d answers left", rc, err, left)
		}
	}
	h.decide(func(tpm2.TPMCC, []byte) []byte { return code(0x90A) })
	if err := d.Random(make([]byte, 8)); !errors.Is(err, sealstore.ErrUnavailable) || !strings.Contains(err.Error(), "the TPM asked for 10s to repeat the command (0x90a)") {
		t.Errorf("a TPM that tests itself for ever: %v", err)
	}
	h.decide(nil)
	wantSecret(t, d, p, b, auth, data)
}

// That unsealing is slow is said once, with what helps.
func TestSlowUnseal(t *testing.T) {
	t.Parallel()
	s := swtpmtest.Start(t)
	h := startHiccups(t, s)
	var log bytes.Buffer
	d, err := tpm.New(tpm.Config{Device: h.device, KeyHandle: handle, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p, data := parent(t, d), secret()
	b := seal(t, d, p, data, auth, false)
	wantSecret(t, d, p, b, auth, data)
	if strings.Contains(log.String(), "slow") {
		t.Errorf("logged: %s", &log)
	}
	for range 2 {
		h.decide(once(tpm2.TPMCCUnseal, func(answer []byte) []byte { time.Sleep(1100 * time.Millisecond); return answer }))
		wantSecret(t, d, p, b, auth, data)
	}
	if n := strings.Count(log.String(), "auto_lock_timeout_secs"); n != 1 || !strings.Contains(log.String(), "took=1.") {
		t.Errorf("said %d times: %s", n, &log)
	}
}
