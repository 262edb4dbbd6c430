package p11tool

import (
	"fmt"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"
)

// TestScale has 64 threads with 1,000 sessions make 10,000 objects, find each
// of them and sign meanwhile; a process that comes afterwards has all of them.
func TestScale(t *testing.T) {
	isolated(t, setup{autoLock: 300}, func(t *testing.T, _ *place) {
		const objects, sessions, threads = 10_000, 1_000, 64
		c := newToken(t)
		pub, shared := c.generate("shared", true)
		key, err := point(c.Ctx, c.s, pub)
		ok(t, "public key", err)

		one := func(i int) error {
			var open []pkcs11.SessionHandle
			for n := i; n < sessions; n += threads {
				s, err := c.OpenSession(c.slot, openRW)
				if err != nil {
					return fmt.Errorf("C_OpenSession: %w", err)
				}
				open = append(open, s)
			}
			for n := i; n < objects; n += threads {
				s, label := open[n%len(open)], fmt.Sprintf("object %d", n)
				o, err := c.CreateObject(s, dataTemplate(label, []byte(label), true, n%2 == 0))
				if err != nil {
					return fmt.Errorf("C_CreateObject: %w", err)
				}
				if n%500 != i {
					continue
				}
				if err := signChecked(c.Ctx, s, shared, key, []byte(label)); err != nil {
					return err
				}
				if found, err := find(c.Ctx, s, attr(pkcs11.CKA_LABEL, label)); err != nil || len(found) != 1 || found[0] != o {
					return fmt.Errorf("%s: found %v (%v)", label, found, err)
				}
			}
			for _, s := range open {
				if err := c.CloseSession(s); err != nil {
					return fmt.Errorf("C_CloseSession: %w", err)
				}
			}
			return nil
		}
		var wg sync.WaitGroup
		for i := range threads {
			wg.Go(func() {
				if err := one(i); err != nil {
					t.Errorf("thread %d: %v", i, err)
				}
			})
		}
		wg.Wait()
		if n := len(c.find()); n != objects+2 {
			t.Fatalf("%d objects, not %d", n, objects+2)
		}
		ok(t, "C_Finalize", c.Finalize())
		ok(t, "C_Initialize", c.Initialize())
		c.s = c.open(openRO)
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
		if n := len(c.find()); n != objects+2 {
			t.Fatalf("%d objects after C_Initialize, not %d", n, objects+2)
		}
		for _, n := range []int{0, 1, objects - 1} {
			label := fmt.Sprintf("object %d", n)
			found := c.find(attr(pkcs11.CKA_LABEL, label))
			if len(found) != 1 {
				t.Fatalf("%s: found %v", label, found)
			}
			a, err := c.GetAttributeValue(c.s, found[0], []*pkcs11.Attribute{attr(pkcs11.CKA_VALUE, nil)})
			if err != nil || string(a[0].Value) != label {
				t.Errorf("%s: %v %v", label, a, err)
			}
		}
	})
}
