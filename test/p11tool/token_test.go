package p11tool

import (
	"slices"
	"testing"

	"github.com/miekg/pkcs11"
)

const (
	userFlags = pkcs11.CKF_USER_PIN_COUNT_LOW | pkcs11.CKF_USER_PIN_FINAL_TRY | pkcs11.CKF_USER_PIN_LOCKED
	soFlags   = pkcs11.CKF_SO_PIN_COUNT_LOW | pkcs11.CKF_SO_PIN_FINAL_TRY | pkcs11.CKF_SO_PIN_LOCKED
)

// TestModule reads what the module says of itself.
func TestModule(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := load(t)
		want(t, "a second C_Initialize", c.Initialize(), pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)
		r := raw(t)
		if major, minor := r.Version(); major != 2 || minor != 40 {
			t.Errorf("the function list says %d.%d", major, minor)
		}
		if n := r.Missing(); n != 0 {
			t.Errorf("%d entries of the function list are NULL", n)
		}
		i, err := c.GetInfo()
		ok(t, "C_GetInfo", err)
		if i.CryptokiVersion.Major < 2 || i.ManufacturerID == "" || i.LibraryDescription == "" || i.Flags != 0 {
			t.Errorf("C_GetInfo: %+v", i)
		}

		n, rv := r.SlotList(-1)
		if n != 1 || rv != pkcs11.CKR_OK {
			t.Fatalf("without a token: %d slots, rv %#x", n, rv)
		}
		if n, rv := r.SlotList(0); n != 1 || rv != pkcs11.CKR_BUFFER_TOO_SMALL {
			t.Errorf("C_GetSlotList without room: %d slots, rv %#x", n, rv)
		}
		if n, rv := r.SlotList(5); n != 1 || rv != pkcs11.CKR_OK {
			t.Errorf("C_GetSlotList with room: %d slots, rv %#x", n, rv)
		}
		_, err = c.GetSlotInfo(4711)
		want(t, "C_GetSlotInfo of no slot", err, pkcs11.CKR_SLOT_ID_INVALID)
		_, err = c.GetTokenInfo(4711)
		want(t, "C_GetTokenInfo of no slot", err, pkcs11.CKR_SLOT_ID_INVALID)
		_, err = c.OpenSession(4711, openRO)
		want(t, "C_OpenSession of no slot", err, pkcs11.CKR_SLOT_ID_INVALID)

		// p11-kit initialises, finalises and initialises again.
		for range 20 {
			ok(t, "C_Finalize", c.Finalize())
			_, err := c.GetSlotList(false)
			want(t, "C_GetSlotList after C_Finalize", err, pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)
			ok(t, "C_Initialize", c.Initialize())
		}
		// GnuTLS and NSS send flags 3.
		ok(t, "C_Finalize", c.Finalize())
		want(t, "a second C_Finalize", c.Finalize(), pkcs11.CKR_CRYPTOKI_NOT_INITIALIZED)
		ok(t, "C_Initialize", c.Initialize(pkcs11.InitializeWithFlags(pkcs11.CKF_LIBRARY_CANT_CREATE_OS_THREADS|pkcs11.CKF_OS_LOCKING_OK)))
		_, err = c.GetSlotList(false)
		ok(t, "C_GetSlotList", err)
		if slot, err := initToken(c, "after many cycles"); err != nil {
			t.Errorf("a token in slot %d: %v", slot, err)
		}
	})
}

