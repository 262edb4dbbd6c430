package sealstore_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/sealstore/sealtest"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// inClear finds a secret in what was recorded: as it is, backwards, in
// hexadecimal digits, and any 16 bytes of it.
func inClear(recorded, secret []byte) bool {
	const part = 16
	for at := 0; at+part <= len(secret); at++ {
		piece := secret[at : at+part]
		back := slices.Clone(piece)
		slices.Reverse(back)
		if bytes.Contains(recorded, piece) || bytes.Contains(recorded, back) ||
			bytes.Contains(bytes.ToLower(recorded), []byte(hex.EncodeToString(piece))) {
			return true
		}
	}
	return len(secret) < part && bytes.Contains(recorded, secret)
}

// TestBus records every byte between the store and the TPM through a token's
// life: no secret passes in the clear.
func TestBus(t *testing.T) {
	for _, mode := range []string{"", ",exclusive"} {
		s := swtpmtest.Start(t)
		bus := swtpmtest.StartProxy(t, s)
		dev, err := tpm.New(tpm.Config{Device: bus.Device() + mode, KeyHandle: 0x81000001})
		check(t, err)
		st := sealstore.Open(filepath.Join(t.TempDir(), "store"), dev, nil)
		info, err := st.Create(sealstore.InitParams{Label: "bus", SOPIN: sealtest.SOPIN, Binding: &pcrs})
		check(t, err)
		tok, err := st.Token(info.Serial)
		check(t, err)
		check(t, tok.Login(sealstore.SO, sealtest.SOPIN))
		check(t, tok.InitUserPIN(sealtest.UserPIN))
		check(t, tok.Login(sealstore.User, sealtest.UserPIN))
		seed := make([]byte, 32)
		rand.Read(seed)
		o, err := tok.CreateObject(true, []byte("body"), seed, nil)
		check(t, err)
		unsealed := make([]byte, sealstore.MaxSecret)
		for range 2 {
			if _, err := tok.Unseal(o.ID, unsealed); err != nil {
				t.Fatal(err)
			}
		}
		secrets := map[string][]byte{"seed": seed, "SO PIN": sealtest.SOPIN, "user PIN": sealtest.UserPIN, "new PIN": newPIN}
		maps.Copy(secrets, sealstore.BusSecrets(tok, sealtest.SOPIN, sealtest.UserPIN))
		check(t, tok.SetPIN(sealstore.User, sealtest.UserPIN, newPIN))
		check(t, tok.SetPIN(sealstore.SO, sealtest.SOPIN, sealtest.SOPIN))
		for what, v := range sealstore.BusSecrets(tok, sealtest.SOPIN, newPIN) {
			secrets[what+" after the change"] = v
		}
		check(t, tok.Rebind(sealtest.SOPIN, nil))
		check(t, tok.Unbind(newPIN, sealtest.SOPIN, nil))
		check(t, tok.Bind(newPIN, sealtest.SOPIN, pcrs, nil))
		check(t, dev.Close())

		recorded := bus.Seen()
		for what, secret := range secrets {
			if len(secret) < 8 {
				t.Fatalf("%s has %d bytes", what, len(secret))
			}
			if inClear(recorded, secret) {
				t.Errorf("%s is in the clear on the bus", what)
			}
		}
		// The search finds what is there: in the recording, and planted.
		if name, err := hex.DecodeString("000b"); err != nil || !bytes.Contains(recorded, name) || len(recorded) < 10000 {
			t.Errorf("the recording of %d bytes is not one of a TPM", len(recorded))
		}
		for _, plant := range [][]byte{seed, []byte(hex.EncodeToString(seed)), seed[5:21]} {
			if !inClear(slices.Concat(recorded, plant), seed) {
				t.Errorf("%x is not found", plant)
			}
		}
	}
}

// tap keeps the last answer.
type tap struct {
	transport.TPMCloser
	last []byte
}

func (c *tap) Send(command []byte) (answer []byte, err error) {
	answer, err = c.TPMCloser.Send(command)
	c.last = bytes.Clone(answer)
	return answer, err
}

// TestWrongRoot: sessions are salted to the storage root key of the token
// alone. Where another is there, the error says how it comes.
func TestWrongRoot(t *testing.T) {
	s := swtpmtest.Start(t)
	bus := swtpmtest.StartProxy(t, s)
	dir := filepath.Join(t.TempDir(), "store")
	open := func(device string) *sealstore.Store {
		t.Helper()
		dev, err := tpm.New(tpm.Config{Device: device, KeyHandle: 0x81000001})
		check(t, err)
		t.Cleanup(func() { dev.Close() })
		return sealstore.Open(dir, dev, nil)
	}
	info, err := open(bus.Device()).Create(sealstore.InitParams{Label: "root", SOPIN: sealtest.SOPIN})
	check(t, err)
	login := func(device string) error {
		t.Helper()
		tok, err := open(device).Token(info.Serial)
		check(t, err)
		return tok.Login(sealstore.SO, sealtest.SOPIN)
	}
	wrong := func(what, device string, want error, text string) {
		t.Helper()
		bus.Decide(bus.Decided())
		if err := login(device); !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want %q", what, err, text)
		}
		for _, c := range bus.Sent() {
			if c == tpm2.TPMCCUnseal {
				t.Errorf("%s: something was unsealed", what)
			}
		}
	}
	check(t, login(bus.Device()))

	// A public area that is not the one of the Name: no session is salted to it.
	bus.Decide(func(code tpm2.TPMCC, answer []byte) []byte {
		if code == tpm2.TPMCCCreatePrimary {
			// The x coordinate of the key, behind handle, sizes and parameters.
			changed := bytes.Clone(answer)
			at := bytes.Index(changed, []byte{0x00, 0x20})
			for k := at; k >= 0 && k < len(changed)-34; k++ {
				if changed[k] == 0x00 && changed[k+1] == 0x20 {
					changed[k+2] ^= 1
				}
			}
			return changed
		}
		return answer
	})
	wrong("an interposer with the right Name", bus.Device(), sealstore.ErrParent, "somebody between the TPM and this machine has put another key in its place")

	// A key of somebody else's, whole and with its own Name, before the TPM.
	other := swtpmtest.Start(t)
	o, err := linuxudstpm.Open(other.Path())
	check(t, err)
	theirs := &tap{TPMCloser: o}
	_, err = tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(theirs)
	check(t, err)
	check(t, o.Close())
	bus.Decide(func(code tpm2.TPMCC, answer []byte) []byte {
		if code == tpm2.TPMCCCreatePrimary {
			return theirs.last
		}
		return answer
	})
	wrong("an interposer with a key of its own", bus.Device(), sealstore.ErrIntegrity, "somebody between this machine and the TPM shows a key of his own")

	// An interposer that is a TPM itself is another TPM.
	wrong("another TPM", other.Device(), sealstore.ErrParent, "this is another TPM")

	bus.Decide(nil)
	check(t, login(bus.Device()))
	c, err := linuxudstpm.Open(s.Path())
	check(t, err)
	_, err = tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}}.Execute(c)
	c.Close()
	check(t, err)
	wrong("a cleared TPM", bus.Device(), sealstore.ErrParent, "this TPM was cleared since")
}
