package p11

import (
	"bytes"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
)

// value checks one template entry against its spec and gives the value as
// the module keeps it.
func value(sp *spec, v []byte) ([]byte, error) {
	if len(v) > maxValue || !sp.kind.valid(v) || !inRange(sp, v) {
		return nil, CKR_ATTRIBUTE_VALUE_INVALID
	}
	switch sp.typ {
	case CKA_EC_PARAMS:
		if err := parseCurve(v); err != nil {
			return nil, err
		}
		return edwardsOID, nil
	case CKA_EC_POINT:
		p, ok := parsePoint(v)
		if !ok || !eddsa.ValidPublicKey(p) {
			return nil, CKR_ATTRIBUTE_VALUE_INVALID
		}
		return bytes.Clone(p), nil
	}
	return append([]byte{}, v...), nil
}

// fill reads a template for a new object of a class: when is onCreate or
// onGen. Attributes that are not given get their defaults. A value with the
// hidden rule is handed back beside the attributes, uncopied.
func (l *library) fill(sess *session, class uint, tmpl []Attribute, when rule) (a attrs, secret []byte, err error) {
	specs := classSpecs[class]
	a = make(attrs, len(specs))
	for _, t := range tmpl {
		sp := specs[t.Type]
		if sp == nil {
			return nil, nil, unfit(t.Type)
		}
		if sp.rule&when == 0 {
			return nil, nil, CKR_ATTRIBUTE_READ_ONLY
		}
		if sp.rule&hidden != 0 {
			if secret != nil {
				return nil, nil, CKR_TEMPLATE_INCONSISTENT
			}
			if secret = t.Value; secret == nil {
				secret = empty
			}
			continue
		}
		v, err := value(sp, t.Value)
		if err != nil {
			return nil, nil, err
		}
		if old, twice := a[t.Type]; twice && !bytes.Equal(old, v) {
			return nil, nil, CKR_TEMPLATE_INCONSISTENT
		}
		if sp.rule&soOnly != 0 && bytes.Equal(v, yes) && l.user(sess.slot) != soIn {
			return nil, nil, CKR_ATTRIBUTE_READ_ONLY
		}
		a[t.Type] = v
	}
	need := required
	if when == onGen {
		need = genNeeds
	}
	for t, sp := range specs {
		_, given := a[t]
		given = given || sp.rule&hidden != 0 && secret != nil
		if sp.rule&need != 0 && !given {
			return nil, nil, CKR_TEMPLATE_INCOMPLETE
		}
		if !given && sp.def != nil {
			a[t] = sp.def
		}
	}
	return a, secret, nil
}

// given finds a template entry.
func given(tmpl []Attribute, t AttributeType) ([]byte, bool) {
	for _, a := range tmpl {
		if a.Type == t {
			return a.Value, true
		}
	}
	return nil, false
}

// mayMatchPrivate tells whether a search can find a private object,
// mustMatchPrivate whether it is for nothing but private objects.
func mayMatchPrivate(tmpl []Attribute) bool {
	v, ok := given(tmpl, CKA_PRIVATE)
	return !ok || bytes.Equal(v, yes)
}

func mustMatchPrivate(tmpl []Attribute) bool {
	private, _ := given(tmpl, CKA_PRIVATE)
	class, _ := given(tmpl, CKA_CLASS)
	return bytes.Equal(private, yes) || bytes.Equal(class, ulong(CKO_PRIVATE_KEY))
}

