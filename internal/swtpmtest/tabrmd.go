package swtpmtest

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Broker is a tpm2-abrmd on a session bus of its own, with a TPM behind it.
type Broker struct {
	t       testing.TB
	path    string // of the TPM's socket
	Address string // of the bus, for DBUS_SESSION_BUS_ADDRESS
	daemon  *exec.Cmd
	abrmd   *exec.Cmd
	log     bytes.Buffer // read only after the processes have ended
}

// StartBroker starts a bus and a broker that end with the test, for the TPM at
// a socket. Without the programs the test fails. It sets
// DBUS_SESSION_BUS_ADDRESS.
func StartBroker(t testing.TB, path string) *Broker {
	t.Helper()
	b := &Broker{t: t, path: path, Address: "unix:path=" + filepath.Join(filepath.Dir(path), "bus")}
	t.Cleanup(func() {
		b.Stop()
		b.daemon.Process.Kill()
		b.daemon.Wait()
		if t.Failed() {
			t.Logf("tpm2-abrmd: %s", b.log.Bytes())
		}
	})
	b.daemon = exec.Command("dbus-daemon", "--session", "--nofork", "--nopidfile", "--print-address=1", "--address="+b.Address)
	out, err := b.daemon.StdoutPipe()
	if err == nil {
		err = b.daemon.Start()
	}
	if err != nil {
		t.Fatalf("starting dbus-daemon (Debian package dbus): %v", err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("dbus-daemon prints no address: %v", err)
	}
	go io.Copy(io.Discard, out)
	if t, ok := t.(*testing.T); ok {
		t.Setenv("DBUS_SESSION_BUS_ADDRESS", b.Address)
	}
	b.Start()
	return b
}

// Start starts the broker anew.
func (b *Broker) Start() {
	b.t.Helper()
	name := "tpm2-abrmd"
	if _, err := exec.LookPath(name); err != nil {
		name = "/usr/sbin/tpm2-abrmd" // not in a user's PATH
	}
	b.abrmd = exec.Command(name, "--session", "--allow-root", "--flush-all", "--tcti=swtpm:path="+b.path)
	b.abrmd.Env = append(os.Environ(), "DBUS_SESSION_BUS_ADDRESS="+b.Address)
	b.abrmd.Stdout, b.abrmd.Stderr = &b.log, &b.log
	if err := b.abrmd.Start(); err != nil {
		b.t.Fatalf("starting tpm2-abrmd (Debian package tpm2-abrmd): %v", err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		send := exec.Command("dbus-send", "--bus="+b.Address, "--dest=org.freedesktop.DBus", "--print-reply",
			"/org/freedesktop/DBus", "org.freedesktop.DBus.NameHasOwner", "string:com.intel.tss2.Tabrmd")
		if out, err := send.Output(); err == nil && strings.Contains(string(out), "boolean true") {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatal("tpm2-abrmd does not appear on the bus")
		}
	}
}

// Stop kills the broker.
func (b *Broker) Stop() {
	if b.abrmd != nil {
		b.abrmd.Process.Kill()
		b.abrmd.Wait()
		b.abrmd = nil
	}
}

// Freeze keeps the broker from answering, until Thaw.
func (b *Broker) Freeze() { signal(b.t, b.abrmd, syscall.SIGSTOP) }

// Thaw has it answer again.
func (b *Broker) Thaw() { signal(b.t, b.abrmd, syscall.SIGCONT) }

// Device is the device_path of the broker.
func (b *Broker) Device() string { return "tabrmd:bus_type=session" }