// TestMechanisms reads the mechanism table.
func TestMechanisms(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := load(t)
		slot, err := freeSlot(c)
		ok(t, "free slot", err)
		list, err := c.GetMechanismList(slot)
		ok(t, "C_GetMechanismList", err)
		var types []uint
		for _, m := range list {
			types = append(types, m.Mechanism)
			_, err := c.GetMechanismInfo(slot, mech(m.Mechanism))
			ok(t, "C_GetMechanismInfo of a listed mechanism", err)
		}
		for _, m := range []struct{ typ, flags, size uint }{
			{ckmEdwards, pkcs11.CKF_GENERATE_KEY_PAIR, 255},
			{ckmEdDSA, pkcs11.CKF_SIGN | pkcs11.CKF_VERIFY, 255},
			{pkcs11.CKM_SHA224, pkcs11.CKF_DIGEST, 0},
			{pkcs11.CKM_SHA256, pkcs11.CKF_DIGEST, 0},
			{pkcs11.CKM_SHA384, pkcs11.CKF_DIGEST, 0},
			{pkcs11.CKM_SHA512, pkcs11.CKF_DIGEST, 0},
		} {
			if !slices.Contains(types, m.typ) {
				t.Errorf("mechanism %#x is not listed in %#x", m.typ, types)
				continue
			}
			i, err := c.GetMechanismInfo(slot, mech(m.typ))
			ok(t, "C_GetMechanismInfo", err)
			if i.Flags&m.flags != m.flags || i.Flags&pkcs11.CKF_HW != 0 || m.size != 0 && (i.MinKeySize != m.size || i.MaxKeySize != m.size) {
				t.Errorf("mechanism %#x: %+v", m.typ, i)
			}
		}
		_, err = c.GetMechanismInfo(slot, mech(pkcs11.CKM_RSA_PKCS))
		want(t, "C_GetMechanismInfo of a mechanism that is not there", err, pkcs11.CKR_MECHANISM_INVALID)
	})
}

// TestTokenLife makes, uses and re-makes tokens.
func TestTokenLife(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := &client{Ctx: load(t), t: t}
		var err error
		c.slot, err = freeSlot(c.Ctx)
		ok(t, "free slot", err)
		free, err := c.GetTokenInfo(c.slot)
		if err == nil && (free.Flags&pkcs11.CKF_USER_PIN_INITIALIZED != 0 || free.Label != "") {
			t.Errorf("the free slot's token: %+v", free)
		}
		want(t, "C_InitToken with a short PIN", c.InitToken(c.slot, "abc", "x"), pkcs11.CKR_PIN_LEN_RANGE, pkcs11.CKR_PIN_INCORRECT)

		ok(t, "C_InitToken", c.InitToken(c.slot, soPIN, "first"))
		slots, err := c.GetSlotList(false)
		ok(t, "C_GetSlotList", err)
		if len(slots) != 2 || !slices.Contains(slots, c.slot) {
			t.Fatalf("slots after C_InitToken of slot %d: %v", c.slot, slots)
		}
		i, err := c.GetTokenInfo(c.slot)
		ok(t, "C_GetTokenInfo", err)
		serial := i.SerialNumber
		if i.Label != "first" || len(serial) != 16 || i.ManufacturerID == "" || i.Model == "" ||
			i.Flags&(pkcs11.CKF_TOKEN_INITIALIZED|pkcs11.CKF_LOGIN_REQUIRED|pkcs11.CKF_RNG) != pkcs11.CKF_TOKEN_INITIALIZED|pkcs11.CKF_LOGIN_REQUIRED|pkcs11.CKF_RNG ||
			i.Flags&(pkcs11.CKF_USER_PIN_INITIALIZED|pkcs11.CKF_WRITE_PROTECTED) != 0 || i.MinPinLen != 4 || i.MaxPinLen != 255 {
			t.Errorf("the new token: %+v", i)
		}
		si, err := c.GetSlotInfo(c.slot)
		ok(t, "C_GetSlotInfo", err)
		if si.Flags&pkcs11.CKF_TOKEN_PRESENT == 0 || si.SlotDescription == "" || si.ManufacturerID == "" {
			t.Errorf("the slot: %+v", si)
		}

		c.s = c.open(openRW)
		want(t, "C_Login before C_InitPIN", c.Login(c.s, pkcs11.CKU_USER, userPIN), pkcs11.CKR_USER_PIN_NOT_INITIALIZED)
		want(t, "C_InitPIN without the SO", c.InitPIN(c.s, userPIN), pkcs11.CKR_USER_NOT_LOGGED_IN)
		ok(t, "C_Login as SO", c.Login(c.s, pkcs11.CKU_SO, soPIN))
		want(t, "C_InitPIN with a short PIN", c.InitPIN(c.s, "123"), pkcs11.CKR_PIN_LEN_RANGE)
		ok(t, "C_InitPIN", c.InitPIN(c.s, userPIN))
		ok(t, "C_Logout", c.Logout(c.s))
		c.tokenFlags("after C_InitPIN", pkcs11.CKF_USER_PIN_INITIALIZED|userFlags|soFlags, pkcs11.CKF_USER_PIN_INITIALIZED)

		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
		want(t, "C_InitPIN as user", c.InitPIN(c.s, userPIN), pkcs11.CKR_USER_NOT_LOGGED_IN)
		c.generate("key", true)
		ok(t, "C_Logout", c.Logout(c.s))

		want(t, "C_InitToken with a session open", c.InitToken(c.slot, soPIN, "again"), pkcs11.CKR_SESSION_EXISTS)
		ok(t, "C_CloseSession", c.CloseSession(c.s))
		want(t, "C_InitToken with the wrong SO PIN", c.InitToken(c.slot, "not the so pin", "again"), pkcs11.CKR_PIN_INCORRECT)
		c.s = c.open(openRO)
		if n := len(c.find()); n != 1 {
			t.Errorf("after a refused C_InitToken there are %d public objects, want 1", n)
		}
		ok(t, "C_CloseAllSessions", c.CloseAllSessions(c.slot))

		ok(t, "C_InitToken", c.InitToken(c.slot, soPIN, "second"))
		i, err = c.GetTokenInfo(c.slot)
		ok(t, "C_GetTokenInfo", err)
		if i.Label != "second" || i.SerialNumber != serial || i.Flags&pkcs11.CKF_USER_PIN_INITIALIZED != 0 {
			t.Errorf("the token that was initialised again: %+v", i)
		}
		c.s = c.open(openRW)
		if n := len(c.find()); n != 0 {
			t.Errorf("%d objects outlived C_InitToken", n)
		}
		ok(t, "C_Login as SO", c.Login(c.s, pkcs11.CKU_SO, soPIN))

		next, err := initToken(c.Ctx, "third")
		ok(t, "a further token", err)
		slots, err = c.GetSlotList(false)
		ok(t, "C_GetSlotList", err)
		if len(slots) != 3 || next == c.slot {
			t.Errorf("slots after a second token in slot %d: %v", next, slots)
		}
		_, err = c.OpenSession(next, openRO)
		ok(t, "C_OpenSession of another token, the SO being logged in here", err)
	})
}

