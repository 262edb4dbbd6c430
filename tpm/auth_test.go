package tpm

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// Authorisations are written and read as go-tpm does it.
func TestAuthAreas(t *testing.T) {
	for bits := range byte(1 << 6) {
		on := func(n int) bool { return bits>>n&1 != 0 }
		attributes := tpm2.TPMASession{ContinueSession: on(0), AuditExclusive: on(1), AuditReset: on(2), Decrypt: on(3), Encrypt: on(4), Audit: on(5)}
		nonce, mac := bytes.Repeat([]byte{1}, int(bits%17)), bytes.Repeat([]byte{2}, int(bits%33))
		command := tpm2.TPMSAuthCommand{
			Handle: 0x02000001, Nonce: tpm2.TPM2BNonce{Buffer: nonce}, Attributes: attributes, Authorization: tpm2.TPM2BData{Buffer: mac},
		}
		if got, want := appendAuth(nil, &command), tpm2.Marshal(command); !bytes.Equal(got, want) {
			t.Errorf("%+v: %x, go-tpm writes %x", command, got, want)
		}
		answer := tpm2.Marshal(tpm2.TPMSAuthResponse{
			Nonce: tpm2.TPM2BNonce{Buffer: nonce}, Attributes: attributes, Authorization: tpm2.TPM2BData{Buffer: mac},
		})
		got, err := parseAuth(answer)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got.Attributes, attributes) || !bytes.Equal(got.Nonce.Buffer, nonce) || !bytes.Equal(got.Authorization.Buffer, mac) {
			t.Errorf("%x: %+v", answer, got)
		}
		for n := range answer {
			if _, err := parseAuth(answer[:n]); err == nil {
				t.Errorf("%x: %d bytes of it are accepted", answer, n)
			}
		}
		if _, err := parseAuth(append(answer, 0)); err == nil {
			t.Errorf("%x: a byte more is accepted", answer)
		}
	}
}
