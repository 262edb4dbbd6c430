package tpm_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

const handle = 0x81000001

var (
	auth  = []byte("0123456789abcdef0123456789abcdef")
	wrong = []byte("XXXXXXXXXXXXXXXX0123456789abcdef")
)

func open(t testing.TB, device string) *tpm.TPM {
	t.Helper()
	d, err := tpm.New(tpm.Config{Device: device, KeyHandle: handle})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func secret() []byte {
	b := make([]byte, 32)
	rand.Read(b)
	return b
}

func parent(t testing.TB, d *tpm.TPM) []byte {
	t.Helper()
	p, err := d.Parent()
	if err != nil {
		t.Fatal(err)
	}
	if len(p) != 34 {
		t.Fatalf("parent Name %x", p)
	}
	return p
}

func seal(t testing.TB, d *tpm.TPM, p, data, a []byte, da bool) sealstore.Blob {
	t.Helper()
	b, err := d.Seal(p, data, a, sealstore.SealOptions{DictionaryAttack: da})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unseal(d *tpm.TPM, p []byte, b sealstore.Blob, a []byte) ([]byte, error) {
	buf, err := secmem.New(128)
	if err != nil {
		return nil, err
	}
	defer buf.Destroy()
	n, err := d.Unseal(p, b, a, buf.Bytes())
	return bytes.Clone(buf.Bytes()[:n]), err
}

func wantSecret(t testing.TB, d *tpm.TPM, p []byte, b sealstore.Blob, a, want []byte) {
	t.Helper()
	if got, err := unseal(d, p, b, a); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("unsealed %x, %v; want %x", got, err, want)
	}
}

func modes(t *testing.T, f func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM)) {
	for _, mode := range []string{"", ",exclusive"} {
		t.Run("shared"+mode, func(t *testing.T) {
			s := swtpmtest.Start(t)
			f(t, s, open(t, s.Device()+mode))
		})
	}
}

func TestRoundTrip(t *testing.T) {
	modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
		p := parent(t, d)
		for _, size := range []int{1, 32, 128} {
			data := make([]byte, size)
			rand.Read(data)
			for _, a := range [][]byte{nil, auth} {
				for _, da := range []bool{false, true} {
					b := seal(t, d, p, data, a, da)
					wantSecret(t, d, p, b, a, data)
					wantSecret(t, d, p, b, a, data)
				}
			}
		}
		if _, err := d.Seal(p, make([]byte, 129), auth, sealstore.SealOptions{}); err == nil {
			t.Error("129 bytes were sealed")
		}
		if _, err := d.Seal(p, secret(), auth[:31], sealstore.SealOptions{}); err == nil {
			t.Error("a short authorisation value was taken")
		}
		random := make([]byte, 100)
		if err := d.Random(random); err != nil || bytes.Equal(random[50:], make([]byte, 50)) {
			t.Errorf("random: %v", err)
		}
	})
}

func TestWrongAuth(t *testing.T) {
	modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
		p, data := parent(t, d), secret()
		free, guarded := seal(t, d, p, data, auth, false), seal(t, d, p, data, auth, true)
		counter := func() uint32 {
			t.Helper()
			l, err := d.Lockout()
			if err != nil {
				t.Fatal(err)
			}
			return l.Counter
		}
		for range 5 {
			if _, err := unseal(d, p, free, wrong); !errors.Is(err, sealstore.ErrAuth) {
				t.Fatal(err)
			}
		}
		if n := counter(); n != 0 {
			t.Fatalf("counter %d after wrong tries on an object without protection", n)
		}
		if _, err := d.ChangeAuth(p, guarded, wrong, auth); !errors.Is(err, sealstore.ErrAuth) {
			t.Fatal(err)
		}
		if n := counter(); n != 1 {
			t.Fatalf("one wrong try moved the counter to %d", n)
		}
		l, _ := d.Lockout()
		for range l.Max - 1 {
			if _, err := unseal(d, p, guarded, wrong); !errors.Is(err, sealstore.ErrAuth) {
				t.Fatal(err)
			}
		}
		if _, err := unseal(d, p, guarded, auth); !errors.Is(err, sealstore.ErrLockout) {
			t.Errorf("in lockout: %v", err)
		}
		if l, err := d.Lockout(); err != nil || !l.InLockout {
			t.Errorf("%+v, %v", l, err)
		}
		wantSecret(t, d, p, free, auth, data)
	})
}

func TestChangeAuth(t *testing.T) {
	modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
		p, data := parent(t, d), secret()
		old := seal(t, d, p, data, auth, true)
		b, err := d.ChangeAuth(p, old, auth, wrong)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.Public, old.Public) {
			t.Error("the public area, and so the Name, changed")
		}
		wantSecret(t, d, p, b, wrong, data)
		if _, err := unseal(d, p, b, auth); !errors.Is(err, sealstore.ErrAuth) {
			t.Errorf("the old value opens the new blob: %v", err)
		}
	})
}

