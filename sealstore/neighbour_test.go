package sealstore_test

import (
	"errors"
	"path/filepath"
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

// rootHandle is where a persistent storage root key is.
const rootHandle = tpm2.TPMHandle(0x81000001)

// neighbour is a program of somebody who may use the TPM and not read the store.
type neighbour struct {
	t *testing.T
	s *swtpmtest.TPM
}

func (n neighbour) use(f func(transport.TPM) error) error {
	n.t.Helper()
	c, err := linuxudstpm.Open(n.s.Path())
	check(n.t, err)
	defer c.Close()
	return f(c)
}

// password is what the administrator does, who sets that of a hierarchy.
func (n neighbour) password(hierarchy tpm2.TPMHandle, password string) {
	n.t.Helper()
	check(n.t, n.use(func(c transport.TPM) error {
		_, err := tpm2.HierarchyChangeAuth{AuthHandle: hierarchy, NewAuth: tpm2.TPM2BAuth{Buffer: []byte(password)}}.Execute(c)
		return err
	}))
}

// guess makes an object of its own and uses wrong passwords of it, until the TPM
// takes none any more.
func (n neighbour) guess() error {
	return n.use(func(c transport.TPM) error {
		made, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.TPMRHNull,
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				UserAuth: tpm2.TPM2BAuth{Buffer: []byte("theirs")},
				Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: make([]byte, 8)}),
			}},
			InPublic: tpm2.New2B(tpm2.TPMTPublic{
				Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
				ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true},
			}),
		}.Execute(c)
		if err != nil {
			return err
		}
		defer tpm2.FlushContext{FlushHandle: made.ObjectHandle}.Execute(c)
		for range 8 {
			object := tpm2.AuthHandle{Handle: made.ObjectHandle, Name: made.Name, Auth: tpm2.PasswordAuth([]byte("wrong"))}
			_, err = tpm2.Unseal{ItemHandle: object}.Execute(c)
			if errors.Is(err, tpm2.TPMRCLockout) {
				return nil
			}
		}
		return err
	})
}

func (n neighbour) evict() error {
	return n.use(func(c transport.TPM) error {
		key, err := tpm2.ReadPublic{ObjectHandle: rootHandle}.Execute(c)
		if err != nil {
			return err
		}
		_, err = tpm2.EvictControl{
			Auth:             tpm2.TPMRHOwner,
			ObjectHandle:     tpm2.NamedHandle{Handle: rootHandle, Name: key.Name},
			PersistentHandle: rootHandle,
		}.Execute(c)
		return err
	})
}

func (n neighbour) clear() error {
	return n.use(func(c transport.TPM) error {
		_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(c)
		return err
	})
}

// TestNeighbour: whoever may use the TPM can keep others from using theirs. The
// passwords of its owner and of its lockout prevent some of it.
func TestNeighbour(t *testing.T) {
	for name, password := range map[string]string{"without passwords": "", "with passwords": "of the administrator"} {
		t.Run(name, func(t *testing.T) {
			s := swtpmtest.Start(t)
			n := neighbour{t, s}
			dev, err := tpm.New(tpm.Config{Device: s.Device(), KeyHandle: uint32(rootHandle)})
			check(t, err)
			defer dev.Close()
			st := sealstore.Open(filepath.Join(t.TempDir(), "store"), dev, nil)
			info, err := st.Create(sealstore.InitParams{Label: "ours", SOPIN: sealtest.SOPIN})
			check(t, err)
			login := func() error {
				tok, err := st.Token(info.Serial)
				check(t, err)
				return tok.Login(sealstore.SO, sealtest.SOPIN)
			}
			if password != "" {
				n.password(tpm2.TPMRHOwner, password)
				n.password(tpm2.TPMRHLockout, password)
			}
			_, _, err = dev.Persist([]byte(password))
			check(t, err)
			check(t, login())

			err = n.evict()
			if refused := errors.Is(err, tpm2.TPMRCBadAuth); err != nil && !refused || refused != (password != "") {
				t.Errorf("evicting the storage root key: %v", err)
			}
			check(t, login()) // the TPM makes an evicted key again

			check(t, n.guess())
			if err := login(); !errors.Is(err, sealstore.ErrLockout) {
				t.Errorf("the right PIN after a neighbour's wrong passwords: %v", err)
			}

			err = n.clear()
			if refused := errors.Is(err, tpm2.TPMRCAuthFail); err != nil && !refused || refused != (password != "") {
				t.Errorf("clearing the TPM: %v", err)
			}
			if err := login(); password == "" && (!errors.Is(err, sealstore.ErrParent) || !strings.Contains(err.Error(), "this TPM was cleared since")) {
				t.Errorf("after the TPM was cleared: %v", err)
			}
		})
	}
}
