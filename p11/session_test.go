package p11

import (
	"testing"

	"github.com/InterCooperative-Network/icn-p11/sealstore/memseal"
)

// TestSessionCancel ends the operations of the flags, and no others.
func TestSessionCancel(t *testing.T) {
	m, _ := start(t, nil)
	h, pub, priv, _ := signingPair(t, m)
	ops := map[uint]func() error{
		CKF_FIND_OBJECTS: func() error { return m.FindObjectsInit(h, nil) },
		CKF_DIGEST:       func() error { return m.DigestInit(h, Mechanism{Type: CKM_SHA256}) },
		CKF_SIGN:         func() error { return m.SignInit(h, pure, priv) },
		CKF_VERIFY:       func() error { return m.VerifyInit(h, pure, pub) },
	}
	others := map[uint]func() error{
		CKF_FIND_OBJECTS:   ops[CKF_FIND_OBJECTS],
		CKF_DIGEST:         ops[CKF_DIGEST],
		CKF_MESSAGE_SIGN:   func() error { return m.MessageSignInit(h, pure, priv) },
		CKF_MESSAGE_VERIFY: func() error { return m.MessageVerifyInit(h, pure, pub) },
	}
	for _, ops := range []map[uint]func() error{ops, others} {
		for cancelled := range ops {
			for _, begin := range ops {
				must(t, begin())
			}
			must(t, m.SessionCancel(h, 0))
			must(t, m.SessionCancel(h, cancelled))
			must(t, m.SessionCancel(h, cancelled)) // of an operation that is not active
			for flag, begin := range ops {
				rv := CKR_OPERATION_ACTIVE
				if flag == cancelled {
					rv = CKR_OK
				}
				want(t, rv, begin())
			}
			must(t, m.SessionCancel(h, ^uint(0)))
		}
	}
	must(t, m.VerifySignatureInit(h, pure, pub, nil))
	must(t, m.SessionCancel(h, CKF_VERIFY))
	want(t, CKR_OPERATION_NOT_INITIALIZED, m.VerifySignatureFinal(h))
}

// TestHandles: none is given out twice, over C_Finalize too.
func TestHandles(t *testing.T) {
	m, dir := NewModule(), t.TempDir()
	seen := map[uint]bool{}
	for i := range 3 {
		startWith(t, m, memseal.WithKey([32]byte{1}), dir, nil)
		var h SessionHandle
		if i == 0 {
			h = token(t, m)
			_, _, err := m.GenerateKeyPair(h, keygen, pubTemplate, privTemplate)
			must(t, err)
		} else {
			h = open(t, m, 0)
			must(t, m.Login(h, CKU_USER, []byte(userPIN)))
		}
		for _, o := range append(find(t, m, h), ObjectHandle(h)) {
			if o == 0 || seen[uint(o)] {
				t.Errorf("handle %d twice", o)
			}
			seen[uint(o)] = true
		}
		must(t, m.Finalize())
	}
}

// TestProfiles are found by class, read, and not changed.
func TestProfiles(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	for id, n := range map[uint]int{0: 0, CKP_BASELINE_PROVIDER: 1, CKP_EXTENDED_PROVIDER: 1, 3: 0, 4: 0, 5: 0, 6: 0} {
		found := find(t, m, h, Attribute{CKA_CLASS, ulong(CKO_PROFILE)}, Attribute{CKA_PROFILE_ID, ulong(id)})
		if len(found) != n {
			t.Errorf("%d objects of profile %d, want %d", len(found), id, n)
		}
	}
	found := find(t, m, h, Attribute{CKA_CLASS, ulong(CKO_PROFILE)})
	if len(found) != 2 {
		t.Fatalf("%d profiles", len(found))
	}
	for _, tmpl := range [][]Attribute{nil, {{CKA_TOKEN, yes}}, {{CKA_PROFILE_ID, ulong(uint(CKP_BASELINE_PROVIDER))}}} {
		if o := find(t, m, h, tmpl...); len(o) != 0 {
			t.Errorf("a search that does not ask for profiles finds %d", len(o))
		}
	}
	for _, o := range found {
		want(t, CKR_ACTION_PROHIBITED, m.DestroyObject(h, o))
		want(t, CKR_ACTION_PROHIBITED, m.SetAttributeValue(h, o, []Attribute{{CKA_LABEL, []byte("x")}}))
		_, err := m.CopyObject(h, o, nil)
		want(t, CKR_ACTION_PROHIBITED, err)
		_, err = m.GetObjectSize(h, o)
		must(t, err)
	}
	_, err := m.CreateObject(h, []Attribute{{CKA_CLASS, ulong(CKO_PROFILE)}, {CKA_PROFILE_ID, ulong(uint(5))}})
	want(t, CKR_ATTRIBUTE_VALUE_INVALID, err)
	// Nor can a file of the store make one.
	body := attrs{CKA_CLASS: ulong(CKO_PROFILE), CKA_PROFILE_ID: ulong(uint(5))}.encode()
	if _, ok := parseBody(body); ok {
		t.Error("a profile is read from the store")
	}
}

// TestLoginUser: the users of the token have no names.
func TestLoginUser(t *testing.T) {
	m, _ := start(t, nil)
	h := token(t, m)
	must(t, m.Logout(h))
	want(t, CKR_ARGUMENTS_BAD, m.LoginUser(h, CKU_USER, []byte(userPIN), []byte("alice")))
	want(t, CKR_SESSION_HANDLE_INVALID, m.LoginUser(h+99, CKU_USER, []byte(userPIN), []byte("alice")))
	must(t, m.LoginUser(h, CKU_USER, []byte(userPIN), nil))
	want(t, CKR_USER_ALREADY_LOGGED_IN, m.LoginUser(h, CKU_USER, []byte(userPIN), []byte{}))
	must(t, m.Logout(h))
	must(t, m.LoginUser(h, CKU_SO, []byte(soPIN), nil))
}
