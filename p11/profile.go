package p11

import (
	"bytes"
	"fmt"
)

// profile is CKO_PROFILE (section 4.13).
var profile = []spec{{CKA_PROFILE_ID, kindUlong, 0, nil}}

// fixed is a table of which nobody sets anything.
func fixed(specs []spec) []spec {
	out := make([]spec, len(specs))
	for i, s := range specs {
		s.rule = 0
		out[i] = s
	}
	return out
}

// profiles are those of PKCS #11 Profiles v3.1 whose conditions and mandatory
// test cases every token meets. Authentication Token (5.4) is not among them:
// its test case signs with an RSA key.
var profiles = []struct {
	id   uint
	name string
}{
	{CKP_BASELINE_PROVIDER, "Baseline Provider"},
	{CKP_EXTENDED_PROVIDER, "Extended Provider"},
}

// addProfiles gives a slot's token its profile objects, which stay as long as
// the slot does. The caller holds l.mu.
func (l *library) addProfiles(s *slot) {
	if s.objs.profiles {
		return
	}
	s.objs.profiles = true
	for _, p := range profiles {
		s.objs.put(&object{
			handle:  ObjectHandle(l.handle()),
			token:   true,
			builtin: true,
			unique:  fmt.Sprintf("%s-profile-%d", s.serial, p.id),
			body: attrs{
				CKA_CLASS:       ulong(CKO_PROFILE),
				CKA_MODIFIABLE:  no,
				CKA_COPYABLE:    no,
				CKA_DESTROYABLE: no,
				CKA_LABEL:       []byte(p.name),
				CKA_PROFILE_ID:  ulong(p.id),
			}.encode(),
		})
	}
}

// asksProfiles tells whether a search names the class of profiles. No other
// finds them, so that an application which does not know the class takes none
// for an object of the token: what the standard has for the features of hardware,
// which are built in as well (section 4.3).
func asksProfiles(tmpl []Attribute) bool {
	class, _ := given(tmpl, CKA_CLASS)
	return bytes.Equal(class, ulong(CKO_PROFILE))
}
