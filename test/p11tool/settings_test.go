package p11tool

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/miekg/pkcs11"
)

// restart initialises the module anew, with other settings.
func (c *client) restart(p *place, s setup) {
	c.t.Helper()
	if err := c.Finalize(); err != nil && err != pkcs11.Error(pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED) {
		c.t.Fatalf("C_Finalize: %v", err)
	}
	device := "swtpm:path=" + p.tpm
	if s.proxy {
		device = "swtpm:path=" + filepath.Join(p.dir, "proxy.sock")
	}
	p.writeConf(c.t, device, s)
	ok(c.t, "C_Initialize", c.Initialize())
}

// settings are the table of the token that newToken makes.
func settings(lines ...string) string {
	return "[token.\"test token\"]\n" + strings.Join(lines, "\n") + "\n"
}

func (c *client) flag(what string, flag uint, want bool) {
	c.t.Helper()
	i, err := c.GetTokenInfo(c.slot)
	ok(c.t, "C_GetTokenInfo", err)
	if i.Flags&flag != 0 != want {
		c.t.Errorf("%s: flags %#x", what, i.Flags)
	}
}

var (
	privateKeys = attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)
	notPrivate  = attr(pkcs11.CKA_PRIVATE, false)
)

// TestAutomaticLogin serves a token whose PIN the module gets by itself.
func TestAutomaticLogin(t *testing.T) {
	s := setup{proxy: true}
	isolated(t, s, func(t *testing.T, p *place) {
		c := newToken(t)
		pub, _ := c.generate("key", true)
		key, err := point(c.Ctx, c.s, pub)
		ok(t, "public key", err)
		pin := filepath.Join(p.dir, "pin")
		write := func(pin string) { ok(t, "the PIN", os.WriteFile(filepath.Join(p.dir, "pin"), []byte(pin), 0o600)) }
		write(userPIN + "\n")
		s.extra = settings(fmt.Sprintf("pin_source = %q", "file:"+pin))
		c.restart(p, s)
		p.proxy.take()

		c.flag("CKF_LOGIN_REQUIRED", pkcs11.CKF_LOGIN_REQUIRED, false)
		c.flag("CKF_USER_PIN_INITIALIZED", pkcs11.CKF_USER_PIN_INITIALIZED, true)
		c.s = c.open(openRO)
		if sent := p.proxy.take(); sent.count(ccUnseal) != 0 {
			t.Errorf("a session sent %v", sent)
		}
		if n := len(c.find(notPrivate)); n != 1 {
			t.Errorf("%d public objects", n)
		}
		if sent := p.proxy.take(); sent.count(ccUnseal) != 1 {
			t.Errorf("a search in public objects sent %v", sent)
		}
		login := func(what string) pkcs11.ObjectHandle {
			t.Helper()
			p.proxy.take()
			found := c.find(privateKeys)
			if len(found) != 1 {
				t.Fatalf("%s: %d private keys", what, len(found))
			}
			if sent := p.proxy.take(); sent.count(ccUnseal) != 1 {
				t.Errorf("%s sent %v, which is not one login", what, sent)
			}
			ok(t, "sign", signChecked(c.Ctx, c.s, found[0], key, []byte("m")))
			return found[0]
		}
		priv := login("a search for private keys")

		// An application that logs in all the same has to know the PIN.
		want(t, "a wrong PIN", c.Login(c.s, pkcs11.CKU_USER, "not the pin"), pkcs11.CKR_PIN_INCORRECT)
		ok(t, "sign after it", signChecked(c.Ctx, c.s, priv, key, []byte("m")))
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
		want(t, "C_Login again", c.Login(c.s, pkcs11.CKU_USER, userPIN), pkcs11.CKR_USER_ALREADY_LOGGED_IN)
		ok(t, "C_Logout", c.Logout(c.s))
		want(t, "the key's handle after C_Logout", c.SignInit(c.s, mech(ckmEdDSA), priv), pkcs11.CKR_KEY_HANDLE_INVALID)
		login("the next search")
		ok(t, "C_Logout", c.Logout(c.s))
		ok(t, "C_Login before any need", c.Login(c.s, pkcs11.CKU_USER, userPIN))
		ok(t, "C_CloseAllSessions", c.CloseAllSessions(c.slot))

		// So does the SO, whom the module's own login does not keep out.
		c.s = c.open(openRW)
		login("a search")
		ok(t, "C_Login as SO", c.Login(c.s, pkcs11.CKU_SO, soPIN))
		if n := len(c.find(privateKeys)); n != 0 {
			t.Errorf("the SO sees %d private keys", n)
		}
		ok(t, "C_Logout", c.Logout(c.s))
		p.proxy.take()
		_, _, err = generate(c.Ctx, c.s, "another", true)
		ok(t, "C_GenerateKeyPair without a search or a login", err)

		// A wrong PIN is tried once, and not again before it changes.
		write("a wrong pin")
		c.restart(p, s)
		p.proxy.take()
		c.s = c.open(openRW)
		for range 5 {
			want(t, "a search for private keys", c.FindObjectsInit(c.s, []*pkcs11.Attribute{privateKeys}), pkcs11.CKR_USER_NOT_LOGGED_IN)
			if n := len(c.find()); n != 2 {
				t.Errorf("%d objects without the PIN, want the public ones", n)
			}
			_, _, err := generate(c.Ctx, c.s, "third", true)
			want(t, "C_GenerateKeyPair", err, pkcs11.CKR_USER_NOT_LOGGED_IN)
			ok(t, "C_CloseAllSessions", c.CloseAllSessions(c.slot))
			c.s = c.open(openRW)
		}
		if sent := p.proxy.take(); sent.count(ccUnseal) != 2 {
			t.Errorf("%d TPM2_Unseal in all, want that of the public secret and that of one try", sent.count(ccUnseal))
		}
		write("x\n") // too short to have been set
		want(t, "an impossible PIN", c.FindObjectsInit(c.s, []*pkcs11.Attribute{privateKeys}), pkcs11.CKR_USER_NOT_LOGGED_IN)
		ok(t, "remove", os.Remove(pin))
		want(t, "no PIN", c.FindObjectsInit(c.s, []*pkcs11.Attribute{privateKeys}), pkcs11.CKR_USER_NOT_LOGGED_IN)
		if sent := p.proxy.take(); sent.count(ccUnseal) != 0 {
			t.Errorf("an impossible PIN and none sent %v", sent)
		}
		write(userPIN)
		if n := len(c.find(privateKeys)); n != 2 {
			t.Errorf("%d private keys with the PIN corrected", n)
		}

		log, err := os.ReadFile(p.log())
		ok(t, "log", err)
		if n := bytes.Count(log, []byte("not tried again before pin_source gives another PIN")); n != 1 {
			t.Errorf("the log tells of %d refusals, want 1:\n%s", n, tail(log, 4000))
		}
		for _, secret := range []string{userPIN, "a wrong pin"} {
			if bytes.Contains(log, []byte(secret)) {
				t.Errorf("%q is in the log", secret)
			}
		}
	})
}

