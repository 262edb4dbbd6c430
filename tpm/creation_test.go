package tpm_test

import (
	"bytes"
	"crypto/sha256"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// What the TPM says of how it made a seal: under which key, and about what. A
// seal that may move says so.
func TestCreation(t *testing.T) {
	d := open(t, swtpmtest.Start(t).Device())
	p := parent(t, d)
	about := []byte("a public key of 32 bytes, or so.")
	for _, movable := range []bool{false, true} {
		b, err := d.Seal(p, secret(), auth, sealstore.SealOptions{About: about, Movable: movable})
		if err != nil {
			t.Fatal(err)
		}
		public, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.Public)
		if err != nil {
			t.Fatal(err)
		}
		if a := public.ObjectAttributes; a.FixedTPM == movable || a.FixedParent == movable || !a.UserWithAuth {
			t.Errorf("movable %t: %+v", movable, a)
		}
		if b.Creation == nil {
			t.Fatal("no creation")
		}
		data, err := tpm2.Unmarshal[tpm2.TPMSCreationData](b.Creation.Data)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.Creation.About, about) || !bytes.Equal(data.OutsideInfo.Buffer, about) || !bytes.Equal(data.ParentName.Buffer, p) {
			t.Errorf("%+v", data)
		}
		ticket, err := tpm2.Unmarshal[tpm2.TPMTTKCreation](b.Creation.Ticket)
		if err != nil || len(ticket.Digest.Buffer) != sha256.Size && len(ticket.Digest.Buffer) != 64 && len(ticket.Digest.Buffer) != 48 || !bytes.Equal(tpm2.Marshal(*ticket), b.Creation.Ticket) {
			t.Errorf("%+v, %v", ticket, err)
		}
	}
	b, err := d.Seal(p, secret(), auth, sealstore.SealOptions{})
	if err != nil || b.Creation != nil {
		t.Errorf("%+v, %v", b.Creation, err)
	}
	if _, err := d.Seal(p, secret(), auth, sealstore.SealOptions{About: make([]byte, sealstore.MaxAbout+1)}); err == nil {
		t.Error("too much about a secret was taken")
	}
}
