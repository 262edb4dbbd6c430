package p11

import "crypto/sha1"

// standardAttributes are the attributes that v3.2 of the standard describes,
// as ranges from the first to the last.
var standardAttributes = [][2]AttributeType{
	{0x000, 0x004}, {0x010, 0x012}, {0x080, 0x08C}, {0x090, 0x090}, {0x100, 0x10C},
	{0x110, 0x111}, {0x120, 0x129}, {0x130, 0x134}, {0x160, 0x166}, {0x170, 0x172},
	{0x180, 0x181}, {0x200, 0x202}, {0x210, 0x213}, {0x220, 0x227}, {0x22A, 0x22F},
	{0x250, 0x252}, {0x300, 0x302}, {0x400, 0x406}, {0x480, 0x482}, {0x500, 0x503},
	{0x600, 0x637},
}

// arrayAttribute is CKF_ARRAY_ATTRIBUTE, which is part of the numbers of
// attributes that are arrays.
const arrayAttribute AttributeType = 0x40000000

// unfit is the code for an attribute in the template of an object that cannot
// have it: one that the standard describes for others does not go together with
// the class (section 4.1.1, rule 5), any other is invalid (rule 1).
func unfit(t AttributeType) error {
	t &^= arrayAttribute
	for _, r := range standardAttributes {
		if r[0] <= t && t <= r[1] {
			return CKR_TEMPLATE_INCONSISTENT
		}
	}
	return CKR_ATTRIBUTE_TYPE_INVALID
}

// inRange tells whether a value of the right form is also one of those that the
// standard has for the attribute. Objects that are stored are not asked.
func inRange(sp *spec, v []byte) bool {
	switch {
	case sp.typ == CKA_CERTIFICATE_CATEGORY, sp.typ == CKA_JAVA_MIDP_SECURITY_DOMAIN:
		return ulongOf(v) <= 3
	case sp.kind == kindDate && len(v) != 0: // section 3.4: months 01 to 12, days 01 to 31
		month, day := string(v[4:6]), string(v[6:8])
		return month >= "01" && month <= "12" && day >= "01" && day <= "31"
	}
	return true
}

// certify checks that a new certificate is complete, or else is where a URL
// says (section 4.6.3), and fills in what follows from it.
func (a attrs) certify() error {
	url := len(a[CKA_URL]) != 0
	switch {
	case url && (len(a[CKA_HASH_OF_SUBJECT_PUBLIC_KEY]) == 0 || len(a[CKA_HASH_OF_ISSUER_PUBLIC_KEY]) == 0):
		return CKR_TEMPLATE_INCOMPLETE
	case len(a[CKA_VALUE]) != 0:
		sum := sha1.Sum(a[CKA_VALUE])
		a[CKA_CHECK_VALUE] = sum[:3]
	case !url:
		return CKR_TEMPLATE_INCONSISTENT
	}
	return nil
}

// trustedCertificate tells whether an object cannot be modified since the SO
// trusts it (section 4.6.2).
func (b body) trustedCertificate() bool {
	return b.ulong(CKA_CLASS) == CKO_CERTIFICATE && b.bool(CKA_TRUSTED)
}