// TestPINVariable has the host set the variable with the PIN, and change it,
// after the module was loaded.
func TestPINVariable(t *testing.T) {
	s := setup{extra: settings(`pin_source = "env:A_PIN_OF_THE_HOST"`)}
	isolated(t, setup{}, func(t *testing.T, p *place) {
		c := newToken(t)
		c.generate("key", true)
		for _, pin := range []string{"", userPIN, "a wrong pin", userPIN} {
			if pin == "" {
				os.Unsetenv("A_PIN_OF_THE_HOST")
			} else {
				os.Setenv("A_PIN_OF_THE_HOST", pin)
			}
			c.restart(p, s)
			c.s = c.open(openRO)
			err := c.FindObjectsInit(c.s, []*pkcs11.Attribute{privateKeys})
			if pin == userPIN {
				ok(t, "C_FindObjectsInit", err)
			} else {
				want(t, "C_FindObjectsInit with the PIN "+pin, err, pkcs11.CKR_USER_NOT_LOGGED_IN)
			}
		}
	})
}

// protected tries all that changes a token, which must be refused; what only
// lives in a session must work. The session is read-only and the user's.
func protected(c *pkcs11.Ctx, slot uint, s pkcs11.SessionHandle, priv pkcs11.ObjectHandle) error {
	i, err := c.GetTokenInfo(slot)
	if err != nil || i.Flags&pkcs11.CKF_WRITE_PROTECTED == 0 {
		return fmt.Errorf("CKF_WRITE_PROTECTED: flags %#x, %v", i.Flags, err)
	}
	for what, try := range map[string]func() error{
		"C_OpenSession":       func() error { _, err := c.OpenSession(slot, openRW); return err },
		"C_GenerateKeyPair":   func() error { _, _, err := generate(c, s, "new", true); return err },
		"C_CreateObject":      func() error { _, err := c.CreateObject(s, dataTemplate("new", []byte("x"), true, false)); return err },
		"C_CopyObject":        func() error { _, err := c.CopyObject(s, priv, nil); return err },
		"C_SetAttributeValue": func() error { return c.SetAttributeValue(s, priv, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, "x")}) },
		"C_DestroyObject":     func() error { return c.DestroyObject(s, priv) },
		"C_SetPIN":            func() error { return c.SetPIN(s, userPIN, "another pin") },
		"C_InitPIN":           func() error { return c.InitPIN(s, "another pin") },
		"C_InitToken":         func() error { return c.InitToken(slot, soPIN, "x") },
	} {
		if err := try(); err != pkcs11.Error(pkcs11.CKR_TOKEN_WRITE_PROTECTED) {
			return fmt.Errorf("%s: %v, want CKR_TOKEN_WRITE_PROTECTED", what, err)
		}
	}
	_, session, err := generate(c, s, "session", false)
	if err == nil {
		_, err = sign(c, s, session, []byte("m"))
	}
	if err != nil {
		return fmt.Errorf("a session key: %w", err)
	}
	return nil
}

