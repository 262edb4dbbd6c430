package tpm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// transport is a kind of connection to a TPM, and how what is behind it is
// restarted.
type transport struct {
	device  string
	tpm     *swtpmtest.TPM
	next    freezer // what we speak to
	restart func()
}

type freezer interface {
	Freeze()
	Thaw()
}

func transports(t *testing.T, f func(t *testing.T, x transport)) {
	for name, start := range map[string]func(t *testing.T) transport{
		"unix": func(t *testing.T) transport {
			s := swtpmtest.Start(t)
			return transport{s.Device(), s, s, s.Restart}
		},
		"exclusive": func(t *testing.T) transport {
			s := swtpmtest.Start(t)
			return transport{s.Device() + ",exclusive", s, s, s.Restart}
		},
		"tcp": func(t *testing.T) transport {
			s := swtpmtest.StartTCP(t)
			return transport{"swtpm:" + s.Address(), s, s, s.Restart}
		},
		"mssim": func(t *testing.T) transport {
			// swtpm understands the simulator's envelope on its own port.
			s := swtpmtest.StartTCP(t)
			return transport{fmt.Sprintf("mssim:host=127.0.0.1,port=%d", s.Port()), s, s, s.Restart}
		},
		"cmd": func(t *testing.T) transport {
			s := swtpmtest.Start(t)
			return transport{"cmd:tpm2_send -T 'swtpm:path=" + s.Path() + "'", s, s, s.Restart}
		},
		"tabrmd": func(t *testing.T) transport {
			s := swtpmtest.Start(t)
			b := swtpmtest.StartBroker(t, s.Path())
			return transport{b.Device(), s, b, func() { b.Stop(); s.Restart(); b.Start() }}
		},
	} {
		t.Run(name, func(t *testing.T) {
			// They wait more than they work. A broker is found by the environment,
			// which all share.
			if name != "tabrmd" {
				t.Parallel()
			}
			f(t, start(t))
		})
	}
}

// Every kind of connection carries all operations, survives a restart of what
// is behind it, and leaves nothing in the TPM.
func TestTransports(t *testing.T) {
	transports(t, func(t *testing.T, x transport) {
		d := open(t, x.device)
		p, data := parent(t, d), secret()
		pin, key := seal(t, d, p, data, auth, true), seal(t, d, p, data, auth, false)
		b := bind(t, d, secret())
		policy := bound(t, d, p, data, b)
		for range 2 {
			for range 3 {
				wantSecret(t, d, p, pin, auth, data)
				wantSecret(t, d, p, key, auth, data)
				wantSecret(t, d, p, policy, auth, data)
			}
			if _, err := unseal(d, p, key, wrong); !errors.Is(err, sealstore.ErrAuth) {
				t.Errorf("wrong value: %v", err)
			}
			random := make([]byte, 40)
			if err := d.Random(random); err != nil || bytes.Equal(random, make([]byte, 40)) {
				t.Errorf("random: %v", err)
			}
			x.restart()
		}
		changed, err := d.ChangeAuth(p, pin, auth, wrong)
		if err != nil {
			t.Fatal(err)
		}
		wantSecret(t, d, p, changed, wrong, data)
		d.Close()
		if !strings.HasPrefix(x.device, "tabrmd:") {
			if left := handles(t, x.tpm); len(left) != 0 {
				t.Errorf("left in the TPM: %x", left)
			}
		}
		if s := d.String(); !strings.HasPrefix(x.device, s[:4]) {
			t.Errorf("%s calls itself %s", x.device, s)
		}
	})
}

// The number of commands that a warm unseal takes, on what is ours alone and
// on what others use too.
func TestCommandsPerUnseal(t *testing.T) {
	for kind, want := range map[string]struct{ free, bound uint64 }{
		"exclusive": {1, 4}, "tabrmd": {1, 4}, "unix": {5, 8},
	} {
		t.Run(kind, func(t *testing.T) {
			s := swtpmtest.Start(t)
			persist(t, s)
			device := s.Device()
			switch kind {
			case "exclusive":
				device += ",exclusive"
			case "tabrmd":
				device = swtpmtest.StartBroker(t, s.Path()).Device()
			}
			d := open(t, device)
			p, data := parent(t, d), secret()
			free := seal(t, d, p, data, auth, false)
			b, err := d.Seal(p, data, auth, sealstore.SealOptions{Binding: bind(t, d, secret())})
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				what string
				blob sealstore.Blob
				most uint64
			}{{"without a policy", free, want.free}, {"with one", b, want.bound}} {
				wantSecret(t, d, p, c.blob, auth, data)
				before := d.Commands()
				wantSecret(t, d, p, c.blob, auth, data)
				if n := d.Commands() - before; n > c.most {
					t.Errorf("%s: %d commands, at most %d are allowed", c.what, n, c.most)
				}
			}
		})
	}
}

