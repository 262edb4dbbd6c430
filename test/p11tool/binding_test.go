package p11tool

import (
	"bytes"
	"crypto/ed25519"
	"os"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
)

// TestPlatformBinding: with platform_binding, C_InitToken makes tokens that
// open only while the PCRs are as they were.
func TestPlatformBinding(t *testing.T) {
	isolated(t, setup{extra: "platform_binding = true\npcrs = [7]\n"}, func(t *testing.T, p *place) {
		c := newToken(t)
		pub, priv := c.generate("key", true)
		public, err := point(c.Ctx, c.s, pub)
		ok(t, "point", err)
		message := []byte("message")
		signs := func(public ed25519.PublicKey) {
			t.Helper()
			ok(t, "signing", signChecked(c.Ctx, c.s, priv, public, message))
		}
		signs(public)
		swtpmtest.ExtendAt(t, p.tpm, 8, bytes.Repeat([]byte{1}, 32))
		signs(public)
		swtpmtest.ExtendAt(t, p.tpm, 7, bytes.Repeat([]byte{1}, 32))
		ok(t, "C_SignInit", c.SignInit(c.s, mech(ckmEdDSA), priv))
		_, err = c.Sign(c.s, message)
		want(t, "signing with another PCR 7", err, pkcs11.CKR_FUNCTION_FAILED)
		ok(t, "C_Logout", c.Logout(c.s))
		want(t, "C_Login with another PCR 7", c.Login(c.s, pkcs11.CKU_USER, userPIN), pkcs11.CKR_FUNCTION_FAILED)
		ok(t, "C_Login of the SO", c.Login(c.s, pkcs11.CKU_SO, soPIN))
		log, err := os.ReadFile(p.log())
		ok(t, "log", err)
		if !bytes.Contains(log, []byte("PCR 7 (sha256) is ")) || !bytes.Contains(log, []byte(", sealed to 0000")) || bytes.Contains(log, []byte("PCR 8")) {
			t.Errorf("the log does not name PCR 7 and its values: %s", tail(log, 2000))
		}
		c.tokenFlags("no try was counted", pkcs11.CKF_USER_PIN_COUNT_LOW, 0)
	})
}
