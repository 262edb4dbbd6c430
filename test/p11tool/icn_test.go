package p11tool

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
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

// The key of RFC 8032, section 7.1, test 1.
const (
	rfc8032Seed   = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
	rfc8032Public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
)

// icnBlob seals a seed as ICN's own TPM backend does, and writes its file.
func icnBlob(t *testing.T, socket string, seed, public []byte) string {
	t.Helper()
	c, err := linuxudstpm.Open(socket)
	ok(t, "the TPM", err)
	defer c.Close()
	area := func(digits string) tpm2.TPM2BPublic { return tpm2.BytesAs2B[tpm2.TPMTPublic](unhex(t, digits)) }
	parent, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: area("0025000b000300720000000600800043" + "0000")}.Execute(c)
	ok(t, "ICN's parent", err)
	defer tpm2.FlushContext{FlushHandle: parent.ObjectHandle}.Execute(c)
	sealed, err := tpm2.Create{
		ParentHandle: tpm2.NamedHandle{Handle: parent.ObjectHandle, Name: parent.Name}, InPublic: area("0008000b00000052000000100000"),
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: seed})}},
	}.Execute(c)
	ok(t, "ICN's seal", err)
	numbers := func(b []byte) string { return strings.ReplaceAll(fmt.Sprint(b), " ", ",") }
	path := filepath.Join(t.TempDir(), "sealed-0x81000001.blob")
	ok(t, "the blob", os.WriteFile(path, fmt.Appendf(nil, `{"tpm_private":%s,"tpm_public":%s,"public_key":%s,"pcr_slots":[],"key_handle":2164260865,"version":2}`,
		numbers(sealed.OutPrivate.Buffer), numbers(sealed.OutPublic.Bytes()), numbers(public)), 0o600))
	return path
}

// A node whose identity ICN's own backend has sealed signs with the same key
// through the module.
func TestICNAdopted(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		public := unhex(t, rfc8032Public)
		blob := icnBlob(t, p.tpm, unhex(t, rfc8032Seed), public)
		path := os.Getenv("ICN_P11_COMMAND")
		if path == "" {
			path = filepath.Join("..", "..", "build", "icn-p11")
		}
		cmd := exec.Command(path, "init", "--label", "icn node", "--import", blob, "--pin-source", "env:PIN", "--so-pin-source", "env:SO_PIN")
		cmd.Env = append(os.Environ(), "PIN="+userPIN, "SO_PIN="+soPIN)
		out, err := cmd.Output()
		ok(t, "icn-p11 init --import", err)
		if string(out) != "did:icn:zFVen3X669xLzsi6N2V91DoiyzHzg1uAgqiT8jZ9nS96Z\n" {
			t.Errorf("the DID is %s", out)
		}
		c := load(t)
		slot, err := findToken(c, "icn node")
		ok(t, "the token", err)
		s, err := c.OpenSession(slot, openRW)
		ok(t, "C_OpenSession", err)
		ok(t, "C_Login", c.Login(s, pkcs11.CKU_USER, userPIN))
		found, err := find(c, s, attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), attr(pkcs11.CKA_LABEL, "icn-identity"))
		ok(t, "C_FindObjects", err)
		if len(found) != 1 {
			t.Fatalf("found %d private keys", len(found))
		}
		key, err := point(c, s, found[0])
		if err != nil || !bytes.Equal(key, public) {
			t.Errorf("the public key is %x, %v", []byte(key), err)
		}
		ok(t, "sign", signChecked(c, s, found[0], public, []byte("did:icn message")))
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
