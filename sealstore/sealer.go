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
	// Binding is what the seal was bound to, nil where it was not. It is no
	// part of the sealed object: its approvals may change.
	Binding *Binding
	// Creation is what the device says of how the seal was made, nil where
	// SealOptions.About was empty. It is no part of the sealed object either.
	Creation *Creation
}

// Creation lets the device attest later that it made a seal (Part 1, 16.9,
// and Part 3, 18.3).
type Creation struct {
	About  []byte // of SealOptions, as the device has recorded it
	Data   []byte // TPMS_CREATION_DATA
	Ticket []byte // TPMT_TK_CREATION: the device's own mark that Data is true
}

// Binding ties seals to the state of the platform: they open only while the
// PCRs have values that the approver has signed. Approving other values needs
// the approver's secret, and changes no seal.
type Binding struct {
	Bank      string // "sha1", "sha256", "sha384" or "sha512"
	PCRs      []int  // 0 to 23, rising
	Approver  []byte // public part of the approver's key, as Sealer.Approver gives it
	Approvals []Approval
}

// Approval lets bound seals open under one set of PCR values.
type Approval struct {
	Values    [][]byte // one for each PCR
	Signature []byte   // by the approver: 64 bytes
	Ticket    []byte   // the device's own mark that it has verified the signature; may be empty
}

// SealOptions says how a secret is sealed.
type SealOptions struct {
	// DictionaryAttack makes a wrong authorisation value count towards the
	// TPM's lockout (the object's noDA attribute is clear). It belongs on
	// seals that are opened by something a person chose.
	DictionaryAttack bool
	// Binding ties the seal to PCR values; nil does not.
	Binding *Binding
	// Movable leaves fixedTPM and fixedParent clear: the device then does not
	// say of the seal that what is in it exists nowhere else.
	Movable bool
	// About is a public statement on the secret, at most [MaxAbout] bytes, that
	// the device records when it makes the seal (outsideInfo): the public key
	// of a private one. Where it is given, the result has a Creation.
	About []byte
}

// MaxAbout is the size of the largest SealOptions.About, in bytes.
const MaxAbout = 64

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
	// Password reports that the lockout hierarchy has a password.
	Password bool
}

// Sealer binds secrets to one machine. tpm.TPM implements it with a TPM 2.0,
// memseal.Sealer in memory.
//
// Errors are wrapped and carry their cause; these can be told apart with
// errors.Is: ErrAuth, ErrLockout, ErrUnavailable, ErrParent, ErrOwner, ErrBlob
// and ErrPCR. A Sealer may be used by several goroutines at once.
//
// parent is always the Name that was recorded when the token was created; an
// operation fails with ErrParent if the storage root key has another Name now.
// A blob that is refused under the right Name is therefore damaged: it is not
// of another TPM.
type Sealer interface {
	// Parent returns the Name of the storage root key in use, 34 bytes: the
	// algorithm identifier of SHA-256 and a digest (Part 1, 16).
	Parent() (name []byte, err error)

	// Device returns a name of the device that outlives TPM2_Clear, at most 68
	// bytes: that of the endorsement key. It may be refused.
	Device() (name []byte, err error)

	// Seal seals 1 to 128 bytes. auth is empty or 32 ASCII characters.
	Seal(parent []byte, secret, auth []byte, o SealOptions) (Blob, error)

	// Unseal writes the secret to dst, which is secret memory, and to no other
	// place that outlives the call, and returns its length. Fails with ErrAuth
	// if auth is wrong, with ErrLockout if the TPM accepts no tries at present,
	// with ErrBlob if the TPM refuses to load b, with ErrPCR if b is bound and
	// the PCRs have no approved values.
	Unseal(parent []byte, b Blob, auth []byte, dst []byte) (n int, err error)

	// TryLoad finds out without an authorisation value whether the TPM still
	// takes b, which it does not if a bit of it has changed. It counts as no
	// try. Fails with ErrBlob if the TPM refuses to load b.
	TryLoad(parent []byte, b Blob) error

	// Bound tells whether a seal is bound to PCRs. It does not ask the device.
	Bound(b Blob) bool

	// NewKey has the device make an ECDSA key on a curve, "P-256" or "P-384",
	// that it uses itself and never gives out. public is the point as X9.62 has
	// it, uncompressed. Movable and About do not matter. Fails with ErrCurve if
	// the device does not know the curve.
	NewKey(parent []byte, curve string, auth []byte, o SealOptions) (b Blob, public []byte, err error)

	// Sign signs a digest with a key that NewKey made: 32 bytes for P-256, 48 for
	// P-384. The signature is r and s, each as long. Fails as Unseal does.
	Sign(parent []byte, b Blob, auth []byte, digest []byte) (signature []byte, err error)

	// ChangeAuth returns b with another authorisation value. b itself stays
	// valid under the old one: whoever stores the result has to destroy b.
	ChangeAuth(parent []byte, b Blob, oldAuth, newAuth []byte) (Blob, error)

	// Random fills p with random bytes of the device.
	Random(p []byte) error

	// Lockout reads the state of the dictionary-attack protection.
	Lockout() (Lockout, error)

	// PCRs reads the values of PCRs, in the order given.
	PCRs(bank string, pcrs []int) (values [][]byte, err error)

	// Approver gives the public part of the approver's key that follows from a
	// secret of 32 bytes.
	Approver(secret []byte) (public []byte, err error)

	// Approve lets the seals of b open while its PCRs have these values.
	Approve(b *Binding, values [][]byte, secret []byte) (Approval, error)

	// Release drops what is kept warm: the connection, loaded objects, and
	// sessions with the authorisation values in them. It does not wait for an
	// operation that is running. The Sealer can be used afterwards.
	Release()

	// Close releases everything. The Sealer must not be used afterwards.
	Close() error
}

// Errors that a Sealer wraps.
var (
	// ErrPCR: the platform is in no state that was approved.
	ErrPCR = errors.New("the state of the platform is not one that was approved")
	// ErrAuth: the authorisation value, and so the PIN behind it, is wrong.
	ErrAuth = errors.New("wrong PIN or authorisation value")
	// ErrLockout: the TPM refuses all tries until time has passed.
	ErrLockout = errors.New("the TPM is in lockout after too many wrong PINs")
	// ErrUnavailable: the TPM cannot be reached.
	ErrUnavailable = errors.New("the TPM cannot be reached")
	// ErrParent: the storage root key is not the one the token was made under.
	ErrParent = errors.New("the TPM's storage root key is not the one this token was sealed under")
	// ErrOwner: the storage root key would have to be created, which takes the
	// owner's password.
	ErrOwner = errors.New("the owner hierarchy of the TPM has a password")
	// ErrCurve: the device has no keys on that curve.
	ErrCurve = errors.New("the TPM does not know the curve")
	// ErrBlob: the TPM refuses the sealed blob, which is damaged.
	ErrBlob = errors.New("damaged: the TPM refuses the sealed blob")
)
