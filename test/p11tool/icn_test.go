package p11tool

import (
	"crypto/ed25519"
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"
)

func init() {
	workers["icn-slot"] = icnSlot
}

// TestICN is the list of calls by which ICN uses a PKCS#11 module.
func TestICN(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := load(t)
		slot, err := initToken(c, "icn node")
		ok(t, "a new token", err)
		other, err := initToken(c, "another identity")
		ok(t, "a second token", err)
		if other == slot {
			t.Fatalf("both tokens are in slot %d", slot)
		}

		s, err := c.OpenSession(slot, openRW)
		ok(t, "C_OpenSession", err)
		ok(t, "C_Login", c.Login(s, pkcs11.CKU_USER, userPIN))
		pub, _, err := generate(c, s, "icn-identity", true)
		ok(t, "C_GenerateKeyPair", err)
		key, err := point(c, s, pub)
		ok(t, "C_GetAttributeValue", err)

		found, err := find(c, s, attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), attr(pkcs11.CKA_LABEL, "icn-identity"))
		ok(t, "C_FindObjects", err)
		if len(found) != 1 {
			t.Fatalf("found %d private keys", len(found))
		}
		msg := []byte("did:icn message")
		ok(t, "C_SignInit", c.SignInit(s, mech(ckmEdDSA), found[0]))
		// ICN makes one C_Sign with room for 64 bytes and no size query.
		sig := make([]byte, 64)
		n, rv := raw(t).Sign(uint(s), msg, sig)
		if rv != pkcs11.CKR_OK || n != 64 || !ed25519.Verify(key, msg, sig) {
			t.Fatalf("C_Sign: rv %#x, %d bytes: %x", rv, n, sig)
		}

		// Slot ids are the same in every process, and the key is there.
		want := fmt.Sprintf("slot %d key %x", slot, []byte(key))
		if got := runWorker(t, "icn-slot", "icn node"); got != want {
			t.Errorf("a second process says %q, want %q", got, want)
		}
		if got := runWorker(t, "icn-slot", "another identity"); !strings.HasPrefix(got, fmt.Sprintf("slot %d ", other)) {
			t.Errorf("a second process says %q, want slot %d", got, other)
		}
		mine, err := c.GetSlotList(false)
		ok(t, "C_GetSlotList", err)
		if got := runWorker(t, "slots"); got != fmt.Sprint(mine) {
			t.Errorf("slots in a second process: %s, here %v", got, mine)
		}
	})
}

// icnSlot prints the slot of the token with a label, and the public key
// that it shows without a login.
func icnSlot(args []string) error {
	c, err := loadModule()
	if err != nil {
		return err
	}
	slot, err := findToken(c, args[0])
	if err != nil {
		return err
	}
	s, err := c.OpenSession(slot, openRO)
	if err != nil {
		return err
	}
	found, err := find(c, s, attr(pkcs11.CKA_CLASS, pkcs11.CKO_PUBLIC_KEY), attr(pkcs11.CKA_LABEL, "icn-identity"))
	if err != nil {
		return err
	}
	var key ed25519.PublicKey
	if len(found) > 0 {
		if key, err = point(c, s, found[0]); err != nil {
			return err
		}
	}
	fmt.Printf("slot %d key %x\n", slot, []byte(key))
	return c.Finalize()
}