// TestSetPIN changes both PINs.
func TestSetPIN(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		_, priv := c.generate("key", true)
		const newUser, newSO = "a new user pin", "a new so pin"
		want(t, "C_SetPIN to a short PIN", c.SetPIN(c.s, userPIN, "123"), pkcs11.CKR_PIN_LEN_RANGE)
		ok(t, "C_SetPIN logged in", c.SetPIN(c.s, userPIN, newUser))
		_, err := sign(c.Ctx, c.s, priv, []byte("still logged in"))
		ok(t, "sign after C_SetPIN", err)
		ok(t, "C_Logout", c.Logout(c.s))

		ro := c.open(openRO)
		want(t, "C_SetPIN in a RO session", c.SetPIN(ro, newUser, userPIN), pkcs11.CKR_SESSION_READ_ONLY)
		ok(t, "C_CloseSession", c.CloseSession(ro))
		want(t, "C_SetPIN with the old PIN that was replaced", c.SetPIN(c.s, userPIN, "whatever"), pkcs11.CKR_PIN_INCORRECT)
		ok(t, "C_SetPIN in a public session", c.SetPIN(c.s, newUser, userPIN))
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, userPIN))
		if n := len(c.find(attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))); n != 1 {
			t.Errorf("%d private keys after the PIN changed", n)
		}
		ok(t, "C_Logout", c.Logout(c.s))

		ok(t, "C_Login as SO", c.Login(c.s, pkcs11.CKU_SO, soPIN))
		ok(t, "C_SetPIN as SO", c.SetPIN(c.s, soPIN, newSO))
		ok(t, "C_Logout", c.Logout(c.s))
		want(t, "C_Login with the SO PIN that was replaced", c.Login(c.s, pkcs11.CKU_SO, soPIN), pkcs11.CKR_PIN_INCORRECT)
		ok(t, "C_Login as SO", c.Login(c.s, pkcs11.CKU_SO, newSO))
		ok(t, "C_InitPIN over a PIN that is set", c.InitPIN(c.s, newUser))
		ok(t, "C_Logout", c.Logout(c.s))
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, newUser))
		keys := c.find(attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY))
		if len(keys) != 1 {
			t.Fatalf("%d private keys after the SO set the user PIN", len(keys))
		}
		_, err = sign(c.Ctx, c.s, keys[0], []byte("x"))
		ok(t, "sign after the SO set the user PIN", err)
	})
}

