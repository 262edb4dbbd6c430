package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
)

// proxy stands before a TPM. Once pass does not let a command through, nobody
// is there any more.
type proxy struct {
	l    net.Listener
	tpm  string
	pass func() bool
	wg   sync.WaitGroup
}

func startProxy(t *testing.T, tpm *swtpmtest.TPM, pass func() bool) *proxy {
	l, err := net.Listen("unix", filepath.Join(filepath.Dir(tpm.Path()), "proxy"))
	if err != nil {
		t.Fatal(err)
	}
	f := &proxy{l: l, tpm: tpm.Path(), pass: pass}
	f.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.wg.Go(func() { f.serve(c) })
		}
	})
	return f
}

func (f *proxy) device() string { return "swtpm:path=" + f.l.Addr().String() }

func (f *proxy) stop() {
	f.l.Close()
	f.wg.Wait()
}

func (f *proxy) serve(c net.Conn) {
	defer c.Close()
	s, err := net.Dial("unix", f.tpm)
	if err != nil {
		return
	}
	defer s.Close()
	for {
		if !frame(io.Discard, c, func(p []byte) bool {
			if !f.pass() {
				f.l.Close()
				return false
			}
			_, err := s.Write(p)
			return err == nil
		}) || !frame(c, s, nil) {
			return
		}
	}
}

// frame moves one command or answer: a tag, a length and the rest (Part 1,
// section 18).
func frame(to io.Writer, from io.Reader, instead func([]byte) bool) bool {
	p := make([]byte, 6)
	if _, err := io.ReadFull(from, p); err != nil {
		return false
	}
	rest := make([]byte, binary.BigEndian.Uint32(p[2:])-6)
	if _, err := io.ReadFull(from, rest); err != nil {
		return false
	}
	p = append(p, rest...)
	if instead != nil {
		return instead(p)
	}
	_, err := to.Write(p)
	return err == nil
}

// Whichever command is the last that the TPM answers, init makes all of a
// token or nothing of it.
func TestInitIsAllOrNothing(t *testing.T) {
	t.Setenv("USER_PIN", "user-1234")
	t.Setenv("SO_PIN", "so-1234")
	const most = 500
	for n := 0; n <= most; n++ {
		done := false
		// Each round has a TPM of its own: one that is cut off may keep
		// sessions, and counts a wrong PIN for a power failure.
		if !t.Run(strconv.Itoa(n), func(t *testing.T) { done = initUpTo(t, n) }) || done {
			return
		}
	}
	t.Errorf("init does not end after %d commands", most)
}

// initUpTo makes a token over a TPM that answers n commands, and tells
// whether that was enough.
func initUpTo(t *testing.T, n int) bool {
	tpm := swtpmtest.Start(t)
	var left atomic.Int64
	left.Store(int64(n))
	proxy := startProxy(t, tpm, func() bool { return left.Add(-1) >= 0 })
	defer proxy.stop()
	dir := t.TempDir()
	store, conf := filepath.Join(dir, "store"), filepath.Join(dir, "conf")
	t.Setenv("ICN_P11_CONF", conf)
	if err := writeConf(conf, proxy.device(), store); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	status := run([]string{"init", "--label", "node", "--pin-source", "env:USER_PIN", "--so-pin-source", "env:SO_PIN"}, &stdout, &stderr)
	if status == exitOK {
		if _, err := did.Parse(string(bytes.TrimSpace(stdout.Bytes()))); err != nil {
			t.Error(err)
		}
		return true
	}
	if status != exitFailed || stdout.Len() > 0 || stderr.Len() == 0 {
		t.Fatalf("status %d, %q, %s", status, &stdout, &stderr)
	}
	if left, err := os.ReadDir(filepath.Join(store, "tokens")); len(left) > 0 {
		t.Fatalf("%v is left, %v", left, err)
	}
	return false
}