// TestReadOnlySetting has a token that applications can use and not change.
func TestReadOnlySetting(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		c := newToken(t)
		pub, _ := c.generate("key", true)
		key, err := point(c.Ctx, c.s, pub)
		ok(t, "public key", err)
		c.flag("CKF_WRITE_PROTECTED", pkcs11.CKF_WRITE_PROTECTED, false)
		c.restart(p, setup{extra: settings("read_only = true")})
		c.s = c.open(openRO)
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
		priv := c.find(privateKeys)[0]
		ok(t, "a write-protected token", protected(c.Ctx, c.slot, c.s, priv))
		ok(t, "sign", signChecked(c.Ctx, c.s, priv, key, []byte("m")))
		if log, err := os.ReadFile(p.log()); err != nil || !bytes.Contains(log, []byte("read_only is set for the token at "+p.conf()+":")) {
			t.Errorf("the log does not tell why: %v\n%s", err, tail(log, 2000))
		}
		c.restart(p, setup{})
		c.s = c.open(openRW)
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
		if n := len(c.find()); n != 2 {
			t.Errorf("%d objects, want 2", n)
		}
	})
}

// TestSlotSettings hides tokens and fixes their slots.
func TestSlotSettings(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		c := &client{Ctx: load(t), t: t}
		for i, label := range []string{"zero", "one", "two"} {
			if slot, err := initToken(c.Ctx, label); err != nil || slot != uint(i) {
				t.Fatalf("slot %d, %v", slot, err)
			}
		}
		slots := func() string {
			t.Helper()
			list, err := c.GetSlotList(true)
			ok(t, "C_GetSlotList", err)
			var s []string
			for _, id := range list {
				i, err := c.GetTokenInfo(id)
				ok(t, "C_GetTokenInfo", err)
				s = append(s, fmt.Sprintf("%d:%s", id, i.Label))
			}
			return strings.Join(s, " ")
		}
		for _, test := range []struct{ conf, want string }{
			{"", "0:zero 1:one 2:two 3:"},
			{"[token.one]\nhide = true", "0:zero 2:two 3:"},
			{"[token.zero]\nslot = 2147483646", "1:one 2:two 3: 2147483646:zero"},
			{"[token.zero]\nslot = 1\n[token.one]\nslot = 0", "0:one 1:zero 2:two 3:"},
			{"[token.zero]\nslot = 3\n[token.other]\nslot = 4", "1:one 2:two 3:zero 5:"},
			// A slot number stands for one identity: one is left out.
			{"[token.zero]\nslot = 1", "1:zero 2:two 3:"},
			{"[token.zero]\nslot = 1\n[token.one]\nhide = true", "1:zero 2:two 3:"},
			{"[token.zero]\nhide = true\n[token.one]\nslot = 0", "0:one 2:two 3:"},
		} {
			c.restart(p, setup{extra: test.conf})
			for range 2 {
				if got := slots(); got != test.want {
					t.Errorf("%s: slots %s, want %s", test.conf, got, test.want)
				}
			}
		}
		if log, err := os.ReadFile(p.log()); err != nil ||
			strings.Count(string(log), "slot 1, recorded in it, is fixed for token ") != 1 || !strings.Contains(string(log), p.conf()+":6") {
			t.Errorf("the log does not tell once who was left out: %v\n%s", err, log)
		}

		// What is made in the free slot stays there, whatever its table says.
		c.restart(p, setup{extra: "[token.three]\nslot = 3\n[token.zero]\nslot = 4\n"})
		slot, err := initToken(c.Ctx, "three")
		if err != nil || slot != 5 {
			t.Fatalf("slot %d, %v", slot, err)
		}
		if got, want := slots(), "1:one 2:two 4:zero 5:three 6:"; got != want {
			t.Errorf("slots %s, want %s", got, want)
		}
		c.restart(p, setup{extra: "[token.three]\nslot = 3\n[token.zero]\nslot = 4\n"})
		if got, want := slots(), "1:one 2:two 3:three 4:zero 6:"; got != want {
			t.Errorf("slots %s, want %s", got, want)
		}
		want(t, "C_InitToken in a slot without a token", c.InitToken(5, soPIN, "x"), pkcs11.CKR_SLOT_ID_INVALID)
	})
}

