package p11

import (
	"encoding/binary"
	"maps"
	"strconv"
)

// kind is how an attribute's value is written.
type kind int

const (
	kindBytes kind = iota
	kindBool       // CK_BBOOL: one byte, 0 or 1
	kindUlong      // CK_ULONG, in the host's order and width
	kindDate       // CK_DATE: eight digits, or empty
	kindMechs      // array of CK_MECHANISM_TYPE
)

// rule says who may give an attribute its value, and when.
type rule uint

const (
	onCreate rule = 1 << iota // C_CreateObject may give it
	onGen                     // C_GenerateKeyPair may give it
	onCopy                    // C_CopyObject may change it
	onSet                     // C_SetAttributeValue may change it
	required                  // C_CreateObject must give it
	genNeeds                  // C_GenerateKeyPair must give it
	soOnly                    // only the SO may set it to true
	onlyUp                    // once true it stays true
	onlyDown                  // once false it stays false
	hidden                    // its value never leaves the token

	anyTime = onCreate | onGen | onCopy | onSet
	atBirth = onCreate | onGen | onCopy
)

// spec is one attribute of one class of objects. An attribute without a
// default that was not given is absent: asking for it answers
// CKR_ATTRIBUTE_TYPE_INVALID, except that byte strings with an empty default
// are served empty, which is what the standard's tables say for them.
type spec struct {
	typ  AttributeType
	kind kind
	rule rule
	def  []byte // nil: no default
}

var (
	no    = []byte{0}
	yes   = []byte{1}
	empty = []byte{}
)

// storage holds the attributes that every object has (section 4.4).
var storage = []spec{
	{CKA_CLASS, kindUlong, onCreate | onGen | required, nil},
	{CKA_TOKEN, kindBool, atBirth, no},
	{CKA_PRIVATE, kindBool, atBirth, no},
	{CKA_MODIFIABLE, kindBool, atBirth, yes},
	{CKA_COPYABLE, kindBool, anyTime | onlyDown, yes},
	{CKA_DESTROYABLE, kindBool, atBirth, yes},
	{CKA_LABEL, kindBytes, anyTime, empty},
	{CKA_UNIQUE_ID, kindBytes, 0, nil},
}

// data is CKO_DATA (section 4.5).
var data = []spec{
	{CKA_APPLICATION, kindBytes, onCreate, empty},
	{CKA_OBJECT_ID, kindBytes, onCreate, empty},
	{CKA_VALUE, kindBytes, onCreate, empty},
}

// certificate is CKO_CERTIFICATE of type CKC_X_509 (section 4.6).
var certificate = []spec{
	{CKA_CERTIFICATE_TYPE, kindUlong, onCreate | required, nil},
	{CKA_TRUSTED, kindBool, anyTime | soOnly, no},
	{CKA_CERTIFICATE_CATEGORY, kindUlong, onCreate, ulong(uint(0))},
	{CKA_CHECK_VALUE, kindBytes, 0, nil},
	{CKA_START_DATE, kindDate, onCreate, empty},
	{CKA_END_DATE, kindDate, onCreate, empty},
	{CKA_PUBLIC_KEY_INFO, kindBytes, onCreate, nil},
	{CKA_SUBJECT, kindBytes, onCreate | required, nil},
	{CKA_ID, kindBytes, anyTime, empty},
	{CKA_ISSUER, kindBytes, anyTime, empty},
	{CKA_SERIAL_NUMBER, kindBytes, anyTime, empty},
	{CKA_VALUE, kindBytes, onCreate | required, nil},
	{CKA_URL, kindBytes, onCreate, empty},
	{CKA_HASH_OF_SUBJECT_PUBLIC_KEY, kindBytes, onCreate, empty},
	{CKA_HASH_OF_ISSUER_PUBLIC_KEY, kindBytes, onCreate, empty},
	{CKA_JAVA_MIDP_SECURITY_DOMAIN, kindUlong, onCreate, ulong(uint(0))},
	{CKA_NAME_HASH_ALGORITHM, kindUlong, onCreate, nil},
}

// key holds what all keys have (section 4.7).
var key = []spec{
	{CKA_KEY_TYPE, kindUlong, onCreate | onGen | required, nil},
	{CKA_ID, kindBytes, anyTime, empty},
	{CKA_START_DATE, kindDate, anyTime, empty},
	{CKA_END_DATE, kindDate, anyTime, empty},
	{CKA_DERIVE, kindBool, anyTime, no},
	{CKA_LOCAL, kindBool, 0, no},
	{CKA_KEY_GEN_MECHANISM, kindUlong, 0, ulong(Unavailable)},
	{CKA_ALLOWED_MECHANISMS, kindMechs, onCreate | onGen, empty},
}

