package p11tool

import (
	"testing"

	"github.com/miekg/pkcs11"
)

// state reports a session whose state is not as it should be.
func (c *client) state(what string, s pkcs11.SessionHandle, state uint) {
	c.t.Helper()
	i, err := c.GetSessionInfo(s)
	if err != nil || i.State != state || i.SlotID != c.slot {
		c.t.Errorf("%s: %+v (%v), want state %d", what, i, err, state)
	}
}

// TestLoginStates walks through the states of sessions (PKCS#11 v3.1,
// section 5.6.1 and following).
func TestLoginStates(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		ok(t, "C_CloseAllSessions", c.CloseAllSessions(c.slot))
		want(t, "C_Login with a closed session", c.Login(c.s, pkcs11.CKU_USER, userPIN), pkcs11.CKR_SESSION_HANDLE_INVALID)
		_, err := c.OpenSession(c.slot, 0)
		want(t, "C_OpenSession without CKF_SERIAL_SESSION", err, pkcs11.CKR_SESSION_PARALLEL_NOT_SUPPORTED)

		ro, rw := c.open(openRO), c.open(openRW)
		c.s = rw
		c.state("RO, nobody", ro, pkcs11.CKS_RO_PUBLIC_SESSION)
		c.state("RW, nobody", rw, pkcs11.CKS_RW_PUBLIC_SESSION)
		i, err := c.GetTokenInfo(c.slot)
		if err != nil || i.SessionCount != 2 || i.RwSessionCount != 1 {
			t.Errorf("sessions counted: %d, RW %d (%v)", i.SessionCount, i.RwSessionCount, err)
		}
		want(t, "C_Logout by nobody", c.Logout(rw), pkcs11.CKR_USER_NOT_LOGGED_IN)
		want(t, "C_Login as user 99", c.Login(rw, 99, userPIN), pkcs11.CKR_USER_TYPE_INVALID)
		want(t, "C_Login CKU_CONTEXT_SPECIFIC without an operation", c.Login(rw, pkcs11.CKU_CONTEXT_SPECIFIC, userPIN), pkcs11.CKR_OPERATION_NOT_INITIALIZED)
		want(t, "C_Login as SO beside a RO session", c.Login(rw, pkcs11.CKU_SO, soPIN), pkcs11.CKR_SESSION_READ_ONLY_EXISTS)
		want(t, "C_Login as SO from a RO session", c.Login(ro, pkcs11.CKU_SO, soPIN), pkcs11.CKR_SESSION_READ_ONLY_EXISTS, pkcs11.CKR_SESSION_READ_ONLY)
		if rv := raw(t).LoginNull(uint(rw), pkcs11.CKU_USER); rv == pkcs11.CKR_OK {
			t.Error("C_Login with a NULL PIN succeeded")
		}

		ok(t, "C_Login from the RO session", c.Login(ro, pkcs11.CKU_USER, userPIN))
		c.state("RO, user", ro, pkcs11.CKS_RO_USER_FUNCTIONS)
		c.state("RW, user", rw, pkcs11.CKS_RW_USER_FUNCTIONS)
		c.state("RW opened after the login", c.open(openRW), pkcs11.CKS_RW_USER_FUNCTIONS)
		want(t, "C_Login twice", c.Login(rw, pkcs11.CKU_USER, userPIN), pkcs11.CKR_USER_ALREADY_LOGGED_IN)
		want(t, "C_Login twice with a wrong PIN", c.Login(rw, pkcs11.CKU_USER, "wrong"), pkcs11.CKR_USER_ALREADY_LOGGED_IN)
		ok(t, "C_CloseSession", c.CloseSession(ro))
		want(t, "C_Login as SO beside the user", c.Login(rw, pkcs11.CKU_SO, soPIN), pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN)
		ok(t, "C_Logout", c.Logout(rw))
		c.state("RW, logged out", rw, pkcs11.CKS_RW_PUBLIC_SESSION)

		ok(t, "C_Login as SO", c.Login(rw, pkcs11.CKU_SO, soPIN))
		c.state("RW, SO", rw, pkcs11.CKS_RW_SO_FUNCTIONS)
		_, err = c.OpenSession(c.slot, openRO)
		want(t, "C_OpenSession RO beside the SO", err, pkcs11.CKR_SESSION_READ_WRITE_SO_EXISTS)
		want(t, "C_Login as SO twice", c.Login(rw, pkcs11.CKU_SO, soPIN), pkcs11.CKR_USER_ALREADY_LOGGED_IN)
		want(t, "C_Login as user beside the SO", c.Login(rw, pkcs11.CKU_USER, userPIN), pkcs11.CKR_USER_ANOTHER_ALREADY_LOGGED_IN)
		_, err = c.CreateObject(rw, dataTemplate("x", []byte("x"), false, true))
		want(t, "C_CreateObject of a private object by the SO", err, pkcs11.CKR_USER_NOT_LOGGED_IN)
		_, _, err = generate(c.Ctx, rw, "x", true)
		want(t, "C_GenerateKeyPair by the SO", err, pkcs11.CKR_USER_NOT_LOGGED_IN)

		// The last session that closes logs out.
		ok(t, "C_CloseAllSessions", c.CloseAllSessions(c.slot))
		c.s = c.open(openRW)
		c.state("RW after all closed", c.s, pkcs11.CKS_RW_PUBLIC_SESSION)
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
		ok(t, "C_CloseSession", c.CloseSession(c.s))
		c.s = c.open(openRO)
		c.state("RO after the last one closed", c.s, pkcs11.CKS_RO_PUBLIC_SESSION)
		want(t, "C_CloseSession twice", c.CloseSession(c.s+4711), pkcs11.CKR_SESSION_HANDLE_INVALID)

		// A wrong PIN leaves the state as it was.
		want(t, "C_Login with a wrong PIN", c.Login(c.s, pkcs11.CKU_USER, "wrong pin"), pkcs11.CKR_PIN_INCORRECT)
		c.state("RO after a wrong PIN", c.s, pkcs11.CKS_RO_PUBLIC_SESSION)
	})
}

