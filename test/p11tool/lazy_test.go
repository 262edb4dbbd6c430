package p11tool

import (
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"
)

// listing makes the calls that only list, and returns a session with each
// token.
func listing(t *testing.T, c *pkcs11.Ctx) []pkcs11.SessionHandle {
	t.Helper()
	_, err := c.GetInfo()
	ok(t, "C_GetInfo", err)
	slots, err := c.GetSlotList(false)
	ok(t, "C_GetSlotList", err)
	with, err := c.GetSlotList(true)
	ok(t, "C_GetSlotList", err)
	if len(slots) != 2 || len(with) == 0 {
		t.Fatalf("slots %v, with a token %v", slots, with)
	}
	var sessions []pkcs11.SessionHandle
	for _, slot := range slots {
		_, err := c.GetSlotInfo(slot)
		ok(t, "C_GetSlotInfo", err)
		list, err := c.GetMechanismList(slot)
		ok(t, "C_GetMechanismList", err)
		for _, m := range list {
			_, err := c.GetMechanismInfo(slot, mech(m.Mechanism))
			ok(t, "C_GetMechanismInfo", err)
		}
	}
	for _, flags := range []uint{openRO, openRW} {
		s, err := c.OpenSession(slots[0], flags)
		ok(t, "C_OpenSession", err)
		_, err = c.GetSessionInfo(s)
		ok(t, "C_GetSessionInfo", err)
		sessions = append(sessions, s)
	}
	return sessions
}

// prepare makes a token with a key pair in other processes, so that this one
// has not spoken to the TPM yet.
func prepare(t *testing.T) {
	t.Helper()
	runWorker(t, "init", "test token")
	runWorker(t, "change", "generate", "key")
	runWorker(t, "change", "data", "note", "text", "public")
}

// TestSilentTPM has a TPM that takes connections and never answers: nothing
// that only lists goes near it.
func TestSilentTPM(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		prepare(t)
		path := filepath.Join(p.dir, "silent.sock")
		l, err := net.Listen("unix", path)
		ok(t, "listen", err)
		defer l.Close()
		var connections atomic.Int32
		go func() {
			for {
				if _, err := l.Accept(); err != nil {
					return
				}
				connections.Add(1)
			}
		}()
		p.writeConf(t, "swtpm:path="+path, setup{})
		start := time.Now()
		c := load(t)
		listing(t, c)
		if d := time.Since(start); d > time.Second {
			t.Errorf("listing took %v", d)
		}
		if n := connections.Load(); n != 0 {
			t.Errorf("listing connected to the TPM %d times", n)
		}

		// p11-kit and Java ask C_GetTokenInfo of each token when they list.
		// Only the lockout counters come from the TPM, so it may wait a
		// little for them, not as long as for an operation.
		for range 2 {
			start = time.Now()
			if _, err := findToken(c, "test token"); err != nil {
				t.Errorf("C_GetTokenInfo: %v", err)
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("C_GetTokenInfo took %v", d)
			}
		}
		// Nor may the question that is still open hold up the host's exit.
		start = time.Now()
		ok(t, "C_Finalize", c.Finalize())
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("C_Finalize took %v", d)
		}
	})
}