// pair holds what both halves of a pair have besides. CKA_ID follows from the
// public key where none is given.
var pair = []spec{
	{CKA_ID, kindBytes, anyTime, nil},
	{CKA_SUBJECT, kindBytes, anyTime, empty},
	{CKA_PUBLIC_KEY_INFO, kindBytes, onCreate, nil},
}

// publicKey is CKO_PUBLIC_KEY of a curve (sections 4.8, 6.3.5 and 6.3.7).
var publicKey = []spec{
	{CKA_EC_PARAMS, kindBytes, onCreate | onGen | required | genNeeds, nil},
	{CKA_EC_POINT, kindBytes, onCreate | required, nil},
	{CKA_ENCRYPT, kindBool, anyTime, no},
	{CKA_VERIFY, kindBool, anyTime, yes},
	{CKA_VERIFY_RECOVER, kindBool, anyTime, no},
	{CKA_WRAP, kindBool, anyTime, no},
	{CKA_TRUSTED, kindBool, anyTime | soOnly, no},
}

// privateKey is CKO_PRIVATE_KEY of a curve (sections 4.9, 6.3.6 and 6.3.8).
// EC_POINT is no attribute of a private key in the standard; serving it lets
// clients do without the public object.
var privateKey = []spec{
	{CKA_EC_PARAMS, kindBytes, onCreate | onGen | required, nil},
	{CKA_EC_POINT, kindBytes, onCreate, nil},
	{CKA_PUBLIC_KEY_INFO, kindBytes, onCreate | onCopy | onSet, nil},
	{CKA_VALUE, kindBytes, onCreate | required | hidden, nil},
	{CKA_SENSITIVE, kindBool, anyTime | onlyUp, yes},
	{CKA_EXTRACTABLE, kindBool, anyTime | onlyDown, no},
	{CKA_ALWAYS_SENSITIVE, kindBool, 0, no},
	{CKA_NEVER_EXTRACTABLE, kindBool, 0, no},
	{CKA_SIGN, kindBool, anyTime, yes},
	{CKA_SIGN_RECOVER, kindBool, anyTime, no},
	{CKA_DECRYPT, kindBool, anyTime, no},
	{CKA_UNWRAP, kindBool, anyTime, no},
	{CKA_WRAP_WITH_TRUSTED, kindBool, anyTime | onlyUp, no},
	{CKA_ALWAYS_AUTHENTICATE, kindBool, onCreate | onGen | onCopy | onlyUp, no},
}

// secretKey is CKO_SECRET_KEY (section 4.10). What it may be used for by
// default depends on its type. CKA_VERIFY_RECOVER is no attribute of a secret
// key in the standard; OpenSC 0.26 asks each key for it, and warns where there is none.
var secretKey = []spec{
	{CKA_VALUE, kindBytes, onCreate | required | hidden, nil},
	{CKA_VALUE_LEN, kindUlong, onGen, nil},
	{CKA_SENSITIVE, kindBool, anyTime | onlyUp, no},
	{CKA_EXTRACTABLE, kindBool, anyTime | onlyDown, no},
	{CKA_ALWAYS_SENSITIVE, kindBool, 0, no},
	{CKA_NEVER_EXTRACTABLE, kindBool, 0, no},
	{CKA_CHECK_VALUE, kindBytes, anyTime, nil},
	{CKA_ENCRYPT, kindBool, anyTime, no},
	{CKA_DECRYPT, kindBool, anyTime, no},
	{CKA_SIGN, kindBool, anyTime, no},
	{CKA_VERIFY, kindBool, anyTime, no},
	{CKA_VERIFY_RECOVER, kindBool, 0, no},
	{CKA_WRAP, kindBool, anyTime, no},
	{CKA_UNWRAP, kindBool, anyTime, no},
	{CKA_WRAP_WITH_TRUSTED, kindBool, anyTime | onlyUp, no},
	{CKA_TRUSTED, kindBool, anyTime | soOnly, no},
}

// usable gives boolean attributes the default true, for a type of keys that is
// made for these uses.
func usable(types ...AttributeType) []spec {
	var s []spec
	for _, t := range types {
		s = append(s, spec{t, kindBool, anyTime, yes})
	}
	return s
}

// objectType is a class and, for keys, the type of key.
type objectType struct{ class, key uint }

