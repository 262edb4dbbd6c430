package sealtest

import (
	"errors"
	"testing"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// noPIN takes a token that needs no PIN through the life of one that does.
func noPIN(t *testing.T, f *fixture) {
	info, err := f.store.Create(sealstore.InitParams{Label: "unattended", SOPIN: SOPIN, NoPIN: true})
	ok(t, err)
	if info.UserPIN || !info.NoPIN {
		t.Fatalf("%+v", info)
	}
	tok, err := f.store.Token(info.Serial)
	ok(t, err)
	_, err = put(tok)
	fails(t, err, sealstore.ErrLocked)
	fails(t, tok.Login(sealstore.User, UserPIN), sealstore.ErrNoPIN)
	ok(t, tok.Login(sealstore.User, nil))
	id, err := put(tok)
	ok(t, err)
	opens := func() error {
		t.Helper()
		other, err := f.open(t).Token(info.Serial)
		ok(t, err)
		if err := other.Login(sealstore.User, nil); err != nil {
			return err
		}
		checkSecret(t, other, all(t, other)[id])
		return nil
	}
	ok(t, opens())
	for _, old := range [][]byte{nil, UserPIN} {
		fails(t, tok.SetPIN(sealstore.User, old, UserPIN), sealstore.ErrNoPIN)
	}
	fails(t, tok.Login(sealstore.SO, nil), sealstore.ErrAuth)
	if damage, err := tok.Check(); err != nil || len(damage) != 0 {
		t.Error(damage, err)
	}

	// The binding holds it.
	ok(t, tok.Bind(nil, SOPIN, *spec, nil))
	wantUnbound(t, tok, 0)
	ok(t, opens())
	f.extend(t, 7)
	fails(t, opens(), sealstore.ErrPCR)
	_, err = unseal(t, tok, id)
	fails(t, err, sealstore.ErrPCR)
	ok(t, tok.Rebind(SOPIN, nil))
	ok(t, opens())
	ok(t, tok.Unbind(nil, SOPIN, nil))
	f.extend(t, 7)
	ok(t, opens())

	// Wrong PINs of others do not lock it.
	locked := makeToken(t, f.store, "with a PIN")
	for n := 0; ; n++ {
		err := locked.Login(sealstore.User, []byte("wrong pin"))
		if errors.Is(err, sealstore.ErrLockout) {
			break
		}
		fails(t, err, sealstore.ErrAuth)
		if n == 100 {
			t.Fatal("no lockout")
		}
	}
	ok(t, opens())
}

// noPINBound is a token that is bound from the start; the SO gives it a PIN.
func noPINBound(t *testing.T, f *fixture) {
	info, err := f.store.Create(sealstore.InitParams{Label: "unattended", SOPIN: SOPIN, NoPIN: true, Binding: spec})
	ok(t, err)
	tok, err := f.store.Token(info.Serial)
	ok(t, err)
	ok(t, tok.Login(sealstore.User, nil))
	id, err := put(tok)
	ok(t, err)
	f.extend(t, 7)
	fails(t, tok.Login(sealstore.User, nil), sealstore.ErrPCR)
	ok(t, tok.Rebind(SOPIN, nil))
	ok(t, tok.Login(sealstore.User, nil))

	fails(t, tok.InitUserPIN(UserPIN), sealstore.ErrLocked)
	ok(t, tok.Login(sealstore.SO, SOPIN))
	ok(t, tok.InitUserPIN(UserPIN))
	if info, err := tok.Info(); err != nil || !info.UserPIN || info.NoPIN {
		t.Errorf("%+v, %v", info, err)
	}
	tok.Logout()
	fails(t, tok.Login(sealstore.User, nil), sealstore.ErrAuth)
	ok(t, f.opens(t, info.Serial, id))
	f.extend(t, 7)
	fails(t, f.opens(t, info.Serial, id), sealstore.ErrPCR)
	ok(t, tok.Rebind(SOPIN, nil))

	again, err := f.store.Reinit(info.Serial, "again", SOPIN, nil)
	ok(t, err)
	if again.UserPIN || again.NoPIN {
		t.Errorf("%+v", again)
	}
}