func TestOtherTPM(t *testing.T) {
	modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
		p, data := parent(t, d), secret()
		b := seal(t, d, p, data, auth, false)
		other := open(t, swtpmtest.Start(t).Device())
		if _, err := unseal(other, p, b, auth); !errors.Is(err, sealstore.ErrParent) {
			t.Errorf("on another TPM: %v", err)
		}
		if _, err := unseal(other, parent(t, other), b, auth); !errors.Is(err, sealstore.ErrBlob) {
			t.Errorf("under another parent: %v", err)
		}
		for i := range b.Private {
			if i%17 != 0 {
				continue
			}
			bad := sealstore.Blob{Public: b.Public, Private: bytes.Clone(b.Private)}
			bad.Private[i] ^= 1
			if _, err := unseal(d, p, bad, auth); !errors.Is(err, sealstore.ErrBlob) {
				t.Errorf("bit flipped in byte %d: %v", i, err)
			}
		}
		for i := range b.Public {
			bad := sealstore.Blob{Public: bytes.Clone(b.Public), Private: b.Private}
			bad.Public[i] ^= 1
			if _, err := unseal(d, p, bad, auth); err == nil {
				t.Errorf("bit flipped in byte %d of the public area: unsealed", i)
			}
		}
		wantSecret(t, d, p, b, auth, data)
	})
}

func TestWarmUnsealIsOneCommand(t *testing.T) {
	s := swtpmtest.Start(t)
	d := open(t, s.Device()+",exclusive")
	p, data := parent(t, d), secret()
	b := seal(t, d, p, data, auth, false)
	wantSecret(t, d, p, b, auth, data)
	before := d.Commands()
	for range 10 {
		wantSecret(t, d, p, b, auth, data)
	}
	if n := d.Commands() - before; n != 10 {
		t.Errorf("10 warm unseals took %d commands", n)
	}
	d.Release()
	wantSecret(t, d, p, b, auth, data)
}

// handles lists what is loaded in a TPM that nobody else uses now.
func handles(t *testing.T, s *swtpmtest.TPM) (all []tpm2.TPMHandle) {
	t.Helper()
	c := s.Dial()
	defer c.Close()
	for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
		r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(bare{c})
		if err != nil {
			t.Fatal(err)
		}
		l, err := r.CapabilityData.Data.Handles()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l.Handle...)
	}
	return all
}

type bare struct{ net.Conn }

// Send repeats a command for as long as the TPM asks for that (TPM_RC_RETRY).
func (b bare) Send(cmd []byte) ([]byte, error) {
	for {
		if _, err := b.Write(cmd); err != nil {
			return nil, err
		}
		buf := make([]byte, 4096)
		n, err := b.Read(buf)
		if err != nil || n < 10 || !bytes.Equal(buf[6:10], []byte{0, 0, 0x09, 0x22}) {
			return buf[:n], err
		}
	}
}

// The caller wipes its authorisation value as soon as the call returns.
func TestCallersAuthIsWiped(t *testing.T) {
	modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
		p, data := parent(t, d), secret()
		b := seal(t, d, p, data, auth, true)
		for range 3 {
			a := bytes.Clone(auth)
			wantSecret(t, d, p, b, a, data)
			clear(a)
		}
	})
}

func TestSharedLeavesNothing(t *testing.T) {
	s := swtpmtest.Start(t)
	d := open(t, s.Device())
	p, data := parent(t, d), secret()
	b := seal(t, d, p, data, auth, true)
	wantSecret(t, d, p, b, auth, data)
	unseal(d, p, b, wrong)
	unseal(d, p, sealstore.Blob{Public: b.Public, Private: b.Private[1:]}, auth)
	if _, err := d.ChangeAuth(p, b, auth, wrong); err != nil {
		t.Fatal(err)
	}
	if h := handles(t, s); len(h) != 0 {
		t.Errorf("left in the TPM: %x", h)
	}
	e := open(t, s.Device()+",exclusive")
	wantSecret(t, e, p, b, auth, data)
	e.Close()
	if h := handles(t, s); len(h) != 0 {
		t.Errorf("left in the TPM after Close: %x", h)
	}
}

func TestDeadClientsHandles(t *testing.T) {
	modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
		c, err := net.Dial("unix", s.Path())
		if err != nil {
			t.Fatal(err)
		}
		for {
			if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}).Execute(bare{c}); err != nil {
				break
			}
		}
		for {
			if _, _, err := tpm2.HMACSession(bare{c}, tpm2.TPMAlgSHA256, 16); err != nil {
				break
			}
		}
		c.Close()
		p, data := parent(t, d), secret()
		wantSecret(t, d, p, seal(t, d, p, data, auth, false), auth, data)
	})
}

func TestRestart(t *testing.T) {
	modes(t, func(t *testing.T, s *swtpmtest.TPM, d *tpm.TPM) {
		p, data := parent(t, d), secret()
		b := seal(t, d, p, data, auth, true)
		for range 3 {
			wantSecret(t, d, p, b, auth, data)
			s.Restart()
		}
		s.Stop()
		if _, err := unseal(d, p, b, auth); !errors.Is(err, sealstore.ErrUnavailable) {
			t.Errorf("without a TPM: %v", err)
		}
	})
}

