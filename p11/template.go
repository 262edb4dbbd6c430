package p11

import "bytes"

// value checks one template entry against its spec and gives the value as
// the module keeps it. c is the key's curve.
func value(sp *spec, c *curve, v []byte) ([]byte, error) {
	if len(v) > maxValue || !sp.kind.valid(v) || !inRange(sp, v) {
		return nil, CKR_ATTRIBUTE_VALUE_INVALID
	}
	switch sp.typ {
	case CKA_EC_PARAMS:
		return c.oid, nil
	case CKA_EC_POINT:
		if c == nil {
			return nil, CKR_TEMPLATE_INCOMPLETE
		}
		p, ok := c.parsePoint(v)
		if !ok || !c.valid(p) {
			return nil, CKR_ATTRIBUTE_VALUE_INVALID
		}
		return bytes.Clone(p), nil
	}
	return append([]byte{}, v...), nil
}

// fill reads a template for a new object: when is onCreate or onGen. Attributes
// that are not given get their defaults. A value with the hidden rule is handed
// back beside the attributes, uncopied.
func (l *library) fill(sess *session, of objectType, tmpl []Attribute, when rule) (a attrs, secret []byte, err error) {
	specs := specsOf(of.class, of.key)
	var c *curve
	if v, ok := given(tmpl, CKA_EC_PARAMS); ok && specs[CKA_EC_PARAMS] != nil {
		if c, err = parseCurve(of.key, v); err != nil {
			return nil, nil, err
		}
	}
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
		v, err := value(sp, c, t.Value)
		if err != nil {
			return nil, nil, err
		}
		if old, twice := a[t.Type]; twice && !bytes.Equal(old, v) {
			return nil, nil, CKR_TEMPLATE_INCONSISTENT
		}
		if sp.rule&soOnly != 0 && bytes.Equal(v, yes) && l.user(sess) != soIn {
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

// parseCreate reads the template of C_CreateObject. For a private or secret key
// it also gives the value as the caller passed it.
func (l *library) parseCreate(sess *session, tmpl []Attribute) (attrs, []byte, error) {
	v, ok := given(tmpl, CKA_CLASS)
	if !ok {
		return nil, nil, CKR_TEMPLATE_INCOMPLETE
	}
	if len(v) != ulongSize {
		return nil, nil, CKR_ATTRIBUTE_VALUE_INVALID
	}
	of := objectType{class: ulongOf(v)}
	switch of.class {
	case CKO_CERTIFICATE:
		if v, ok := given(tmpl, CKA_CERTIFICATE_TYPE); ok && ulongOf(v) != CKC_X_509 {
			return nil, nil, CKR_ATTRIBUTE_VALUE_INVALID
		}
	case CKO_PUBLIC_KEY, CKO_PRIVATE_KEY, CKO_SECRET_KEY:
		v, ok := given(tmpl, CKA_KEY_TYPE)
		if !ok {
			return nil, nil, CKR_TEMPLATE_INCOMPLETE
		}
		of.key = ulongOf(v)
	}
	// A profile is the token's own.
	if specsOf(of.class, of.key) == nil || of.class == CKO_PROFILE {
		return nil, nil, CKR_ATTRIBUTE_VALUE_INVALID
	}
	a, seed, err := l.fill(sess, of, private(of.class, tmpl), onCreate)
	if err != nil {
		return nil, nil, err
	}
	switch of.class {
	case CKO_CERTIFICATE:
		if err := a.certify(); err != nil {
			return nil, nil, err
		}
	case CKO_PUBLIC_KEY:
		pub, info, c := a[CKA_EC_POINT], a[CKA_PUBLIC_KEY_INFO], a.curve()
		if info != nil && !bytes.Equal(info, c.info(pub)) {
			return nil, nil, CKR_TEMPLATE_INCONSISTENT
		}
		a.setPublic(c, pub)
	case CKO_PRIVATE_KEY:
		if of.key == CKK_EC {
			return nil, nil, CKR_TEMPLATE_INCONSISTENT // the device makes them itself
		}
		if len(seed) != pairSecretSize {
			return nil, nil, CKR_ATTRIBUTE_VALUE_INVALID
		}
		if err := sess.slot.guardPrivate(a); err != nil {
			return nil, nil, err
		}
	case CKO_SECRET_KEY:
		if !secretTypes[of.key].fits(len(seed)) {
			return nil, nil, CKR_ATTRIBUTE_VALUE_INVALID
		}
		a[CKA_VALUE_LEN] = ulong(uint(len(seed)))
	}
	return a, seed, nil
}

// private makes private and secret keys private unless the template says
// otherwise: what the standard leaves to the token.
func private(class uint, tmpl []Attribute) []Attribute {
	if class != CKO_PRIVATE_KEY && class != CKO_SECRET_KEY {
		return tmpl
	}
	if _, ok := given(tmpl, CKA_PRIVATE); ok {
		return tmpl
	}
	return append([]Attribute{{CKA_PRIVATE, yes}}, tmpl...)
}

// guardPrivate makes a private key sensitive whatever the template said: no
// private value is ever read from a token. In one that is not recoverable it
// cannot be wrapped either. The attributes tell the truth. Only a private object
// can ask for the PIN each time (section 4.9, table 27).
func (s *slot) guardPrivate(a attrs) error {
	if a.ulong(CKA_CLASS) != CKO_PRIVATE_KEY {
		return nil
	}
	a[CKA_SENSITIVE] = yes
	if a.ulong(CKA_KEY_TYPE) == CKK_EC {
		a[CKA_EXTRACTABLE] = no // it stays in the device
	}
	if a.bool(CKA_TOKEN) && a.bool(CKA_EXTRACTABLE) {
		if t, err := s.token.Info(); err != nil || !t.Recoverable {
			a[CKA_EXTRACTABLE] = no
		}
	}
	if a.bool(CKA_ALWAYS_AUTHENTICATE) && !a.bool(CKA_PRIVATE) {
		return CKR_TEMPLATE_INCONSISTENT
	}
	return nil
}

// applyTemplate is C_CopyObject's and C_SetAttributeValue's reading of a
// template: old with the changes applied.
func (l *library) applyTemplate(sess *session, old attrs, tmpl []Attribute, when rule) (attrs, error) {
	specs := old.specs()
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
		v, err := value(sp, old.curve(), t.Value)
		if err != nil {
			return nil, err
		}
		if t.Type == CKA_PUBLIC_KEY_INFO && !bytes.Equal(v, old[t.Type]) {
			return nil, CKR_ATTRIBUTE_VALUE_INVALID
		}
		// The check value can be destroyed, and nothing else (section 4.10).
		if t.Type == CKA_CHECK_VALUE && len(v) != 0 && !bytes.Equal(v, old[t.Type]) {
			return nil, CKR_ATTRIBUTE_VALUE_INVALID
		}
		up := bytes.Equal(old[t.Type], no) && bytes.Equal(v, yes)
		down := bytes.Equal(old[t.Type], yes) && bytes.Equal(v, no)
		if up && sp.rule&onlyDown != 0 || down && sp.rule&onlyUp != 0 ||
			up && sp.rule&soOnly != 0 && l.user(sess) != soIn {
			return nil, CKR_ATTRIBUTE_READ_ONLY
		}
		a[t.Type] = v
	}
	return a, nil
}