// What is kept is left when nothing more comes, so that others get at it.
func TestIdle(t *testing.T) {
	s := swtpmtest.Start(t)
	d, err := tpm.New(tpm.Config{Device: s.Device() + ",exclusive", KeyHandle: handle, Idle: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p, data := parent(t, d), secret()
	b := seal(t, d, p, data, auth, false)
	for range 2 {
		wantSecret(t, d, p, b, auth, data)
		if left := handles(t, s); len(left) != 0 { // waits until swtpm is free
			t.Errorf("left in the TPM: %x", left)
		}
	}
}

// What accepts connections and never answers is given up after the timeout, on
// a kept connection and on a new one, and used again when it answers.
func TestWedged(t *testing.T) {
	// The system makes no connection while the queue of a TCP port is full.
	const full = "no connection within 3s"
	transports(t, func(t *testing.T, x transport) {
		d, err := tpm.New(tpm.Config{Device: x.device, KeyHandle: handle, Timeout: 3 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		p, data := parent(t, d), secret()
		b := seal(t, d, p, data, auth, false)
		wantSecret(t, d, p, b, auth, data)
		x.next.Freeze()
		for range 2 {
			start := time.Now()
			_, err := unseal(d, p, b, auth)
			if !errors.Is(err, sealstore.ErrUnavailable) || !strings.Contains(err.Error(), "no answer within 3s") && !strings.Contains(err.Error(), full) {
				t.Errorf("wedged: %v", err)
			}
			if took := time.Since(start); took > 40*time.Second {
				t.Errorf("given up after %v", took)
			}
		}
		x.next.Thaw()
		for deadline := time.Now().Add(20 * time.Second); ; {
			_, err := unseal(d, p, b, auth)
			if err == nil {
				break
			}
			if !strings.Contains(err.Error(), full) || time.Now().After(deadline) {
				t.Fatalf("no longer wedged: %v", err)
			}
		}
		wantSecret(t, d, p, b, auth, data)
	})
}

// The reference simulator is switched on before the first command. swtpm plays
// the part of it that takes commands.
func TestSimulatorPower(t *testing.T) {
	s := swtpmtest.StartTCP(t)
	command, platform := swtpmtest.ListenPair(t)
	defer command.Close()
	defer platform.Close()
	var on atomic.Bool
	serve := func(l net.Listener, f func(c net.Conn)) {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f(c)
			c.Close()
		}
	}
	go serve(platform, func(c net.Conn) {
		for _, want := range []uint32{1, 11, 20} { // power on, NV on, end of the session
			var got uint32
			if err := binary.Read(c, binary.BigEndian, &got); err != nil || got != want {
				t.Errorf("the platform was told %d, %v; want %d", got, err, want)
				return
			}
			on.Store(got != 1)
			binary.Write(c, binary.BigEndian, uint32(0))
		}
	})
	go serve(command, func(c net.Conn) {
		if !on.Load() {
			return
		}
		up := s.Dial()
		go func() { io.Copy(c, up); c.Close() }()
		io.Copy(up, c)
		up.Close()
	})
	d := open(t, fmt.Sprintf("mssim:host=127.0.0.1,port=%d", command.Addr().(*net.TCPAddr).Port))
	p, data := parent(t, d), secret()
	wantSecret(t, d, p, seal(t, d, p, data, auth, false), auth, data)
}

// A command gets what it needs to reach a TPM, and nothing else of the
// environment: a PIN may be there.
func TestProgramEnvironment(t *testing.T) {
	s := swtpmtest.Start(t)
	t.Setenv("TPM2TOOLS_TCTI", "swtpm:path="+s.Path())
	t.Setenv("ICN_P11_PIN", "a PIN for the host")
	parent(t, open(t, "cmd:tpm2_send"))

	file := filepath.Join(t.TempDir(), "environment")
	if _, err := open(t, "cmd:env >'"+file+"'").Parent(); !errors.Is(err, sealstore.ErrUnavailable) {
		t.Errorf("env as a TPM: %v", err)
	}
	env, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(env, []byte("TPM2TOOLS_TCTI=swtpm:")) || bytes.Contains(env, []byte("a PIN")) {
		t.Errorf("the command was given\n%s", env)
	}
}

func TestTransportErrors(t *testing.T) {
	s := swtpmtest.Start(t)
	b := swtpmtest.StartBroker(t, s.Path())
	dir := t.TempDir()
	silent := filepath.Join(dir, "silent")
	if err := os.WriteFile(silent, []byte("#!/bin/sh\nexec sleep 60\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for device, want := range map[string]string{
		"mssim:host=127.0.0.1,port=1":                     "start the simulator there, or correct device_path",
		"cmd:/no/such/program":                            "not found",
		"cmd:echo no frame":                               "try the command of device_path by hand",
		"cmd:echo a reason >&2; false":                    `it says "a reason`,
		"cmd:" + silent:                                   "no answer within",
		"tabrmd:bus_type=session,bus_name=com.example.No": "start tpm2-abrmd, or correct bus_name in device_path",
	} {
		d, err := tpm.New(tpm.Config{Device: device, KeyHandle: handle, Timeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Parent(); !errors.Is(err, sealstore.ErrUnavailable) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", device, err, want)
		}
		d.Close()
	}
	b.Stop()
	if _, err := open(t, b.Device()).Parent(); !errors.Is(err, sealstore.ErrUnavailable) || !strings.Contains(err.Error(), "start tpm2-abrmd") {
		t.Errorf("without the broker: %v", err)
	}
	t.Setenv("DBUS_SESSION_BUS_ADDRESS", "unix:path="+filepath.Join(dir, "none"))
	if _, err := open(t, b.Device()).Parent(); !errors.Is(err, sealstore.ErrUnavailable) || !strings.Contains(err.Error(), "start D-Bus") {
		t.Errorf("without the bus: %v", err)
	}
}
