package p11tool

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"
)

func init() {
	workers["reinit"] = func(args []string) error {
		c, err := loadModule()
		if err != nil {
			return err
		}
		defer c.Finalize()
		slot, err := findToken(c, args[0])
		if err != nil {
			return err
		}
		return setUp(c, slot, args[0])
	}
}

// TestSlotsWhileTokensAreMade: a thread that only lists takes no new token's
// sessions away.
func TestSlotsWhileTokensAreMade(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		c := load(t)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						c.GetSlotList(false)
					}
				}
			})
		}
		for range 15 {
			slot, err := freeSlot(c)
			ok(t, "free slot", err)
			ok(t, "C_InitToken", c.InitToken(slot, soPIN, "one of many"))
			s, err := c.OpenSession(slot, openRW)
			ok(t, "C_OpenSession", err)
			for range 3 {
				_, err := c.GetSlotList(false)
				ok(t, "C_GetSlotList", err)
				_, err = c.GetSessionInfo(s)
				ok(t, "C_GetSessionInfo of a new token", err)
			}
			ok(t, "C_CloseSession", c.CloseSession(s))
		}
		close(stop)
		wg.Wait()
	})
}

// TestNoDescriptorsLeft: a token that cannot be read for want of descriptors
// is not gone.
func TestNoDescriptorsLeft(t *testing.T) {
	isolated(t, setup{autoLock: 60}, func(t *testing.T, p *place) {
		c := newToken(t)
		pub, priv := c.generate("key", true)
		public, err := point(c.Ctx, c.s, pub)
		ok(t, "point", err)
		ok(t, "sign", signChecked(c.Ctx, c.s, priv, public, []byte("before")))
		slots, err := c.GetSlotList(false)
		ok(t, "C_GetSlotList", err)

		var limit unix.Rlimit
		ok(t, "getrlimit", unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
		open, err := os.ReadDir("/proc/self/fd")
		ok(t, "descriptors", err)
		for room := range 6 {
			few := limit
			few.Cur = uint64(len(open) - 1 + room)
			ok(t, "setrlimit", unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
			c.GetSlotList(false)
			ok(t, "setrlimit", unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
			_, err = c.GetSessionInfo(c.s)
			ok(t, "C_GetSessionInfo afterwards", err)
			ok(t, "sign afterwards", signChecked(c.Ctx, c.s, priv, public, []byte("after")))
		}
		again, err := c.GetSlotList(false)
		ok(t, "C_GetSlotList", err)
		if len(again) != len(slots) {
			t.Errorf("slots %v, were %v", again, slots)
		}
	})
}

// TestReinitialisedElsewhere: when another process makes the token anew, the
// login is over, and a new one is possible.
func TestReinitialisedElsewhere(t *testing.T) {
	isolated(t, setup{autoLock: 3600}, func(t *testing.T, p *place) {
		c := newToken(t)
		_, priv := c.generate("key", true)
		_, err := sign(c.Ctx, c.s, priv, []byte("m")) // unlocked from now on
		ok(t, "sign", err)
		runWorker(t, "reinit", "test token")
		time.Sleep(1100 * time.Millisecond)
		for range 2 {
			if _, err := sign(c.Ctx, c.s, priv, []byte("m")); err == nil {
				t.Error("an unlocked key of the old token signs")
			}
		}
		_, _, err = generate(c.Ctx, c.s, "another", true)
		want(t, "C_GenerateKeyPair", err, pkcs11.CKR_USER_NOT_LOGGED_IN)
		info, err := c.GetSessionInfo(c.s)
		ok(t, "C_GetSessionInfo", err)
		if info.State != pkcs11.CKS_RW_PUBLIC_SESSION {
			t.Errorf("state %d after the login is over", info.State)
		}
		_, err = sign(c.Ctx, c.s, priv, []byte("m"))
		if err == nil {
			t.Error("a key of the old token signs")
		}
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
		c.generate("another", true)

		// And when it is removed.
		tokens, err := filepath.Glob(filepath.Join(p.store(), "tokens", "*"))
		if err != nil || len(tokens) != 1 {
			t.Fatal(tokens, err)
		}
		ok(t, "removing the token", os.Rename(tokens[0], filepath.Join(p.dir, "away")))
		_, _, err = generate(c.Ctx, c.s, "third", true)
		if err == nil {
			t.Error("a key was made in a token that is gone")
		}
		want(t, "C_FindObjectsInit", c.FindObjectsInit(c.s, nil), pkcs11.CKR_DEVICE_REMOVED)
		want(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN), pkcs11.CKR_DEVICE_REMOVED)
		want(t, "C_SetPIN", c.SetPIN(c.s, userPIN, "new pin"), pkcs11.CKR_DEVICE_REMOVED)
	})
}
