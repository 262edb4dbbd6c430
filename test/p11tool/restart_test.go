package p11tool

import (
	"crypto/ed25519"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
)

// TestTPMKilled kills the TPM with -9 over and over in the midst of 1,000
// operations, and restarts it on its state: what fails meanwhile fails cleanly,
// and all keys that were reported stored are there and sign.
func TestTPMKilled(t *testing.T) {
	for _, exclusive := range []string{"", ",exclusive"} {
		t.Run("shared"+exclusive, func(t *testing.T) { killedTPM(t, exclusive) })
	}
}

func killedTPM(t *testing.T, mode string) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		s := swtpmtest.Start(t) // of this process, which can kill it
		p.writeConf(t, s.Device()+mode, setup{})
		c := newToken(t)
		keys := map[string]ed25519.PublicKey{}
		add := func(label string) error {
			pub, _, err := generate(c.Ctx, c.s, label, true)
			if err != nil {
				return err
			}
			keys[label], err = point(c.Ctx, c.s, pub)
			return err
		}
		ok(t, "generate", add("first"))
		private := func(label string) pkcs11.ObjectHandle {
			t.Helper()
			found := c.find(attr(pkcs11.CKA_LABEL, label), attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))
			if len(found) != 1 {
				t.Fatalf("%d keys %q", len(found), label)
			}
			return found[0]
		}
		first := private("first")

		stop := make(chan struct{})
		var kills atomic.Int32
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(50*time.Millisecond + rand.N(200*time.Millisecond)):
				}
				s.Stop()
				time.Sleep(rand.N(100 * time.Millisecond))
				s.Restart()
				kills.Add(1)
			}
		})
		n, failed := 0, 0
		for ; n < 1000 || kills.Load() < 5; n++ {
			var err error
			switch n % 25 {
			case 0:
				err = add(fmt.Sprintf("key %d", n))
			case 12:
				_, err = c.GenerateRandom(c.s, 16)
			default:
				if err = c.SignInit(c.s, mech(ckmEdDSA), first); err == nil {
					var sig []byte
					sig, err = c.Sign(c.s, []byte("m"))
					if err == nil && !ed25519.Verify(keys["first"], []byte("m"), sig) {
						t.Error("a wrong signature")
					}
				}
			}
			want(t, fmt.Sprintf("operation %d", n), err, pkcs11.CKR_OK, pkcs11.CKR_DEVICE_ERROR)
			if err != nil {
				failed++
				time.Sleep(10 * time.Millisecond)
			}
		}
		close(stop)
		wg.Wait()
		t.Logf("%d kills, %d of %d operations failed, %d keys", kills.Load(), failed, n, len(keys))
		if failed > n/2 {
			t.Errorf("%d of %d operations failed", failed, n)
		}

		for label, pub := range keys {
			if err := signChecked(c.Ctx, c.s, private(label), pub, []byte(label)); err != nil {
				t.Errorf("%s: %v", label, err)
			}
		}
		all := c.find(attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))
		for _, o := range all {
			pub, err := point(c.Ctx, c.s, o)
			ok(t, "point", err)
			ok(t, "what was not reported signs, or is not there", signChecked(c.Ctx, c.s, o, pub, []byte("x")))
		}
		// A power failure counts as a try only where a PIN was used since the
		// start before it: at most once here.
		ok(t, "C_Logout", c.Logout(c.s))
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
	})
}
