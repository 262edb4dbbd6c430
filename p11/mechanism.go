package p11

import (
	"cmp"
	"slices"
)

// mechanism is one row of the mechanism table. What C_GetMechanismList and
// C_GetMechanismInfo say follows from the rows alone.
type mechanism struct {
	typ  MechanismType
	info MechanismInfo
	name string // for the audit log, of what signs
	// also lists functions that this mechanism serves besides the ones it
	// advertises, for clients that ask for them all the same.
	also uint

	// keyType is that of the keys that the mechanism makes or takes. generates
	// is the mechanism that CKA_KEY_GEN_MECHANISM names, if it is another.
	keyType   uint
	generates MechanismType

	// keyTypes are the types of the keys that it takes, where there are several.
	keyTypes []uint

	// digest starts a message digest; a parameter must be absent.
	digest func() hasher
	// eddsa reads the parameter of a signature.
	eddsa func(param any) (eddsaParams, error)
	// ecdsa tells that it is ECDSA, whose key the device keeps; digest is then the
	// hash of the message, nil where the application has hashed it.
	ecdsa bool
	// mac is the hash of a HMAC, macParam whether its parameter is the length.
	mac      func() hasher
	macParam bool
	// cipher reads the parameter of an encryption or decryption.
	cipher func(param any) (cipherRun, error)
	// derive reads the parameter of a derivation.
	derive func(param any) (deriver, error)
	// wrap and unwrap read the parameter of a wrapping and of an unwrapping;
	// zeroPads tells that a key may be followed by less than a semiblock of zeros.
	wrap, unwrap func(param any) (wrapRun, error)
	zeroPads     bool
}

// takes tells whether keys of a type serve the mechanism.
func (m *mechanism) takes(keyType uint) bool {
	return keyType == m.keyType || slices.Contains(m.keyTypes, keyType)
}

// singlePart tells that a signature mechanism takes its input in one part alone:
// ECDSA without a hash (section 6.3.12).
func (m *mechanism) singlePart() bool { return m.ecdsa && m.digest == nil }

// mechanisms is the table. Each family adds its rows in its own file.
var mechanisms = func() map[MechanismType]*mechanism {
	m := map[MechanismType]*mechanism{}
	for _, family := range [][]mechanism{eddsaMechanisms, ecdsaMechanisms, montgomeryMechanisms, secretMechanisms, hmacMechanisms,
		aesMechanisms, chachaMechanisms, hkdfMechanisms, keyWrapMechanisms, digestMechanisms} {
		for i := range family {
			m[family[i].typ] = &family[i]
		}
	}
	return m
}()

// mechanismFor finds a mechanism that serves a function.
func mechanismFor(t MechanismType, function uint) (*mechanism, error) {
	m := mechanisms[t]
	if m == nil || (m.info.Flags|m.also)&function == 0 {
		return nil, CKR_MECHANISM_INVALID
	}
	return m, nil
}

// GetMechanismList is C_GetMechanismList (section 5.5.5).
func (m *Module) GetMechanismList(id SlotID, out []MechanismType, query bool) (int, error) {
	l, err := m.enter(noSession)
	if err != nil {
		return 0, err
	}
	defer l.leave(noSession)
	if _, err := l.slot(id); err != nil {
		return 0, err
	}
	if query {
		return len(mechanisms), nil
	}
	if len(out) < len(mechanisms) {
		return len(mechanisms), CKR_BUFFER_TOO_SMALL
	}
	list := make([]MechanismType, 0, len(mechanisms))
	for t := range mechanisms {
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b MechanismType) int { return cmp.Compare(a, b) })
	return copy(out, list), nil
}

// GetMechanismInfo is C_GetMechanismInfo (section 5.5.6).
func (m *Module) GetMechanismInfo(id SlotID, t MechanismType) (MechanismInfo, error) {
	l, err := m.enter(noSession)
	if err != nil {
		return MechanismInfo{}, err
	}
	defer l.leave(noSession)
	if _, err := l.slot(id); err != nil {
		return MechanismInfo{}, err
	}
	if mech := mechanisms[t]; mech != nil {
		return mech.info, nil
	}
	return MechanismInfo{}, CKR_MECHANISM_INVALID
}

// checkOutput applies the convention of section 5.2 for results of a known
// length: a query or a buffer that is too small leaves the operation active.
// done tells that the caller has to return err as it is.
func checkOutput(out *Output, need int) (done bool, err error) {
	out.Len = uint(need)
	switch {
	case out.Query:
		return true, nil
	case len(out.Buf) < need:
		return true, CKR_BUFFER_TOO_SMALL
	}
	return false, nil
}
