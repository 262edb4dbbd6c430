package backup

import (
	"errors"
	"strings"
	"testing"

	"filippo.io/age"
)

// FuzzRecipient reads public keys. What is accepted can be encrypted to, and an
// error of what is none does not repeat it: it may be a secret key.
func FuzzRecipient(f *testing.F) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(id.Recipient().String())
	f.Add(id.String())
	f.Add("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS comment")
	f.Add("age1plugin1x")
	f.Add("age1pq1")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parseRecipient(s)
		if err != nil {
			if public := strings.HasPrefix(s, "age1") || strings.HasPrefix(s, "ssh-"); !public && len(s) > 12 && strings.Contains(err.Error(), s) {
				t.Errorf("the error repeats %q", s)
			}
			return
		}
		if _, err := r.Wrap(make([]byte, 16)); err != nil {
			t.Errorf("%q is accepted, and cannot be encrypted to: %v", s, err)
		}
	})
}

// FuzzIdentity reads files with secret keys.
func FuzzIdentity(f *testing.F) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("# a comment\n" + id.String() + "\n"))
	f.Add([]byte("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"))
	f.Add([]byte("age-encryption.org/v1\n-> scrypt x 1\n\n--- \n"))
	f.Add([]byte("-----BEGIN AGE ENCRYPTED FILE-----\n-----END AGE ENCRYPTED FILE-----\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		ids, err := (&Identity{file: file}).identities()
		if (len(ids) == 0) == (err == nil) {
			t.Fatalf("%q: %d identities, %v", file, len(ids), err)
		}
		if err != nil && !errors.Is(err, ErrNoKey) && !errors.Is(err, ErrPassphrase) {
			t.Errorf("%q: an error of another kind: %v", file, err)
		}
	})
}