// TestDeadTPM has no TPM at first. What lists works and does not wait, what
// needs the TPM says so, and when it is back all works without more.
func TestDeadTPM(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		prepare(t)
		path := filepath.Join(p.dir, "later.sock")
		p.writeConf(t, "swtpm:path="+path, setup{})
		start := time.Now()
		c := load(t)
		s := listing(t, c)
		slot, err := findToken(c, "test token")
		ok(t, "C_GetTokenInfo", err)
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("listing took %v", d)
		}
		device := []uint{pkcs11.CKR_DEVICE_ERROR, pkcs11.CKR_DEVICE_REMOVED, pkcs11.CKR_TOKEN_NOT_PRESENT}
		start = time.Now()
		want(t, "C_Login without a TPM", c.Login(s[0], pkcs11.CKU_USER, userPIN), device...)
		if _, err := find(c, s[0]); err == nil {
			t.Error("a search in public objects succeeded without the TPM that opens them")
		}
		_ = c.FindObjectsFinal(s[0])
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("a login and a search without a TPM took %v", d)
		}

		ok(t, "symlink", os.Symlink(p.tpm, path))
		ok(t, "C_Login when the TPM is back", c.Login(s[0], pkcs11.CKU_USER, userPIN))
		found, err := find(c, s[0], attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))
		ok(t, "find", err)
		if len(found) != 1 {
			t.Fatalf("%d private keys in slot %d", len(found), slot)
		}
		key, err := point(c, s[0], found[0])
		ok(t, "public key", err)
		ok(t, "sign when the TPM is back", signChecked(c, s[0], found[0], key, []byte("m")))

		// And gone again, now in the middle of use.
		ok(t, "remove", os.Remove(path))
		_, err = sign(c, s[0], found[0], []byte("m"))
		if err == nil {
			t.Error("signed without a TPM, though nothing may stay unlocked")
		}
		ok(t, "symlink", os.Symlink(p.tpm, path))
		ok(t, "sign when the TPM is back again", signChecked(c, s[0], found[0], key, []byte("m")))
	})
}

// TestTraffic counts the TPM commands of each step.
func TestTraffic(t *testing.T) {
	isolated(t, setup{proxy: true, exclusive: true}, func(t *testing.T, p *place) {
		traffic(t, p, true)
	})
}

// TestTrafficShared is TestTraffic on a TPM that others use, too, where each
// transaction must load and flush.
func TestTrafficShared(t *testing.T) {
	isolated(t, setup{proxy: true}, func(t *testing.T, p *place) {
		traffic(t, p, false)
	})
}

func traffic(t *testing.T, p *place, exclusive bool) {
	prepare(t)
	p.proxy.take()
	c := load(t)
	s := listing(t, c)[1]
	none := func(what string) {
		t.Helper()
		if sent := p.proxy.take(); len(sent) != 0 {
			t.Errorf("%s sent TPM commands %v", what, sent)
		}
	}
	none("listing")

	slot, err := findToken(c, "test token")
	ok(t, "C_GetTokenInfo", err)
	start := time.Now()
	for range 200 {
		_, err := c.GetTokenInfo(slot)
		ok(t, "C_GetTokenInfo", err)
	}
	seconds := int(time.Since(start)/time.Second) + 1
	if sent := p.proxy.take(); len(sent) > seconds {
		t.Errorf("C_GetTokenInfo sent %d TPM commands in %d s: %v", len(sent), seconds, sent)
	}

	// The first search may unseal the public secret, the others have it.
	for i := range 3 {
		found, err := find(c, s)
		ok(t, "find", err)
		if len(found) != 2 {
			t.Errorf("%d public objects, want 2", len(found))
		}
		for _, o := range found {
			_, err := c.GetAttributeValue(s, o, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, nil)})
			ok(t, "CKA_LABEL", err)
		}
		sent := p.proxy.take()
		if sent.count(ccUnseal) > 1 || i > 0 && len(sent) != 0 {
			t.Errorf("search %d sent %v", i, sent)
		}
	}

	ok(t, "C_Login", c.Login(s, pkcs11.CKU_USER, userPIN))
	if sent := p.proxy.take(); sent.count(ccUnseal) != 1 || len(sent) > 8 {
		t.Errorf("C_Login sent %v, which is not one TPM2_Unseal in at most 8 commands", sent)
	}
	found, err := find(c, s, attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))
	ok(t, "find", err)
	if len(found) != 1 {
		t.Fatalf("%d private keys", len(found))
	}
	key, err := point(c, s, found[0])
	ok(t, "public key", err)
	none("a search in private objects")
	ok(t, "sign", signChecked(c, s, found[0], key, []byte("warm up")))
	p.proxy.take()
	for range 10 {
		ok(t, "sign", signChecked(c, s, found[0], key, []byte("m")))
		sent := p.proxy.take()
		if sent.count(ccUnseal) != 1 || exclusive && len(sent) != 1 {
			t.Errorf("a signature sent %v", sent)
		}
	}

	// Verification and all that is not the private key is not the TPM's.
	pub, err := find(c, s, attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY))
	ok(t, "find", err)
	sig, err := sign(c, s, found[0], []byte("m"))
	ok(t, "sign", err)
	p.proxy.take()
	ok(t, "C_VerifyInit", c.VerifyInit(s, mech(ckmEdDSA), pub[0]))
	ok(t, "C_Verify", c.Verify(s, []byte("m"), sig))
	none("a verification")
}

