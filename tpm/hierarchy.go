package tpm

import (
	"bytes"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// maxPassword is the size of the largest digest that a TPM can have, and so
// of the longest password of a hierarchy (Part 2, 10.4.2).
const maxPassword = 64

// checkPassword refuses what the TPM would not take as the password of a
// hierarchy, before it counts as a wrong try.
func checkPassword(what string, isSet bool, password []byte) error {
	trimmed := bytes.TrimRight(password, "\x00") // the TPM does so too
	switch {
	case len(trimmed) > maxPassword:
		return verdict{fmt.Errorf("the %s has at most %d bytes", what, maxPassword)}
	case !isSet && len(trimmed) > 0:
		return verdict{fmt.Errorf("the TPM has no %s: none must be given", what)}
	}
	return nil
}

// withPassword runs f with what authorises the use of a hierarchy: an HMAC
// session, since a password by itself would cross the bus in the clear. The
// session is salted to a key of the null hierarchy, which can be made without
// a password, so that nobody who listens can try passwords.
func (t *TPM) withPassword(password []byte, f func(tpm2.Session) error) error {
	if len(password) == 0 {
		return f(tpm2.PasswordAuth(nil))
	}
	salt, err := t.createRoot(tpm2.TPMRHNull, tpm2.PasswordAuth(nil))
	if err != nil {
		return fmt.Errorf("creating a key for the session: %w", err)
	}
	s, err := t.session(salt, password, unencrypted)
	t.flush(salt.handle)
	if err != nil {
		return err
	}
	defer t.dropSession(s)
	return f(s)
}

// createRoot makes a key of the SRK's template in a hierarchy.
func (t *TPM) createRoot(hierarchy tpm2.TPMHandle, auth tpm2.Session) (*rootKey, error) {
	return t.createPrimary(hierarchy, tpm2.ECCSRKTemplate, auth)
}

// createPrimary makes the key that follows from a template and the seed of a
// hierarchy, without an authorisation value.
func (t *TPM) createPrimary(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic, auth tpm2.Session) (*rootKey, error) {
	r, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: auth},
		InPublic:      tpm2.New2B(template),
	}.Execute(t.link)
	if err != nil {
		return nil, err
	}
	public, err := r.OutPublic.Contents()
	if err == nil {
		err = checkName(public, r.Name)
	}
	if err != nil {
		t.flush(r.ObjectHandle)
		return nil, err
	}
	return &rootKey{handle: r.ObjectHandle, name: r.Name, public: *public, transient: true}, nil
}