// TestTokenOverrides has settings for one token that differ from those for all.
func TestTokenOverrides(t *testing.T) {
	s := setup{proxy: true, exclusive: true, autoLock: 300}
	isolated(t, s, func(t *testing.T, p *place) {
		c := newToken(t)
		c.generate("key", true)
		unseals := func(extra string, n, size int) {
			t.Helper()
			c.restart(p, setup{proxy: true, exclusive: true, autoLock: s.autoLock, extra: extra})
			c.s = c.open(openRO)
			ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
			priv := c.find(privateKeys)[0]
			if v := c.get(priv, pkcs11.CKA_EC_POINT); len(v) != size {
				t.Errorf("CKA_EC_POINT has %d bytes, want %d", len(v), size)
			}
			p.proxy.take()
			for range 3 {
				_, err := sign(c.Ctx, c.s, priv, []byte("m"))
				ok(t, "sign", err)
			}
			if sent := p.proxy.take(); sent.count(ccUnseal) != n {
				t.Errorf("%q: three signatures sent %v, want %d TPM2_Unseal", extra, sent, n)
			}
		}
		unseals("", 1, 34)
		unseals(settings("auto_lock_timeout_secs = 0", `ec_point_encoding = "raw"`), 3, 32)
		unseals("[token.other]\nauto_lock_timeout_secs = 0\n", 1, 34)
		s.autoLock = 0
		unseals(settings("auto_lock_timeout_secs = 300"), 1, 34)
	})
}

// TestBadSettings has mistakes in tables refused at C_Initialize.
func TestBadSettings(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		c := &client{Ctx: load(t), t: t}
		for _, extra := range []string{settings("slot = -1"), settings("pin = 1"), "[token.a]\nslot = 1\n[token.b]\nslot = 1\n",
			settings(`pin_source = "prompt"`), settings("hide = 1")} {
			ok(t, "C_Finalize", c.Finalize())
			p.writeConf(t, "swtpm:path="+p.tpm, setup{extra: extra})
			want(t, "C_Initialize with "+extra, c.Initialize(), pkcs11.CKR_FUNCTION_FAILED)
			p.writeConf(t, "swtpm:path="+p.tpm, setup{})
			ok(t, "C_Initialize", c.Initialize())
		}
	})
}

// unattended has the administrator's command make a token without a PIN, and
// finds it.
func unattended(t *testing.T, p *place, args ...string) *client {
	t.Helper()
	path := os.Getenv("ICN_P11_COMMAND")
	if path == "" {
		path = filepath.Join("..", "..", "build", "icn-p11")
	}
	cmd := exec.Command(path, append([]string{"init", "--label", "test token", "--no-pin", "--so-pin-source", "env:SO_PIN"}, args...)...)
	cmd.Env = append(os.Environ(), "SO_PIN="+soPIN)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	c := &client{Ctx: load(t), t: t}
	var err error
	c.slot, err = findToken(c.Ctx, "test token")
	ok(t, "the token", err)
	return c
}

