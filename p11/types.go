// Package p11 holds the Cryptoki rules in pure Go: slots, sessions, login
// state, objects, attribute rules and the mechanism table. It follows OASIS
// PKCS#11 v3.1; section numbers in comments are of that document. The C
// boundary in cgo converts pointers and calls one method of [Module] per
// C_ function.
package p11

// The numeric types of Cryptoki. CK_ULONG is an unsigned long, which on every
// Linux ABI has the width of Go's uint.
type (
	// SlotID is a CK_SLOT_ID.
	SlotID uint
	// SessionHandle is a CK_SESSION_HANDLE; 0 is never a valid one.
	SessionHandle uint
	// ObjectHandle is a CK_OBJECT_HANDLE; 0 is never a valid one.
	ObjectHandle uint
	// MechanismType is a CK_MECHANISM_TYPE.
	MechanismType uint
	// AttributeType is a CK_ATTRIBUTE_TYPE.
	AttributeType uint
	// UserType is a CK_USER_TYPE.
	UserType uint
	// State is a CK_STATE.
	State uint
)

// Unavailable is CK_UNAVAILABLE_INFORMATION.
const Unavailable = ^uint(0)

// Version is a CK_VERSION.
type Version struct{ Major, Minor byte }

// InitArgs says what C_Initialize was given (section 5.4). The mutex
// callbacks themselves stay in C: this module locks with its own primitives.
type InitArgs struct {
	Given                                             bool // false: pInitArgs was NULL
	Flags                                             uint
	CreateMutex, DestroyMutex, LockMutex, UnlockMutex bool // which callbacks are not NULL
	Reserved                                          bool // pReserved was not NULL
}

// Info is a CK_INFO. Texts are unpadded; the boundary pads them with blanks.
type Info struct {
	CryptokiVersion    Version
	ManufacturerID     string // at most 32 bytes
	Flags              uint
	LibraryDescription string // at most 32 bytes
	LibraryVersion     Version
}

// SlotInfo is a CK_SLOT_INFO.
type SlotInfo struct {
	SlotDescription string // at most 64 bytes
	ManufacturerID  string // at most 32 bytes
	Flags           uint
	HardwareVersion Version
	FirmwareVersion Version
}

// TokenInfo is a CK_TOKEN_INFO.
type TokenInfo struct {
	Label              string // at most 32 bytes
	ManufacturerID     string // at most 32 bytes
	Model              string // at most 16 bytes
	SerialNumber       string // at most 16 bytes
	Flags              uint
	MaxSessionCount    uint
	SessionCount       uint
	MaxRwSessionCount  uint
	RwSessionCount     uint
	MaxPinLen          uint
	MinPinLen          uint
	TotalPublicMemory  uint
	FreePublicMemory   uint
	TotalPrivateMemory uint
	FreePrivateMemory  uint
	HardwareVersion    Version
	FirmwareVersion    Version
	UTCTime            string // 16 bytes or empty
}

// SessionInfo is a CK_SESSION_INFO.
type SessionInfo struct {
	Slot        SlotID
	State       State
	Flags       uint
	DeviceError uint
}

// MechanismInfo is a CK_MECHANISM_INFO.
type MechanismInfo struct {
	MinKeySize, MaxKeySize uint
	Flags                  uint
}

// Mechanism is a CK_MECHANISM. Param is nil, []byte (the raw parameter), or
// for CKM_EDDSA with a parameter of the size of CK_EDDSA_PARAMS an
// *EdDSAParams. A []byte and EdDSAParams.Context may point into the caller's
// memory: they are valid during the call only.
type Mechanism struct {
	Type  MechanismType
	Param any
}

// EdDSAParams is a CK_EDDSA_PARAMS (section 6.3.16).
type EdDSAParams struct {
	Ph      bool
	Context []byte
}

// Attribute is one entry of a template that goes in. Value may point into
// the caller's memory and is valid during the call only.
type Attribute struct {
	Type  AttributeType
	Value []byte
}

// AttributeOut is one entry of a template that C_GetAttributeValue fills.
// Buf is the caller's buffer, nil where pValue was NULL. The call sets Len to
// the value's length, or to [Unavailable].
type AttributeOut struct {
	Type AttributeType
	Buf  []byte
	Len  uint
}

// Output is the pair of a buffer and its length that functions of variable
// output take (section 5.2). Query is true where the pointer was NULL: then
// only Len is set. Len is meaningful on success and with CKR_BUFFER_TOO_SMALL.
type Output struct {
	Buf   []byte
	Query bool
	Len   uint
}