func TestManyAtOnce(t *testing.T) {
	s := swtpmtest.Start(t)
	first := open(t, s.Device())
	p, data := parent(t, first), secret()
	b := seal(t, first, p, data, auth, false)
	var wg sync.WaitGroup
	for range 8 {
		d := open(t, s.Device()) // as many processes have one each
		for range 2 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for range 20 {
					if got, err := unseal(d, p, b, auth); err != nil || !bytes.Equal(got, data) {
						t.Errorf("%x, %v", got, err)
						return
					}
				}
			}()
		}
	}
	wg.Wait()
}

func TestNothingInClearOnTheBus(t *testing.T) {
	s := swtpmtest.Start(t)
	bus := swtpmtest.StartProxy(t, s)
	for _, mode := range []string{"", ",exclusive"} {
		d := open(t, bus.Device()+mode)
		p, data := parent(t, d), secret()
		b := seal(t, d, p, data, auth, true)
		wantSecret(t, d, p, b, auth, data)
		if b, err := d.ChangeAuth(p, b, auth, wrong); err != nil {
			t.Fatal(err)
		} else {
			wantSecret(t, d, p, b, wrong, data)
		}
		d.Close()
		for what, v := range map[string][]byte{"secret": data, "auth": auth, "new auth": wrong, "half the secret": data[:16]} {
			if bytes.Contains(bus.Seen(), v) {
				t.Errorf("%s in clear on the bus", what)
			}
		}
		if !bytes.Contains(bus.Seen(), b.Private) {
			t.Error("the recording does not even hold the sealed blob")
		}
	}
}

// persist makes an SRK at handle, and gives its Name.
func persist(t *testing.T, s *swtpmtest.TPM) []byte {
	t.Helper()
	c, err := net.Dial("unix", s.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(bare{c})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: r.ObjectHandle, Name: r.Name}, PersistentHandle: handle}).Execute(bare{c}); err != nil {
		t.Fatal(err)
	}
	tpm2.FlushContext{FlushHandle: r.ObjectHandle}.Execute(bare{c})
	return r.Name.Buffer
}

func TestPersistentKey(t *testing.T) {
	s := swtpmtest.Start(t)
	name := persist(t, s)
	d := open(t, s.Device())
	p, data := parent(t, d), secret()
	if !bytes.Equal(p, name) {
		t.Error("another Name than the persistent key's")
	}
	b := seal(t, d, p, data, auth, false)
	before := d.Commands()
	wantSecret(t, d, p, b, auth, data)
	if n := d.Commands() - before; n > 5 {
		t.Errorf("%d commands for one unseal on a shared TPM with a persistent key", n)
	}
	if rep, err := d.Check(); err != nil || !rep.Root.Ours() || !rep.Root.Template || rep.Root.Password || rep.Manufacturer == "" {
		t.Errorf("%+v, %v", rep, err)
	}
}

func TestDeviceStrings(t *testing.T) {
	for _, s := range []string{"", "/dev/tpmrm0", "device:/dev/tpmrm0", "swtpm:host=127.0.0.1,port=2321", "swtpm:127.0.0.1:2321",
		"swtpm:path=/run/tpm.sock", "swtpm:path=/run/tpm.sock,exclusive", "swtpm:[::1]:2321,exclusive", "mssim:host=localhost,port=2321", "tabrmd:", "tabrmd",
		"tabrmd:bus_type=session,bus_name=org.example.T", "cmd:tpm2_send -T device:/dev/tpm0"} {
		if _, err := tpm.New(tpm.Config{Device: s}); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"tpm", "device:", "device:tpm0", "swtpm:", "swtpm:path=", "swtpm:path=rel", "swtpm:host=h", "swtpm:host=h,port=x",
		"swtpm:host=h,port=0", "swtpm:path=/a,path=/b", "swtpm:path=/a,port=1", "swtpm:h:1,h:2", "swtpm:h:1,what", "tabrmd:bus=x"} {
		if _, err := tpm.New(tpm.Config{Device: s}); err == nil || !strings.Contains(err.Error(), "device_path") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	os.WriteFile(file, nil, 0o600)
	for device, want := range map[string]string{
		"device:" + dir + "/none":     "does not exist",
		"device:" + file:              "not a device",
		"swtpm:path=" + dir + "/none": "start swtpm",
	} {
		start := time.Now()
		_, err := open(t, device).Parent()
		if !errors.Is(err, sealstore.ErrUnavailable) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", device, err)
		}
		if time.Since(start) > 5*time.Second {
			t.Errorf("%s: took %v", device, time.Since(start))
		}
	}
}

// hung accepts and never answers.
func TestHungTPM(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d, err := tpm.New(tpm.Config{Device: "swtpm:path=" + path, Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Parent(); !errors.Is(err, sealstore.ErrUnavailable) || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("%v", err)
	}
}
