package p11tool

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/sha512"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/miekg/pkcs11"
)

// secretPages copies the module's secret memory: what is neither inherited nor
// dumped. The module shares this process, which can read such pages even where
// the kernel shows them to nobody else.
func secretPages(t *testing.T) (pages [][]byte) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	ok(t, "smaps", err)
	defer f.Close()
	var lo, hi uintptr
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		var from, to uintptr
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			lo, hi = from, to
			continue
		}
		flags, ok := strings.CutPrefix(line, "VmFlags:")
		if all := strings.Fields(flags); ok && slices.Contains(all, "dc") && slices.Contains(all, "dd") {
			if page := copyPage(lo, hi); page != nil {
				pages = append(pages, page)
			}
		}
	}
	return pages
}

// copyPage gives nil where the pages have been unmapped meanwhile.
func copyPage(lo, hi uintptr) (page []byte) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			page = nil
		}
	}()
	return bytes.Clone(unsafe.Slice(*(**byte)(unsafe.Pointer(&lo)), hi-lo))
}

// unlockedKeys counts the pages that hold an unlocked key.
func unlockedKeys(t *testing.T, seed []byte) int {
	t.Helper()
	wide := sha512.Sum512(seed)
	n := 0
	for _, page := range secretPages(t) {
		if bytes.Contains(page, seed) || bytes.Contains(page, wide[32:]) {
			n++
		}
	}
	return n
}

// unlockable makes a token with a key whose seed the test knows.
func unlockable(t *testing.T) (c *client, priv pkcs11.ObjectHandle, seed []byte, pub ed25519.PublicKey) {
	t.Helper()
	seed = []byte("this is the seed to look for ...")
	c = newToken(t)
	priv = c.create(privateTemplate(seed, true))
	return c, priv, seed, ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
}

// TestWipe looks for an unlocked key in the module's memory, after each of the
// calls that lock it at once.
func TestWipe(t *testing.T) {
	isolated(t, setup{proxy: true, exclusive: true, autoLock: 300}, func(t *testing.T, p *place) {
		c, priv, seed, pub := unlockable(t)
		if n := unlockedKeys(t, seed); n != 0 {
			t.Fatalf("%d keys are unlocked before the first signature", n)
		}
		for _, lock := range []struct {
			name string
			do   func() error
		}{
			{"C_Logout", func() error { return c.Logout(c.s) }},
			{"C_CloseSession of the last session", func() error { return c.CloseSession(c.s) }},
			{"C_CloseAllSessions", func() error { return c.CloseAllSessions(c.slot) }},
			{"C_DestroyObject", func() error { return c.DestroyObject(c.s, priv) }},
			{"C_Finalize", c.Finalize},
		} {
			ok(t, "sign", signChecked(c.Ctx, c.s, priv, pub, []byte("m")))
			if unlockedKeys(t, seed) == 0 {
				t.Fatalf("%s: the key is not found where it must be", lock.name)
			}
			p.proxy.take()
			ok(t, "sign", signChecked(c.Ctx, c.s, priv, pub, []byte("m")))
			if sent := p.proxy.take(); len(sent) != 0 {
				t.Errorf("a signature with an unlocked key sent %v", sent)
			}
			ok(t, lock.name, lock.do())
			if n := unlockedKeys(t, seed); n != 0 {
				t.Errorf("%s leaves %d keys unlocked", lock.name, n)
			}
			if lock.name == "C_Finalize" {
				break
			}
			ok(t, "C_CloseAllSessions", c.CloseAllSessions(c.slot))
			c.s = c.open(openRW)
			ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
			if lock.name == "C_DestroyObject" {
				priv = c.create(privateTemplate(seed, true))
			}
			priv = c.find(privateKeys)[0]
			p.proxy.take()
			ok(t, "sign", signChecked(c.Ctx, c.s, priv, pub, []byte("m")))
			if sent := p.proxy.take(); sent.count(ccUnseal) != 1 {
				t.Errorf("after %s a signature sent %v", lock.name, sent)
			}
		}
		// Of the token's own secrets nothing is left either.
		pages := secretPages(t)
		if len(pages) == 0 {
			t.Error("no secret memory is found")
		}
		for _, page := range pages {
			if !bytes.Equal(page, make([]byte, len(page))) {
				t.Error("after C_Finalize there is something in secret memory")
			}
		}
	})
}

// TestAutoLockTimer has an idle key wiped without any further call.
func TestAutoLockTimer(t *testing.T) {
	isolated(t, setup{proxy: true, exclusive: true, autoLock: 2}, func(t *testing.T, p *place) {
		c, priv, seed, pub := unlockable(t)
		ok(t, "sign", signChecked(c.Ctx, c.s, priv, pub, []byte("m")))
		p.proxy.take()
		// In use it stays, beyond the time that it may be idle.
		for start := time.Now(); time.Since(start) < 3*time.Second; time.Sleep(100 * time.Millisecond) {
			ok(t, "sign", signChecked(c.Ctx, c.s, priv, pub, []byte("m")))
		}
		if sent := p.proxy.take(); len(sent) != 0 {
			t.Errorf("signatures with a key in use sent %v", sent)
		}
		if unlockedKeys(t, seed) == 0 {
			t.Fatal("the key is not found where it must be")
		}
		for deadline := time.Now().Add(20 * time.Second); unlockedKeys(t, seed) != 0; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the idle key is still unlocked")
			}
		}
		if sent := p.proxy.take(); len(sent) != 0 {
			t.Errorf("wiping sent %v", sent)
		}
		ok(t, "sign", signChecked(c.Ctx, c.s, priv, pub, []byte("m")))
		if sent := p.proxy.take(); sent.count(ccUnseal) != 1 {
			t.Errorf("the next signature sent %v", sent)
		}
	})
}
