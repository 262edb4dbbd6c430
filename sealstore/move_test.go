package sealstore_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/sealtest"
)

func TestOffers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	device := memoryDevice(t)
	dev, err := openDevice(device)
	must(t, err)
	st := sealstore.Open(dir, dev, nil)
	if all, err := st.Offers(); err != nil || len(all) != 0 {
		t.Fatalf("an empty store has the offers %v, %v", all, err)
	}
	first, second := sealstore.OfferID{1}, sealstore.OfferID{2}
	secrets := map[sealstore.OfferID][]byte{first: bytes.Repeat([]byte{7}, 32), second: []byte("another secret of an offer")}
	for id, s := range secrets {
		must(t, st.KeepOffer(id, s))
	}
	if err := st.KeepOffer(first, []byte("again")); err == nil {
		t.Error("an offer was overwritten")
	}
	buf, err := secmem.New(sealstore.MaxSecret)
	must(t, err)
	defer buf.Destroy()
	open := func(st *sealstore.Store, id sealstore.OfferID) ([]byte, error) {
		n, err := st.OpenOffer(id, buf.Bytes())
		return bytes.Clone(buf.Bytes()[:n]), err
	}
	for id, s := range secrets {
		if got, err := open(st, id); err != nil || !bytes.Equal(got, s) {
			t.Errorf("offer %x: %q, %v", id, got, err)
		}
		must(t, st.HasOffer(id))
	}
	all, err := st.Offers()
	if err != nil || len(all) != 2 || time.Since(all[0].Created) > time.Minute || all[1].Created.Before(all[0].Created) {
		t.Errorf("offers: %v, %v", all, err)
	}
	// The secrets are the owner's alone, whoever may read the store.
	for name, want := range map[string]os.FileMode{"offers": 0o700, "offers/01000000000000000000000000000000": 0o600} {
		if i, err := os.Stat(filepath.Join(dir, name)); err != nil || i.Mode().Perm() != want {
			t.Errorf("%s has the mode %v, %v", name, i.Mode(), err)
		}
	}
	// Another device opens none.
	other, err := openDevice(memoryDevice(t))
	must(t, err)
	if _, err := open(sealstore.Open(dir, other, nil), first); !errors.Is(err, sealstore.ErrParent) {
		t.Errorf("on another device: %v", err)
	}
	// A file under another's name is not that other.
	must(t, os.Rename(filepath.Join(dir, "offers", "01"+strings.Repeat("0", 30)), filepath.Join(dir, "offers", "03"+strings.Repeat("0", 30))))
	if _, err := open(st, sealstore.OfferID{3}); !errors.Is(err, sealstore.ErrIntegrity) {
		t.Errorf("a renamed file: %v", err)
	}
	if err := st.HasOffer(first); !errors.Is(err, sealstore.ErrNotFound) {
		t.Errorf("a renamed offer: %v", err)
	}
	if all, err := st.Offers(); err != nil || len(all) != 1 {
		t.Errorf("offers beside a damaged one: %v, %v", all, err)
	}
	must(t, st.DropOffer(second))
	if _, err := open(st, second); !errors.Is(err, sealstore.ErrNotFound) {
		t.Errorf("a dropped offer: %v", err)
	}
	if err := st.DropOffer(second); !errors.Is(err, sealstore.ErrNotFound) {
		t.Errorf("dropped again: %v", err)
	}
}

func testMove(t *testing.T, tok *sealstore.Token) *sealstore.Move {
	t.Helper()
	state, err := tok.State()
	must(t, err)
	return &sealstore.Move{
		Offer: sealstore.OfferID{1}, Target: bytes.Repeat([]byte{2}, 34), Nonce: sha256.Sum256([]byte("nonce")),
		Keys: sha256.Sum256([]byte("keys")), State: state, Started: time.Unix(1700000000, 0).UTC(),
	}
}

// A token is deleted by a move if it is that very move, and still the token that
// was sent.
func TestMove(t *testing.T) {
	dir := t.TempDir()
	st, tok, _, _ := newToken(t, dir)
	o, err := tok.CreateObject(true, []byte("k"), []byte("secret"), nil)
	must(t, err)
	info, err := tok.Info()
	must(t, err)
	if m, err := tok.Move(); m != nil || err != nil {
		t.Fatalf("a move before one was started: %v, %v", m, err)
	}
	if err := tok.CancelMove(); !errors.Is(err, sealstore.ErrNotFound) {
		t.Errorf("cancelled nothing: %v", err)
	}
	finish := func(m *sealstore.Move, so []byte, want error) {
		t.Helper()
		if err := st.FinishMove(info.Serial, so, m); !errors.Is(err, want) {
			t.Fatalf("finished with %v, not %v", err, want)
		}
		if _, err := tok.Info(); err != nil {
			t.Fatalf("the token is gone: %v", err)
		}
	}
	m := testMove(t, tok)
	finish(m, sealtest.SOPIN, sealstore.ErrChanged) // it is not pending
	must(t, tok.StartMove(m))
	got, err := tok.Move()
	if err != nil || got.Started != m.Started || got.State != m.State || !bytes.Equal(got.Target, m.Target) || got.Nonce != m.Nonce || got.Keys != m.Keys || got.Offer != m.Offer {
		t.Fatalf("the pending move is %+v, %v", got, err)
	}
	finish(m, newPIN, sealstore.ErrAuth)
	later := *m
	later.Started = m.Started.Add(time.Hour)
	must(t, tok.StartMove(&later))
	finish(m, sealtest.SOPIN, sealstore.ErrChanged)
	must(t, tok.CancelMove())
	finish(&later, sealtest.SOPIN, sealstore.ErrChanged)
	must(t, tok.StartMove(m))

	// PINs, label and the like are not what is lost.
	must(t, tok.SetPIN(sealstore.User, sealtest.UserPIN, newPIN))
	must(t, tok.Rename(sealtest.SOPIN, "another label"))
	if now, err := tok.State(); err != nil || now != m.State {
		t.Errorf("the state has changed: %v", err)
	}
	changed := func(err error) {
		t.Helper()
		must(t, err)
		finish(m, sealtest.SOPIN, sealstore.ErrStale)
		m = testMove(t, tok)
		must(t, tok.StartMove(m))
	}
	_, err = tok.CreateObject(false, []byte("new"), nil, nil)
	changed(err)
	o, err = tok.UpdateObject(o.ID, o.Stamp, []byte("other"))
	changed(err)
	changed(tok.DeleteObject(o.ID))
	must(t, st.FinishMove(info.Serial, sealtest.SOPIN, m))
	if _, err := st.Token(info.Serial); !errors.Is(err, sealstore.ErrNotFound) {
		t.Errorf("after the move: %v", err)
	}
}

// A token that is made anew has nothing to do with the move of the one before.
func TestMoveEndsWithToken(t *testing.T) {
	st, tok, _, _ := newToken(t, t.TempDir())
	must(t, tok.StartMove(testMove(t, tok)))
	info, err := tok.Info()
	must(t, err)
	_, err = st.Reinit(info.Serial, "anew", sealtest.SOPIN, nil)
	must(t, err)
	if m, err := tok.Move(); m != nil || err != nil {
		t.Errorf("pending after the token was made anew: %v, %v", m, err)
	}
}