// TestLogout forgets private objects and what was going on with them.
func TestLogout(t *testing.T) {
	isolated(t, setup{autoLock: 300}, func(t *testing.T, _ *place) {
		c := newToken(t)
		pub, priv := c.generate("token key", true)
		_, sessionPriv := c.generate("session key", false)
		data := c.create(dataTemplate("public", []byte("x"), false, false))
		_, err := sign(c.Ctx, c.s, priv, []byte("x"))
		ok(t, "sign", err)
		ok(t, "C_SignInit", c.SignInit(c.s, mech(ckmEdDSA), priv))
		ok(t, "C_Logout", c.Logout(c.s))

		_, err = c.Sign(c.s, []byte("x"))
		want(t, "C_Sign after C_Logout", err, pkcs11.CKR_OPERATION_NOT_INITIALIZED, pkcs11.CKR_USER_NOT_LOGGED_IN, pkcs11.CKR_KEY_HANDLE_INVALID)
		gone := func(when string) {
			t.Helper()
			for _, o := range []pkcs11.ObjectHandle{priv, sessionPriv} {
				_, err := c.GetAttributeValue(c.s, o, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, nil)})
				want(t, "a private object's handle "+when, err, pkcs11.CKR_OBJECT_HANDLE_INVALID)
				want(t, "C_SignInit "+when, c.SignInit(c.s, mech(ckmEdDSA), o), pkcs11.CKR_KEY_HANDLE_INVALID, pkcs11.CKR_OBJECT_HANDLE_INVALID, pkcs11.CKR_USER_NOT_LOGGED_IN)
				want(t, "C_DestroyObject "+when, c.DestroyObject(c.s, o), pkcs11.CKR_OBJECT_HANDLE_INVALID)
			}
		}
		gone("after C_Logout")
		if n := len(c.find(attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))); n != 0 {
			t.Errorf("%d private keys are visible without a login", n)
		}
		// Public ones stay, with their handles.
		equal(t, "public token object", c.get(pub, pkcs11.CKA_LABEL), []byte("token key"))
		equal(t, "public session object", c.get(data, pkcs11.CKA_LABEL), []byte("public"))

		// Section 5.6.9: the handles stay invalid when the user is back, and
		// private session objects are destroyed.
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
		gone("after the next C_Login")
		if n := len(c.find(attr(pkcs11.CKA_LABEL, "session key"), attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))); n != 0 {
			t.Errorf("%d private session objects outlived C_Logout", n)
		}
		again := c.find(attr(pkcs11.CKA_LABEL, "token key"), attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))
		if len(again) != 1 {
			t.Fatalf("%d private token keys after the next C_Login", len(again))
		}
		_, err = sign(c.Ctx, c.s, again[0], []byte("x"))
		ok(t, "sign after the next C_Login", err)
	})
}

// TestSessionObjects end with the session that made them, not with others.
func TestSessionObjects(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		c := newToken(t)
		a := c.open(openRO)
		o, err := c.CreateObject(a, dataTemplate("of a", []byte("x"), false, true))
		ok(t, "C_CreateObject of a session object in a RO session", err)
		if n := len(c.find(attr(pkcs11.CKA_LABEL, "of a"))); n != 1 {
			t.Errorf("another session of the process finds %d", n)
		}
		if got := runWorker(t, "count", "of a"); got != "0" {
			t.Errorf("another process finds %s session objects", got)
		}
		ok(t, "C_CloseSession", c.CloseSession(a))
		_, err = c.GetAttributeValue(c.s, o, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, nil)})
		want(t, "a session object after its session", err, pkcs11.CKR_OBJECT_HANDLE_INVALID)
		if n := len(c.find(attr(pkcs11.CKA_LABEL, "of a"))); n != 0 {
			t.Errorf("%d session objects outlived their session", n)
		}
	})
}
