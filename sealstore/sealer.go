package sealstore

import (
	"errors"
	"time"
)

// Blob is a sealed secret as the TPM hands it out: the TPMT_PUBLIC and the
// encrypted private part, both without their two-byte size prefix (TPM 2.0
// Library, Part 2, 12.2.4 and 12.3.7). Neither is confidential.
type Blob struct {
	Public  []byte
	Private []byte
}

// SealOptions says how a secret is sealed.
type SealOptions struct {
	// DictionaryAttack makes a wrong authorisation value count towards the
	// TPM's lockout (the object's noDA attribute is clear). It belongs on
	// seals that are opened by something a person chose.
	DictionaryAttack bool
}

// Lockout is the state of the dictionary-attack protection of the TPM
// (Part 1, 19.8), which all objects of that TPM share.
type Lockout struct {
	Counter  uint32        // wrong tries that are remembered now
	Max      uint32        // tries at which the TPM locks out
	Interval time.Duration // time after which one try is forgiven
	Recovery time.Duration // time that the lockout authorisation is refused after a failure
	// InLockout reports that the TPM refuses every authorisation of a
	// protected object at present, right ones too.
	InLockout bool
}

// Sealer binds secrets to one machine. tpm.TPM implements it with a TPM 2.0,
// memseal.Sealer in memory.
//
// Errors are wrapped and carry their cause; these can be told apart with
// errors.Is: ErrAuth, ErrLockout, ErrUnavailable, ErrParent and ErrBlob. A
// Sealer may be used by several goroutines at once.
//
// parent is always the Name that was recorded when the token was created; an
// operation fails with ErrParent if the storage root key has another Name now.
// A blob that is refused under the right Name is therefore damaged: it is not
// of another TPM.
type Sealer interface {
	// Parent returns the Name of the storage root key in use, 34 bytes: the
	// algorithm identifier of SHA-256 and a digest (Part 1, 16).
	Parent() (name []byte, err error)

	// Seal seals 1 to 128 bytes. auth is empty or 32 ASCII characters.
	Seal(parent []byte, secret, auth []byte, o SealOptions) (Blob, error)

	// Unseal writes the secret to dst, which is secret memory, and to no other
	// place that outlives the call, and returns its length. Fails with ErrAuth
	// if auth is wrong, with ErrLockout if the TPM accepts no tries at present,
	// with ErrBlob if the TPM refuses to load b.
	Unseal(parent []byte, b Blob, auth []byte, dst []byte) (n int, err error)

	// TryLoad finds out without an authorisation value whether the TPM still
	// takes b, which it does not if a bit of it has changed. It counts as no
	// try. Fails with ErrBlob if the TPM refuses to load b.
	TryLoad(parent []byte, b Blob) error

	// ChangeAuth returns b with another authorisation value. b itself stays
	// valid under the old one: whoever stores the result has to destroy b.
	ChangeAuth(parent []byte, b Blob, oldAuth, newAuth []byte) (Blob, error)

	// Random fills p with random bytes of the device.
	Random(p []byte) error

	// Lockout reads the state of the dictionary-attack protection.
	Lockout() (Lockout, error)

	// Release drops what is kept warm: loaded objects and sessions. The Sealer
	// can be used afterwards and warms up again.
	Release()

	// Close releases everything. The Sealer must not be used afterwards.
	Close() error
}

// Errors that a Sealer wraps.
var (
	// ErrAuth: the authorisation value, and so the PIN behind it, is wrong.
	ErrAuth = errors.New("wrong PIN or authorisation value")
	// ErrLockout: the TPM refuses all tries until time has passed.
	ErrLockout = errors.New("the TPM is in lockout after too many wrong PINs")
	// ErrUnavailable: the TPM cannot be reached.
	ErrUnavailable = errors.New("the TPM cannot be reached")
	// ErrParent: the storage root key is not the one the token was made under.
	ErrParent = errors.New("the TPM's storage root key is not the one this token was sealed under")
	// ErrBlob: the TPM refuses the sealed blob, which is damaged.
	ErrBlob = errors.New("damaged: the TPM refuses the sealed blob")
)
