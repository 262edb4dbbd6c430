package migration

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// machine is a TPM whose bus is recorded, with a store.
type machine struct {
	bus   *swtpmtest.Proxy
	dev   *tpm.TPM
	store *sealstore.Store
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	bus := swtpmtest.StartProxy(t, swtpmtest.Start(t))
	dev, err := tpm.New(tpm.Config{Device: bus.Device(), KeyHandle: 0x81000001})
	check(t, err)
	t.Cleanup(func() { dev.Close() })
	return &machine{bus, dev, sealstore.Open(filepath.Join(t.TempDir(), "store"), dev, nil)}
}

// inClear finds 16 bytes in a row of a secret in what was recorded, also
// backwards.
func inClear(recorded, secret []byte) bool {
	for at := 0; at+16 <= len(secret); at++ {
		piece := slices.Clone(secret[at : at+16])
		if bytes.Contains(recorded, piece) {
			return true
		}
		if slices.Reverse(piece); bytes.Contains(recorded, piece) {
			return true
		}
	}
	return false
}

// TestBus records every byte that both TPMs exchange with their machines through
// a move: nothing secret passes in the clear.
func TestBus(t *testing.T) {
	from, to := newMachine(t), newMachine(t)
	userPIN, soPIN := []byte("the user's pin"), []byte("the SO's PIN")
	info, err := from.store.Create(sealstore.InitParams{Label: "bus", SOPIN: soPIN, Recoverable: true})
	check(t, err)
	tok, err := from.store.Token(info.Serial)
	check(t, err)
	check(t, tok.Login(sealstore.SO, soPIN))
	check(t, tok.InitUserPIN(userPIN))
	check(t, tok.Login(sealstore.User, userPIN))
	seed := make([]byte, eddsa.SeedSize)
	rand.Read(seed)
	key, err := eddsa.NewKey(seed)
	check(t, err)
	public := key.Public()
	key.Destroy()
	_, err = tok.CreateObject(true, []byte("a key"), seed, public[:])
	check(t, err)
	tok.Logout()

	secret := secret(t, KeySize)
	offer, err := NewOffer(secret)
	check(t, err)
	offer.RootPublic, offer.RootName, err = to.dev.Root()
	check(t, err)
	offer.Endorsement, err = to.dev.Endorsement()
	check(t, err)
	id := sealstore.OfferID(offer.ID)
	check(t, to.store.KeepOffer(id, secret))

	contents, err := tok.Export(userPIN, soPIN, nil)
	check(t, err)
	defer contents.Destroy()
	parcel, expected := pack(t, offer, contents, true)

	clear(secret)
	_, err = to.store.OpenOffer(id, secret)
	check(t, err)
	opened, err := parcel.Open(secret, func(credential, dst []byte) (int, error) {
		return to.dev.ActivateRoot(offer.RootName, credential, dst)
	})
	check(t, err)
	defer opened.Destroy()
	back, err := opened.Contents(func(d tpm.Duplicate, auth, dst []byte) (int, error) {
		return to.dev.ImportWrapped(offer.RootName, d, auth, dst)
	}, nil)
	check(t, err)
	defer back.Destroy()
	info, err = to.store.Restore(back, sealstore.RestoreParams{UserPIN: userPIN, SOPIN: soPIN})
	check(t, err)
	arrived, err := to.store.Token(info.Serial)
	check(t, err)
	check(t, arrived.Login(sealstore.User, userPIN))
	proof, err := opened.Prove(arrived.Unseal)
	check(t, err)
	check(t, proof.Check(expected))

	for where, m := range map[string]*machine{"source": from, "target": to} {
		check(t, m.dev.Close())
		recorded := m.bus.Seen()
		for what, s := range map[string][]byte{
			"the seed": seed, "the challenge": opened.in.nonce[:], "the offer's secret": secret,
			"the credential's secret": opened.keys.activated(), "the shared secret": opened.keys.shared(),
			"the parcel's key": opened.keys.contents(), "the wrapped keys' authorisation": opened.keys.auth(),
		} {
			if len(s) < 24 || bytes.Equal(s, make([]byte, len(s))) {
				t.Fatalf("%s is no secret: %x", what, s)
			}
			if inClear(recorded, s) {
				t.Errorf("%s: %s is in the clear on the bus", where, what)
			}
			if !inClear(slices.Concat(recorded, s[3:20]), s) {
				t.Error("the search does not find what is there")
			}
		}
		if name, err := hex.DecodeString("000b"); err != nil || len(recorded) < 5000 || !bytes.Contains(recorded, name) {
			t.Errorf("%s: the recording of %d bytes is not one of a TPM", where, len(recorded))
		}
	}
	sent := to.bus.Sent()
	for _, code := range []tpm2.TPMCC{tpm2.TPMCCActivateCredential, tpm2.TPMCCImport} {
		if !slices.Contains(sent, code) {
			t.Errorf("the target's TPM never got command %v", code)
		}
	}
	for _, m := range []*machine{from, to} {
		if sent := m.bus.Sent(); slices.Contains(sent, tpm2.TPMCCDuplicate) {
			t.Error("a TPM was asked to duplicate")
		}
	}
}