// TestTrafficUnlocked signs without the TPM while the key stays unlocked,
// and with it again when its time is over.
func TestTrafficUnlocked(t *testing.T) {
	isolated(t, setup{proxy: true, exclusive: true, autoLock: 300}, func(t *testing.T, p *place) {
		c := newToken(t)
		pub, priv := c.generate("key", true)
		key, err := point(c.Ctx, c.s, pub)
		ok(t, "public key", err)
		ok(t, "sign", signChecked(c.Ctx, c.s, priv, key, []byte("warm up")))
		p.proxy.take()
		for range 20 {
			ok(t, "sign", signChecked(c.Ctx, c.s, priv, key, []byte("m")))
		}
		if sent := p.proxy.take(); len(sent) != 0 {
			t.Errorf("signatures with an unlocked key sent %v", sent)
		}
	})
}

// TestRestartedTPM starts a TPM again under a module that is in use, as after
// the crash of a software TPM: what was loaded is gone, what was stored is
// not.
func TestRestartedTPM(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) { restart(t, p, "") })
}

// TestRestartedTPMExclusive is TestRestartedTPM with a connection, sessions
// and objects that were to be kept.
func TestRestartedTPMExclusive(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) { restart(t, p, ",exclusive") })
}

// TestBrokenPipe restarts the TPM, and then has a command in its place that
// ends at once, in a host that a write to what is closed would kill.
func TestBrokenPipe(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		tpm := swtpmtest.Start(t)
		p.writeConf(t, tpm.Device()+",exclusive", setup{})
		c := newToken(t)
		pub, priv := c.generate("key", true)
		key, err := point(c.Ctx, c.s, pub)
		ok(t, "public key", err)
		defaultAction(t, unix.SIGPIPE)
		tpm.Restart()
		ok(t, "sign after the TPM was restarted", signChecked(c.Ctx, c.s, priv, key, []byte("m")))

		ok(t, "C_Finalize", c.Finalize())
		p.writeConf(t, "cmd:true", setup{})
		ok(t, "C_Initialize", c.Initialize())
		defaultAction(t, unix.SIGPIPE)
		slot, err := findToken(c.Ctx, "test token")
		ok(t, "C_GetTokenInfo", err)
		s, err := c.OpenSession(slot, openRW)
		ok(t, "C_OpenSession", err)
		for range 20 {
			want(t, "C_Login", c.Login(s, pkcs11.CKU_USER, userPIN), pkcs11.CKR_DEVICE_ERROR)
		}
	})
}

// defaultAction takes this process's handler of a signal away, the Go
// runtimes' too, as a host may do.
func defaultAction(t *testing.T, signal syscall.Signal) {
	t.Helper()
	var none [4]uint64 // struct kernel_sigaction
	if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(signal), uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0); e != 0 {
		t.Fatal(e)
	}
}

func restart(t *testing.T, p *place, option string) {
	tpm := swtpmtest.Start(t)
	p.writeConf(t, tpm.Device()+option, setup{})
	c := newToken(t)
	pub, priv := c.generate("key", true)
	key, err := point(c.Ctx, c.s, pub)
	ok(t, "public key", err)
	ok(t, "sign", signChecked(c.Ctx, c.s, priv, key, []byte("before")))
	tpm.Restart()
	ok(t, "sign after the TPM was restarted", signChecked(c.Ctx, c.s, priv, key, []byte("after")))
	ok(t, "C_Logout", c.Logout(c.s))
	tpm.Restart()
	ok(t, "C_Login after the TPM was restarted", c.Login(c.s, pkcs11.CKU_USER, userPIN))
	_, priv = c.generate("another key", true)
	_, err = sign(c.Ctx, c.s, priv, []byte("m"))
	ok(t, "sign with a new key", err)
}