// TestLongPIN takes PINs of both extreme lengths, with any bytes.
func TestLongPIN(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		long := ""
		for len(long) < 255 {
			long += "\xff\x01é"
		}
		long = long[:255]
		ok(t, "C_SetPIN", c.SetPIN(c.s, userPIN, long))
		want(t, "C_SetPIN to 256 bytes", c.SetPIN(c.s, long, long+"x"), pkcs11.CKR_PIN_LEN_RANGE)
		ok(t, "C_Logout", c.Logout(c.s))
		want(t, "C_Login with its first 254 bytes", c.Login(c.s, pkcs11.CKU_USER, long[:254]), pkcs11.CKR_PIN_INCORRECT)
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, long))
		ok(t, "C_SetPIN", c.SetPIN(c.s, long, "1234"))
		ok(t, "C_Logout", c.Logout(c.s))
		ok(t, "C_Login", c.Login(c.s, pkcs11.CKU_USER, "1234"))
	})
}

// TestLockout guesses the user PIN. swtpm allows three tries; each guess is one,
// however many seals there are.
func TestLockout(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		pub, _ := c.generate("key", true)
		for range 4 {
			c.generate("another", true)
		}
		ok(t, "C_Logout", c.Logout(c.s))
		const low, final, locked = pkcs11.CKF_USER_PIN_COUNT_LOW, pkcs11.CKF_USER_PIN_FINAL_TRY, pkcs11.CKF_USER_PIN_LOCKED
		c.tokenFlags("at first", userFlags, 0)
		want(t, "first guess", c.Login(c.s, pkcs11.CKU_USER, "guess one"), pkcs11.CKR_PIN_INCORRECT)
		c.tokenFlags("after one guess", userFlags, low)
		want(t, "second guess", c.Login(c.s, pkcs11.CKU_USER, "guess two"), pkcs11.CKR_PIN_INCORRECT)
		c.tokenFlags("after two guesses", userFlags, low|final)
		want(t, "third guess", c.Login(c.s, pkcs11.CKU_USER, "guess three"), pkcs11.CKR_PIN_INCORRECT, pkcs11.CKR_PIN_LOCKED)
		c.tokenFlags("after three guesses", locked, locked)
		want(t, "the right PIN in lockout", c.Login(c.s, pkcs11.CKU_USER, userPIN), pkcs11.CKR_PIN_LOCKED)
		want(t, "the right SO PIN in lockout", c.Login(c.s, pkcs11.CKU_SO, soPIN), pkcs11.CKR_PIN_LOCKED)
		want(t, "C_SetPIN in lockout", c.SetPIN(c.s, userPIN, "whatever"), pkcs11.CKR_PIN_LOCKED)
		// Public objects have no PIN.
		_, err := point(c.Ctx, c.s, pub)
		ok(t, "a public object in lockout", err)
		c.CloseAllSessions(c.slot)
		want(t, "C_InitToken in lockout", c.InitToken(c.slot, soPIN, "again"), pkcs11.CKR_PIN_LOCKED)
	})
}

// TestWrongSOPIN sees the SO's flags.
func TestWrongSOPIN(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		ok(t, "C_Logout", c.Logout(c.s))
		want(t, "guess", c.Login(c.s, pkcs11.CKU_SO, "guess one"), pkcs11.CKR_PIN_INCORRECT)
		c.tokenFlags("after a guess", soFlags, pkcs11.CKF_SO_PIN_COUNT_LOW)
		ok(t, "C_Login as SO", c.Login(c.s, pkcs11.CKU_SO, soPIN))
	})
}