// TestNoPIN uses a token that needs no PIN, and has the SO give it one.
func TestNoPIN(t *testing.T) {
	isolated(t, setup{proxy: true}, func(t *testing.T, p *place) {
		c := unattended(t, p, "--force")
		p.proxy.take()
		c.flag("CKF_LOGIN_REQUIRED", pkcs11.CKF_LOGIN_REQUIRED, false)
		c.flag("CKF_USER_PIN_INITIALIZED", pkcs11.CKF_USER_PIN_INITIALIZED, false)
		c.s = c.open(openRW)
		public := c.find(notPrivate)
		if len(public) != 1 {
			t.Fatalf("%d public objects", len(public))
		}
		key, err := point(c.Ctx, c.s, public[0])
		ok(t, "public key", err)
		if sent := p.proxy.take(); sent.count(ccUnseal) != 1 {
			t.Errorf("a search in public objects sent %v", sent)
		}
		priv := c.find(privateKeys)
		if len(priv) != 1 {
			t.Fatalf("%d private keys", len(priv))
		}
		ok(t, "sign", signChecked(c.Ctx, c.s, priv[0], key, []byte("m")))
		_, _, err = generate(c.Ctx, c.s, "second", true)
		ok(t, "C_GenerateKeyPair", err)
		ok(t, "C_Logout", c.Logout(c.s))
		_, _, err = generate(c.Ctx, c.s, "third", true)
		ok(t, "C_GenerateKeyPair after C_Logout", err)

		want(t, "C_Login with a PIN", c.Login(c.s, pkcs11.CKU_USER, userPIN), pkcs11.CKR_USER_PIN_NOT_INITIALIZED)
		ok(t, "C_Login with an empty PIN", c.Login(c.s, pkcs11.CKU_USER, ""))
		want(t, "C_Login again", c.Login(c.s, pkcs11.CKU_USER, ""), pkcs11.CKR_USER_ALREADY_LOGGED_IN)
		want(t, "C_SetPIN", c.SetPIN(c.s, "some pin", userPIN), pkcs11.CKR_USER_PIN_NOT_INITIALIZED)
		ok(t, "C_Logout", c.Logout(c.s))
		ok(t, "C_Login as SO", c.Login(c.s, pkcs11.CKU_SO, soPIN))
		ok(t, "C_InitPIN", c.InitPIN(c.s, userPIN))
		ok(t, "C_Logout", c.Logout(c.s))

		c.flag("CKF_LOGIN_REQUIRED with a PIN", pkcs11.CKF_LOGIN_REQUIRED, true)
		c.flag("CKF_USER_PIN_INITIALIZED with a PIN", pkcs11.CKF_USER_PIN_INITIALIZED, true)
		if n := len(c.find(privateKeys)); n != 0 {
			t.Errorf("%d private keys without the PIN", n)
		}
		want(t, "C_Login with an empty PIN", c.Login(c.s, pkcs11.CKU_USER, ""), pkcs11.CKR_ARGUMENTS_BAD, pkcs11.CKR_PIN_INCORRECT)
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
		if n := len(c.find(privateKeys)); n != 3 {
			t.Errorf("%d private keys, want 3", n)
		}
	})
}

// TestNoPINBound has another state of the platform close such a token.
func TestNoPINBound(t *testing.T) {
	isolated(t, setup{extra: "platform_binding = true\npcrs = [16]\n"}, func(t *testing.T, p *place) {
		c := unattended(t, p)
		c.s = c.open(openRW)
		priv := c.find(privateKeys)
		if len(priv) != 1 {
			t.Fatalf("%d private keys", len(priv))
		}
		_, err := sign(c.Ctx, c.s, priv[0], []byte("m"))
		ok(t, "sign", err)
		swtpmtest.ExtendAt(t, p.tpm, 16, bytes.Repeat([]byte{1}, 32))
		_, err = sign(c.Ctx, c.s, priv[0], []byte("m"))
		if err == nil {
			t.Error("signed in a state that was not approved")
		}
		ok(t, "C_Logout", c.Logout(c.s))
		want(t, "a search for private keys", c.FindObjectsInit(c.s, []*pkcs11.Attribute{privateKeys}), pkcs11.CKR_FUNCTION_FAILED)
		if n := len(c.find()); n != 1 {
			t.Errorf("%d objects, want the public one", n)
		}
		if log, err := os.ReadFile(p.log()); err != nil || !bytes.Contains(log, []byte("automatic login failed")) || !bytes.Contains(log, []byte("PCR 16 (sha256) is ")) {
			t.Errorf("the log does not name the PCR: %v\n%s", err, tail(log, 2000))
		}
	})
}
