package p11tool

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha512"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/miekg/pkcs11"
)

// TestBus records all that passes between module and TPM, and looks for
// every secret in it, in the store and in the log.
func TestBus(t *testing.T) {
	isolated(t, setup{proxy: true}, func(t *testing.T, p *place) {
		const newUser, newSO, reset = "changed user pin 5521", "changed so pin 8870", "user pin set by so 2309"
		seed := []byte("a seed that the test can look for"[:32])
		key := ed25519.NewKeyFromSeed(seed)
		pub := key.Public().(ed25519.PublicKey)

		c := newToken(t)
		_, generated := c.generate("generated", true)
		imported := c.create(privateTemplate(seed, true))
		c.create(dataTemplate("secret note", []byte("the text of a private note"), true, true))
		_, err := sign(c.Ctx, c.s, generated, []byte("m"))
		ok(t, "sign", err)
		ok(t, "sign", signChecked(c.Ctx, c.s, imported, pub, []byte("m")))
		ok(t, "C_SetPIN", c.SetPIN(c.s, userPIN, newUser))
		ok(t, "sign", signChecked(c.Ctx, c.s, imported, pub, []byte("m")))
		ok(t, "C_Logout", c.Logout(c.s))
		ok(t, "C_Login as SO", c.Login(c.s, pkcs11.CKU_SO, soPIN))
		ok(t, "C_SetPIN as SO", c.SetPIN(c.s, soPIN, newSO))
		ok(t, "C_InitPIN", c.InitPIN(c.s, reset))
		ok(t, "C_Logout", c.Logout(c.s))
		want(t, "a wrong PIN", c.Login(c.s, pkcs11.CKU_USER, "a wrong pin 6642"), pkcs11.CKR_PIN_INCORRECT)
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, reset))
		found := c.find(attr(pkcs11.CKA_ID, []byte(pub)))
		if len(found) != 1 {
			t.Fatalf("%d imported keys", len(found))
		}
		ok(t, "sign", signChecked(c.Ctx, c.s, found[0], pub, []byte("m")))

		// The recording is what it should be: it saw the commands that carry
		// secrets.
		sent := p.proxy.take()
		for _, code := range []uint32{ccCreate, ccUnseal, ccObjectChangeAuth} {
			if sent.count(code) == 0 {
				t.Errorf("the recording has no command %#x: %v", code, sent)
			}
		}
		wide := sha512.Sum512(seed)
		secrets := map[string][]byte{
			"the seed": seed, "half of the seed": seed[8:24], "its expanded scalar": wide[:32], "its prefix": wide[32:],
			"the SO PIN": []byte(soPIN), "the user PIN": []byte(userPIN), "the changed SO PIN": []byte(newSO),
			"the changed user PIN": []byte(newUser), "the user PIN that the SO set": []byte(reset),
			"a wrong PIN": []byte("a wrong pin 6642"), "a private note": []byte("the text of a private note"),
		}
		search := func(where string, b []byte) {
			t.Helper()
			for what, s := range secrets {
				if bytes.Contains(b, s) {
					t.Errorf("%s is in the clear in %s", what, where)
				}
			}
		}
		wire := p.proxy.recorded()
		for _, f := range wire {
			search("a frame of the TPM bus", f)
		}
		search("the TPM bus", bytes.Join(wire, nil))
		files := 0
		err = filepath.WalkDir(p.store(), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			files++
			b, err := os.ReadFile(path)
			search(path, b)
			return err
		})
		ok(t, "walk", err)
		if files < 4 {
			t.Errorf("the store has %d files", files)
		}
		if b, err := os.ReadFile(p.log()); err == nil {
			search("the log", b)
		}
	})
}
