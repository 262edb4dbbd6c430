package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

// FuzzSubject reads distinguished names. Written again with what is special
// escaped, a name reads the same.
func FuzzSubject(f *testing.F) {
	for _, s := range []string{"CN=node,O=ICN", "cn = a\\,b , OU=x,OU=y", "C=DE,L=\\\\,ST=\\=,STREET=x,SERIALNUMBER=1", "CN=a,CN=b", "X=y", "CN", ",", "\\", ""} {
		f.Add(s)
	}
	escape := strings.NewReplacer("\\", "\\\\", ",", "\\,")
	f.Fuzz(func(t *testing.T, s string) {
		name, err := parseDN(s)
		if err != nil {
			return
		}
		var pairs []string
		if name.CommonName != "" {
			pairs = append(pairs, "CN="+escape.Replace(name.CommonName))
		}
		if name.SerialNumber != "" {
			pairs = append(pairs, "SERIALNUMBER="+escape.Replace(name.SerialNumber))
		}
		for key, field := range dnTypes {
			for _, v := range *field(&name) {
				pairs = append(pairs, key+"="+escape.Replace(v))
			}
		}
		again, err := parseDN(strings.Join(pairs, ","))
		if err != nil || !reflect.DeepEqual(again, name) {
			t.Errorf("%q: %+v, and again %+v (%v)", s, name, again, err)
		}
		if len(pairs) != len(splitEscaped(s)) {
			t.Errorf("%q: %d of %d parts are kept", s, len(pairs), len(splitEscaped(s)))
		}
		if slices.Contains(pairs, "") {
			t.Errorf("%q: an empty part", s)
		}
	})
}