// objectSpecs is the attribute table: for each type of objects, every attribute
// that they can have.
var objectSpecs = func() map[objectType]map[AttributeType]*spec {
	m := map[objectType]map[AttributeType]*spec{
		{CKO_DATA, 0}:        table(storage, data),
		{CKO_CERTIFICATE, 0}: table(storage, certificate),
		{CKO_PROFILE, 0}:     table(fixed(storage), profile),

		{CKO_PUBLIC_KEY, CKK_EC_EDWARDS}:     table(storage, key, pair, publicKey),
		{CKO_PRIVATE_KEY, CKK_EC_EDWARDS}:    table(storage, key, pair, privateKey),
		{CKO_PUBLIC_KEY, CKK_EC_MONTGOMERY}:  table(storage, key, pair, publicKey, []spec{{CKA_VERIFY, kindBool, anyTime, no}}),
		{CKO_PRIVATE_KEY, CKK_EC_MONTGOMERY}: table(storage, key, pair, privateKey, []spec{{CKA_SIGN, kindBool, anyTime, no}}, usable(CKA_DERIVE)),
	}
	m[objectType{CKO_PUBLIC_KEY, CKK_EC}] = table(storage, key, pair, publicKey)
	// The value of the private key is the device's alone: nobody can give it.
	m[objectType{CKO_PRIVATE_KEY, CKK_EC}] = table(storage, key, pair, privateKey, []spec{{CKA_VALUE, kindBytes, hidden, nil}})
	for t := range secretTypes {
		m[objectType{CKO_SECRET_KEY, t}] = table(storage, key, secretKey, usable(secretTypes[t].uses...))
	}
	return m
}()

// specsOf finds the table of a type of objects, nil where there is none. The
// type of a certificate does not matter, nor does that of a key for others.
func specsOf(class, keyType uint) map[AttributeType]*spec {
	if class == CKO_DATA || class == CKO_CERTIFICATE || class == CKO_PROFILE {
		keyType = 0
	}
	return objectSpecs[objectType{class, keyType}]
}

// kinds says how the values of attributes are written, which is the same for
// all types of objects.
var kinds = func() map[AttributeType]kind {
	m := map[AttributeType]kind{}
	for _, specs := range objectSpecs {
		for t, sp := range specs {
			m[t] = sp.kind
		}
	}
	return m
}()

// specs is the table of an object.
func (a attrs) specs() map[AttributeType]*spec {
	return specsOf(a.ulong(CKA_CLASS), a.ulong(CKA_KEY_TYPE))
}

func table(parts ...[]spec) map[AttributeType]*spec {
	m := map[AttributeType]*spec{}
	for _, part := range parts {
		for i := range part {
			m[part[i].typ] = &part[i]
		}
	}
	return m
}

const ulongSize = strconv.IntSize / 8

// ulong writes a CK_ULONG as the host does.
func ulong[T ~uint](v T) []byte {
	b := make([]byte, ulongSize)
	if ulongSize == 4 {
		binary.NativeEndian.PutUint32(b, uint32(v))
	} else {
		binary.NativeEndian.PutUint64(b, uint64(v))
	}
	return b
}

func ulongOf(b []byte) uint {
	switch {
	case len(b) != ulongSize:
		return Unavailable
	case ulongSize == 4:
		return uint(binary.NativeEndian.Uint32(b))
	}
	return uint(binary.NativeEndian.Uint64(b))
}

func boolBytes(v bool) []byte {
	if v {
		return yes
	}
	return no
}

// valid tells whether v can be a value of kind k.
func (k kind) valid(v []byte) bool {
	switch k {
	case kindBool:
		return len(v) == 1 && v[0] <= 1
	case kindUlong:
		return len(v) == ulongSize
	case kindDate:
		if len(v) == 0 {
			return true
		}
		if len(v) != 8 {
			return false
		}
		for _, c := range v {
			if c < '0' || c > '9' {
				return false
			}
		}
	case kindMechs:
		return len(v)%ulongSize == 0
	}
	return true
}

// maxValue bounds one attribute's value. A certificate or a data object of
// this size still fits; more belongs into a file.
const maxValue = 1 << 20

// attrs are the values of an object that is being made or changed. An object
// that is there has a body.
type attrs map[AttributeType][]byte

func (a attrs) bool(t AttributeType) bool  { v := a[t]; return len(v) == 1 && v[0] == 1 }
func (a attrs) ulong(t AttributeType) uint { return ulongOf(a[t]) }

func (a attrs) clone() attrs { return maps.Clone(a) }
