package p11tool

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"sync"
	"testing"

	"github.com/miekg/pkcs11"
)

// TestThreads has eight threads do everything at once.
func TestThreads(t *testing.T) {
	isolated(t, setup{}, threads)
}

// TestThreadsUnlocked is TestThreads with keys that stay unlocked.
func TestThreadsUnlocked(t *testing.T) {
	isolated(t, setup{autoLock: 300}, threads)
}

func threads(t *testing.T, _ *place) {
	c := newToken(t)
	pub, shared := c.generate("shared", true)
	key, err := point(c.Ctx, c.s, pub)
	ok(t, "public key", err)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := mixedUse(c, i, pub, shared, key); err != nil {
				t.Errorf("thread %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if n := len(c.find()); n != 2+8*2 {
		t.Errorf("%d objects are left, want %d", n, 2+8*2)
	}
}

// mixedUse is what one thread does; it leaves two objects in the token.
func mixedUse(c *client, i int, pub, shared pkcs11.ObjectHandle, key ed25519.PublicKey) error {
	label := fmt.Sprintf("thread %d", i)
	s, err := c.OpenSession(c.slot, openRW)
	if err != nil {
		return fmt.Errorf("C_OpenSession: %w", err)
	}
	_, mine, err := generate(c.Ctx, s, label, true)
	if err != nil {
		return fmt.Errorf("C_GenerateKeyPair: %w", err)
	}
	myKey, err := point(c.Ctx, s, mine)
	if err != nil {
		return err
	}
	for n := range 25 {
		msg := []byte(fmt.Sprintf("%s, round %d", label, n))
		if err := signChecked(c.Ctx, s, shared, key, msg); err != nil {
			return fmt.Errorf("with the shared key: %w", err)
		}
		if err := signChecked(c.Ctx, s, mine, myKey, msg); err != nil {
			return fmt.Errorf("with an own key: %w", err)
		}
		sig, err := sign(c.Ctx, s, shared, msg)
		if err != nil {
			return err
		}
		if err := c.VerifyInit(s, mech(ckmEdDSA), pub); err != nil {
			return fmt.Errorf("C_VerifyInit: %w", err)
		}
		if err := c.Verify(s, msg, sig); err != nil {
			return fmt.Errorf("C_Verify: %w", err)
		}
		if err := c.DigestInit(s, mech(pkcs11.CKM_SHA256)); err != nil {
			return fmt.Errorf("C_DigestInit: %w", err)
		}
		sum := sha256.Sum256(msg)
		if got, err := c.Digest(s, msg); err != nil || !bytes.Equal(got, sum[:]) {
			return fmt.Errorf("C_Digest: %x, %v", got, err)
		}
		if _, err := c.GenerateRandom(s, 48); err != nil {
			return fmt.Errorf("C_GenerateRandom: %w", err)
		}
		o, err := c.CreateObject(s, dataTemplate(label+" note", msg, n%4 == 0, n%2 == 0))
		if err != nil {
			return fmt.Errorf("C_CreateObject: %w", err)
		}
		if err := c.SetAttributeValue(s, o, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, label+" renamed")}); err != nil {
			return fmt.Errorf("C_SetAttributeValue: %w", err)
		}
		found, err := find(c.Ctx, s, attr(pkcs11.CKA_LABEL, label+" renamed"))
		if err != nil || len(found) != 1 || found[0] != o {
			return fmt.Errorf("found %v, want %d (%v)", found, o, err)
		}
		if err := c.DestroyObject(s, o); err != nil {
			return fmt.Errorf("C_DestroyObject: %w", err)
		}
		if _, err := c.GetTokenInfo(c.slot); err != nil {
			return fmt.Errorf("C_GetTokenInfo: %w", err)
		}
		extra, err := c.OpenSession(c.slot, openRO)
		if err != nil {
			return fmt.Errorf("C_OpenSession: %w", err)
		}
		if err := c.CloseSession(extra); err != nil {
			return fmt.Errorf("C_CloseSession: %w", err)
		}
	}
	return c.CloseSession(s)
}