// parseCreate reads the template of C_CreateObject. For a private key it also
// gives the value as the caller passed it.
func (l *library) parseCreate(sess *session, tmpl []Attribute) (attrs, []byte, error) {
	v, ok := given(tmpl, CKA_CLASS)
	if !ok {
		return nil, nil, CKR_TEMPLATE_INCOMPLETE
	}
	if len(v) != ulongSize {
		return nil, nil, CKR_ATTRIBUTE_VALUE_INVALID
	}
	class := ulongOf(v)
	switch class {
	case CKO_DATA:
	case CKO_CERTIFICATE:
		if v, ok := given(tmpl, CKA_CERTIFICATE_TYPE); ok && ulongOf(v) != CKC_X_509 {
			return nil, nil, CKR_ATTRIBUTE_VALUE_INVALID
		}
	case CKO_PUBLIC_KEY, CKO_PRIVATE_KEY:
		v, ok := given(tmpl, CKA_KEY_TYPE)
		if !ok {
			return nil, nil, CKR_TEMPLATE_INCOMPLETE
		}
		if ulongOf(v) != CKK_EC_EDWARDS {
			return nil, nil, CKR_ATTRIBUTE_VALUE_INVALID
		}
	default:
		return nil, nil, CKR_ATTRIBUTE_VALUE_INVALID
	}
	if _, ok := given(tmpl, CKA_PRIVATE); !ok && class == CKO_PRIVATE_KEY {
		tmpl = append([]Attribute{{CKA_PRIVATE, yes}}, tmpl...)
	}
	a, seed, err := l.fill(sess, class, tmpl, onCreate)
	if err != nil {
		return nil, nil, err
	}
	switch class {
	case CKO_CERTIFICATE:
		if err := a.certify(); err != nil {
			return nil, nil, err
		}
	case CKO_PUBLIC_KEY:
		pub, info := a[CKA_EC_POINT], a[CKA_PUBLIC_KEY_INFO]
		if info != nil && !bytes.Equal(info, spki(pub)) {
			return nil, nil, CKR_TEMPLATE_INCONSISTENT
		}
		a.setPublic(pub)
	case CKO_PRIVATE_KEY:
		if len(seed) != seedSize {
			return nil, nil, CKR_ATTRIBUTE_VALUE_INVALID
		}
		if err := guardPrivate(a); err != nil {
			return nil, nil, err
		}
	}
	return a, seed, nil
}

// guardPrivate makes a private key sensitive whatever the template said: no
// private value ever leaves the token, and the attribute tells the truth. Only a
// private object can ask for the PIN each time (section 4.9, table 27).
func guardPrivate(a attrs) error {
	a[CKA_SENSITIVE] = yes
	if a.bool(CKA_ALWAYS_AUTHENTICATE) && !a.bool(CKA_PRIVATE) {
		return CKR_TEMPLATE_INCONSISTENT
	}
	return nil
}

// applyTemplate is C_CopyObject's and C_SetAttributeValue's reading of a
// template: old with the changes applied.
func (l *library) applyTemplate(sess *session, old attrs, tmpl []Attribute, when rule) (attrs, error) {
	specs := classSpecs[old.ulong(CKA_CLASS)]
	a := old.clone()
	for _, t := range tmpl {
		sp := specs[t.Type]
		if sp == nil {
			return nil, unfit(t.Type)
		}
		if sp.rule&when == 0 {
			// Repeating the value that is there changes nothing.
			if when == onCopy && bytes.Equal(old[t.Type], t.Value) && old[t.Type] != nil {
				continue
			}
			return nil, CKR_ATTRIBUTE_READ_ONLY
		}
		v, err := value(sp, t.Value)
		if err != nil {
			return nil, err
		}
		if t.Type == CKA_PUBLIC_KEY_INFO && !bytes.Equal(v, old[t.Type]) {
			return nil, CKR_ATTRIBUTE_VALUE_INVALID
		}
		up := bytes.Equal(old[t.Type], no) && bytes.Equal(v, yes)
		down := bytes.Equal(old[t.Type], yes) && bytes.Equal(v, no)
		if up && sp.rule&onlyDown != 0 || down && sp.rule&onlyUp != 0 ||
			up && sp.rule&soOnly != 0 && l.user(sess.slot) != soIn {
			return nil, CKR_ATTRIBUTE_READ_ONLY
		}
		a[t.Type] = v
	}
	return a, nil
}
