package conformance

import (
	"bytes"
	"fmt"
	"slices"

	ck "github.com/miekg/pkcs11"

	"github.com/InterCooperative-Network/icn-p11/test/p11tool"
)

// readers are the rows of finding and reading objects, and of the limits of a
// session that is read-only.
func readers(flags uint) []row {
	finds := func(rule string, count int, t func(*env) template) row {
		return row{"5.7.7", rule, "", ck.CKR_OK, func(e *env) rv {
			e.ok("C_FindObjectsInit", e.s, t(e))
			out, n := make(words, 100), uint(0)
			r := e.call("C_FindObjects", e.s, out, len(out), &n)
			e.check(int(n) == count, "%d objects, not %d", n, count)
			e.ok("C_FindObjectsFinal", e.s)
			return r
		}}
	}
	fixed := func(t template) func(*env) template { return func(*env) template { return t } }
	rows := []row{
		finds("a search by issuer and serial number finds the certificate", 1, fixed(template{attr(ck.CKA_CLASS, ck.CKO_CERTIFICATE), attr(ck.CKA_ISSUER, outside.issuer), attr(ck.CKA_SERIAL_NUMBER, outside.serial)})),
		finds("a search by subject finds the certificate", 1, fixed(template{attr(ck.CKA_CLASS, ck.CKO_CERTIFICATE), attr(ck.CKA_SUBJECT, outside.subject)})),
		finds("a search by value finds the certificate", 1, fixed(template{attr(ck.CKA_VALUE, outside.der)})),
		finds("a search by CKA_ID finds certificate and key", 2, fixed(template{attr(ck.CKA_ID, "cert id")})),
		finds("a search by class and CKA_ID finds one of them", 1, fixed(template{attr(ck.CKA_CLASS, ck.CKO_PUBLIC_KEY), attr(ck.CKA_ID, "cert id")})),
		finds("a search by another serial number finds nothing", 0, fixed(template{attr(ck.CKA_ISSUER, outside.issuer), attr(ck.CKA_SERIAL_NUMBER, []byte{2, 1, 1})})),
		finds("a search by label", 1, fixed(template{attr(ck.CKA_LABEL, "data")})),
		finds("a search by application", 1, fixed(template{attr(ck.CKA_APPLICATION, "conformance")})),
		finds("a search by the beginning of a label finds nothing", 0, fixed(template{attr(ck.CKA_LABEL, "dat")})),
		finds("a search by an attribute that no object has", 0, fixed(template{attr(ck.CKA_MODULUS, "x")})),
		finds("a search by an attribute of a vendor", 0, fixed(template{attr(0x80000001, "x")})),
		finds("a search by a class that no object has", 0, fixed(template{attr(ck.CKA_CLASS, ck.CKO_SECRET_KEY)})),
		finds("a search by a class of a vendor", 0, fixed(template{attr(ck.CKA_CLASS, uint(0xCE534351))})),
		finds("a search for session objects where there are none", 0, fixed(template{attr(ck.CKA_TOKEN, false)})),
		finds("a search by CKA_UNIQUE_ID finds that object alone", 1, func(e *env) template { return template{attr(ckaUniqueID, e.get(e.f.obj["data"], ckaUniqueID))} }),
		finds("a public key is found by its point, encoded as DER", 1, fixed(template{attr(ck.CKA_EC_POINT, append([]byte{4, 32}, outside.pub...))})),
		finds("a search never tells a private key's value", 0, fixed(template{attr(ck.CKA_CLASS, ck.CKO_PRIVATE_KEY), attr(ck.CKA_VALUE, outside.seed)})),
		finds("profiles are found by their class", 2, fixed(template{attr(ck.CKA_CLASS, ckoProfile)})),
		finds("profiles are not found by what does not name their class: CKA_PROFILE_ID", 0, fixed(template{attr(ckaProfileID, 1)})),
		finds("profiles are not found by what does not name their class: CKA_TOKEN and CKA_MODIFIABLE", 0, fixed(template{attr(ck.CKA_TOKEN, true), attr(ck.CKA_MODIFIABLE, false), attr(ck.CKA_LABEL, "Baseline Provider")})),
		{"5.7.7", "a search without a template finds every object of the token, and no profile", "", ck.CKR_OK, func(e *env) rv {
			all := e.findAll(e.s, nil)
			for _, o := range e.findAll(e.s, template{attr(ck.CKA_CLASS, ckoProfile)}) {
				e.check(!slices.Contains(all, o), "profile %d", o)
			}
			for name, o := range e.f.obj {
				e.check(slices.Contains(all, o), "%s is missing", name)
			}
			return ck.CKR_OK
		}},
		{"5.7.7", "C_FindObjectsInit while a search is active", "", ck.CKR_OPERATION_ACTIVE, func(e *env) rv {
			e.ok("C_FindObjectsInit", e.s, template(nil))
			return e.call("C_FindObjectsInit", e.s, template(nil))
		}},
		{"5.7.7", "C_FindObjectsInit with NULL for a template that is not empty", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_FindObjectsInit", e.s, nil, 1) }},
		{"5.7.8", "C_FindObjects without C_FindObjectsInit", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.call("C_FindObjects", e.s, make(words, 1), 1, new(uint)) }},
		{"5.7.8", "C_FindObjects gives each object once, in as many calls as it takes, then none", "", ck.CKR_OK, func(e *env) rv {
			all := e.findAll(e.s, nil)
			e.ok("C_FindObjectsInit", e.s, template(nil))
			seen := map[uint]bool{}
			for range all {
				out, n := make(words, 1), uint(0)
				e.ok("C_FindObjects", e.s, out, 1, &n)
				e.check(n == 1 && !seen[out[0]] && slices.Contains(all, out[0]), "%d handles: %d", n, out[0])
				seen[out[0]] = true
			}
			n := uint(99)
			r := e.call("C_FindObjects", e.s, make(words, 1), 1, &n)
			e.check(n == 0, "%d more", n)
			return r
		}},
		{"5.7.8", "C_FindObjects without room gives none and loses none", "", ck.CKR_OK, func(e *env) rv {
			e.ok("C_FindObjectsInit", e.s, template{attr(ck.CKA_LABEL, "data")})
			n := uint(99)
			e.ok("C_FindObjects", e.s, make(words, 1), 0, &n)
			e.check(n == 0, "%d handles", n)
			r := e.call("C_FindObjects", e.s, make(words, 9), 9, &n)
			e.check(n == 1, "%d handles afterwards", n)
			return r
		}},
		{"5.7.8", "C_FindObjects with NULL for the list", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv {
			e.ok("C_FindObjectsInit", e.s, template(nil))
			return e.call("C_FindObjects", e.s, nil, 1, new(uint))
		}},
		{"5.7.8", "C_FindObjects with NULL for the number", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv {
			e.ok("C_FindObjectsInit", e.s, template(nil))
			return e.call("C_FindObjects", e.s, make(words, 1), 1, nil)
		}},
		{"5.7.9", "C_FindObjectsFinal without a search", "", ck.CKR_OPERATION_NOT_INITIALIZED, func(e *env) rv { return e.call("C_FindObjectsFinal", e.s) }},
		{"5.7.9", "C_FindObjectsFinal in the middle of a search, and another search", "", ck.CKR_OK, func(e *env) rv {
			e.ok("C_FindObjectsInit", e.s, template(nil))
			e.ok("C_FindObjectsFinal", e.s)
			return e.call("C_FindObjectsInit", e.s, template(nil))
		}},
		{"5.7.4", "C_GetObjectSize", "", ck.CKR_OK, func(e *env) rv {
			var size uint
			r := e.call("C_GetObjectSize", e.s, e.f.obj["data"], &size)
			e.check(size > 0 && size != unavailable, "size %d", size)
			return r
		}},
		{"5.7.4", "C_GetObjectSize without a place for it", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_GetObjectSize", e.s, e.f.obj["data"], nil) }},
		{"5.7.5", "C_GetAttributeValue with NULL for a template that is not empty", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_GetAttributeValue", e.s, e.f.obj["data"], nil, 1) }},
		{"5.7.5", "C_GetAttributeValue with NULL for a value tells its length", "", ck.CKR_OK, func(e *env) rv {
			v := []value{{Type: ck.CKA_VALUE, Room: -1}, {Type: ck.CKA_APPLICATION, Room: -1}}
			r := e.call("C_GetAttributeValue", e.s, e.f.obj["data"], v)
			e.check(v[0].Len == 6 && v[1].Len == 11, "lengths %d and %d", v[0].Len, v[1].Len)
			return r
		}},
		{"5.7.5", "C_GetAttributeValue with too little room fills in all the others", "", ck.CKR_BUFFER_TOO_SMALL, func(e *env) rv {
			v := []value{{Type: ck.CKA_APPLICATION, Room: 11}, {Type: ck.CKA_VALUE, Room: 5}, {Type: ck.CKA_LABEL, Room: 100}}
			r := e.call("C_GetAttributeValue", e.s, e.f.obj["data"], v)
			e.check(string(v[0].Data) == "conformance" && string(v[2].Data) == "data" && v[2].Len == 4, "%q, %q", v[0].Data, v[2].Data)
			e.check(v[1].Len == unavailable, "the length of what has no room is %d", v[1].Len)
			return r
		}},
		{"5.7.5", "C_GetAttributeValue of what the object has not fills in all the others", "", ck.CKR_ATTRIBUTE_TYPE_INVALID, func(e *env) rv {
			v := []value{{Type: ck.CKA_MODULUS, Room: 100}, {Type: ck.CKA_VALUE, Room: 100}, {Type: 0x80000001, Room: -1}, {Type: ck.CKA_LABEL, Room: 100}}
			r := e.call("C_GetAttributeValue", e.s, e.f.obj["data"], v)
			e.check(string(v[1].Data) == "public" && string(v[3].Data) == "data", "%q, %q", v[1].Data, v[3].Data)
			e.check(v[0].Len == unavailable && v[2].Len == unavailable, "lengths %d and %d", v[0].Len, v[2].Len)
			return r
		}},
		{"5.7.5", "C_GetAttributeValue of an object that is not there", "", ck.CKR_OBJECT_HANDLE_INVALID, func(e *env) rv {
			return e.call("C_GetAttributeValue", e.s, 0xdeadbeef, []value{{Type: ck.CKA_LABEL, Room: 9}})
		}},
		{"5.7.1", "session objects belong to a session: they end with it, not with others", "", ck.CKR_OBJECT_HANDLE_INVALID, func(e *env) rv {
			var o uint
			maker, other := e.open(flags), e.open(flags)
			e.ok("C_CreateObject", maker, with(outside.data1, attr(ck.CKA_LABEL, "of a session")), &o)
			e.ok("C_GetObjectSize", e.s, o, new(uint)) // other sessions use it
			e.ok("C_CloseSession", other)
			e.ok("C_GetObjectSize", e.s, o, new(uint))
			e.ok("C_CloseSession", maker)
			e.check(len(e.findAll(e.s, template{attr(ck.CKA_LABEL, "of a session")})) == 0, "it is still found")
			return e.call("C_GetObjectSize", e.s, o, new(uint))
		}},
		{"5.7.3", "C_DestroyObject of a session object, whose handle is not used again", "", ck.CKR_OK, func(e *env) rv {
			seen := map[uint]bool{}
			for range 5 {
				o := e.create(outside.data1)
				e.check(!seen[o], "handle %d twice", o)
				seen[o] = true
				e.ok("C_DestroyObject", e.s, o)
				e.gives(ck.CKR_OBJECT_HANDLE_INVALID, "C_DestroyObject", e.s, o)
			}
			return ck.CKR_OK
		}},
	}
	for _, p := range []struct {
		id   uint
		name string
		rv
		n int
	}{{1, "Baseline Provider", ck.CKR_OK, 1}, {2, "Extended Provider", ck.CKR_OK, 1}, {3, "Authentication Token", ck.CKR_OK, 0},
		{4, "Public Certificates Token", ck.CKR_OK, 0}, {5, "Complete Provider", ck.CKR_OK, 0}, {6, "HKDF TLS Token", ck.CKR_OK, 0}} {
		rows = append(rows, row{"4.13", "the token has the profile objects that apply", p.name, ck.CKR_OK, func(e *env) rv {
			found := e.findAll(e.s, template{attr(ck.CKA_CLASS, ckoProfile), attr(ckaProfileID, p.id)})
			e.check(len(found) == p.n, "%d objects", len(found))
			for _, o := range found {
				e.check(number(e.get(o, ckaProfileID)) == p.id && string(e.get(o, ck.CKA_LABEL)) == p.name && len(e.get(o, ckaUniqueID)) > 0, "its attributes")
			}
			return ck.CKR_OK
		}})
	}
	for _, name := range []string{"C_GetObjectSize", "C_GetAttributeValue", "C_SetAttributeValue", "C_CopyObject", "C_DestroyObject"} {
		for _, o := range []uint{0, 0xdeadbeef, unavailable} {
			rows = append(rows, row{"5.1.6", "a handle that stands for no object", fmt.Sprintf("%s %#x", name, o), ck.CKR_OBJECT_HANDLE_INVALID, func(e *env) rv { return e.onObject(name, o) }})
		}
	}
	for _, name := range []string{"C_SetAttributeValue", "C_CopyObject", "C_DestroyObject"} {
		want := rv(ck.CKR_ACTION_PROHIBITED)
		if flags == ro && name != "C_CopyObject" {
			want = ck.CKR_SESSION_READ_ONLY
		}
		rows = append(rows,
			row{"4.13", "a profile is not changed", name, want, func(e *env) rv { return e.onObject(name, e.findAll(e.s, template{attr(ck.CKA_CLASS, ckoProfile)})[0]) }},
			row{"4.4", "CKA_MODIFIABLE, CKA_COPYABLE and CKA_DESTROYABLE are obeyed", name, want, func(e *env) rv { return e.onObject(name, e.f.obj["fixed"]) }})
	}
	if flags == ro {
		rows = append(rows,
			row{"5.7.1", "a token object in a read-only session", "", ck.CKR_SESSION_READ_ONLY, func(e *env) rv {
				return e.call("C_CreateObject", e.s, with(outside.data1, attr(ck.CKA_TOKEN, true)), new(uint))
			}},
			row{"5.7.2", "a copy that is a token object in a read-only session", "", ck.CKR_SESSION_READ_ONLY, func(e *env) rv {
				return e.call("C_CopyObject", e.s, e.f.obj["data"], template{}, new(uint))
			}},
			row{"5.7.2", "a copy that is a session object in a read-only session", "", ck.CKR_OK, func(e *env) rv {
				return e.call("C_CopyObject", e.s, e.f.obj["data"], template{attr(ck.CKA_TOKEN, false)}, new(uint))
			}},
			row{"5.7.3", "C_DestroyObject of a token object in a read-only session", "", ck.CKR_SESSION_READ_ONLY, func(e *env) rv { return e.call("C_DestroyObject", e.s, e.f.obj["data"]) }},
			row{"5.7.6", "C_SetAttributeValue of a token object in a read-only session", "", ck.CKR_SESSION_READ_ONLY, func(e *env) rv { return e.onObject("C_SetAttributeValue", e.f.obj["data"]) }},
			row{"5.7.6", "C_SetAttributeValue of a session object in a read-only session", "", ck.CKR_OK, func(e *env) rv { return e.onObject("C_SetAttributeValue", e.create(outside.data1)) }},
			row{"5.18.2", "a key pair in the token in a read-only session", "", ck.CKR_SESSION_READ_ONLY, func(e *env) rv {
				return e.call("C_GenerateKeyPair", e.s, mech(ckmEdwards), template{attr(ck.CKA_EC_PARAMS, oid), attr(ck.CKA_TOKEN, true)}, template{attr(ck.CKA_TOKEN, true)}, new(uint), new(uint))
			}},
			row{"5.5.9", "C_SetPIN in a read-only session", "", ck.CKR_SESSION_READ_ONLY, func(e *env) rv { return e.call("C_SetPIN", e.s, in(userPIN), in("another")) }},
		)
	}
	return rows
}

// onObject is one call on an object, with arguments that are good.
func (e *env) onObject(name string, o uint) rv {
	switch name {
	case "C_GetObjectSize":
		return e.call(name, e.s, o, new(uint))
	case "C_GetAttributeValue":
		return e.call(name, e.s, o, []value{{Type: ck.CKA_LABEL, Room: 9}})
	case "C_SetAttributeValue":
		return e.call(name, e.s, o, template{attr(ck.CKA_LABEL, "changed")})
	case "C_CopyObject":
		return e.call(name, e.s, o, template{attr(ck.CKA_TOKEN, false)}, new(uint))
	}
	return e.call(name, e.s, o)
}

// writers are the rows of changing objects.
func writers() []row {
	set := func(rule string, want rv, o func(*env) uint, t ...template) row {
		return row{"5.7.6", rule, "", want, func(e *env) rv {
			h := o(e)
			before := e.get(h, ck.CKA_LABEL)
			r := e.call("C_SetAttributeValue", e.s, h, with(template{attr(ck.CKA_LABEL, "changed with the rest")}, t[0]...))
			if after := e.get(h, ck.CKA_LABEL); r != ck.CKR_OK {
				e.check(bytes.Equal(before, after), "half of the template was applied")
			} else {
				e.check(string(after) == "changed with the rest", "label %q", after)
			}
			return r
		}}
	}
	data := func(e *env) uint { return e.create(outside.data1) }
	key := func(e *env) uint { return e.create(outside.privateKey) }
	return []row{
		set("C_SetAttributeValue changes what it is given", ck.CKR_OK, data, template{}),
		set("C_SetAttributeValue of an unknown attribute changes nothing", ck.CKR_ATTRIBUTE_TYPE_INVALID, data, template{attr(0x80000001, "x")}),
		set("C_SetAttributeValue of a read-only attribute changes nothing", ck.CKR_ATTRIBUTE_READ_ONLY, data, template{attr(ck.CKA_CLASS, ck.CKO_CERTIFICATE)}),
		set("C_SetAttributeValue of another class's attribute changes nothing", ck.CKR_TEMPLATE_INCONSISTENT, data, template{attr(ck.CKA_SUBJECT, "x")}),
		set("C_SetAttributeValue with a bad value changes nothing", ck.CKR_ATTRIBUTE_VALUE_INVALID, key, template{attr(ck.CKA_SIGN, []byte{2})}),
		set("CKA_SENSITIVE cannot become false", ck.CKR_ATTRIBUTE_READ_ONLY, key, template{attr(ck.CKA_SENSITIVE, false)}),
		set("CKA_EXTRACTABLE cannot become true", ck.CKR_ATTRIBUTE_READ_ONLY, key, template{attr(ck.CKA_EXTRACTABLE, true)}),
		set("CKA_WRAP_WITH_TRUSTED cannot become false", ck.CKR_ATTRIBUTE_READ_ONLY, func(e *env) uint {
			return e.create(with(outside.privateKey, attr(ck.CKA_WRAP_WITH_TRUSTED, true)))
		}, template{attr(ck.CKA_WRAP_WITH_TRUSTED, false)}),
		set("CKA_COPYABLE cannot become true", ck.CKR_ATTRIBUTE_READ_ONLY, func(e *env) uint {
			return e.create(with(outside.data1, attr(ck.CKA_COPYABLE, false)))
		}, template{attr(ck.CKA_COPYABLE, true)}),
		set("CKA_TRUSTED cannot become true without the SO", ck.CKR_ATTRIBUTE_READ_ONLY, func(e *env) uint { return e.create(outside.certificate) }, template{attr(ck.CKA_TRUSTED, true)}),
		set("CKA_UNIQUE_ID cannot be changed", ck.CKR_ATTRIBUTE_READ_ONLY, data, template{attr(ckaUniqueID, "x")}),
		{"5.7.6", "C_SetAttributeValue with NULL for a template that is not empty", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_SetAttributeValue", e.s, data(e), nil, 1) }},
		{"5.7.6", "C_SetAttributeValue of a token object lasts", "", ck.CKR_OK, func(e *env) rv {
			o := e.destroyed(e.create(with(outside.data1, attr(ck.CKA_TOKEN, true))))
			r := e.call("C_SetAttributeValue", e.s, o, template{attr(ck.CKA_LABEL, "lasting")})
			found := e.findAll(e.open(ro), template{attr(ck.CKA_LABEL, "lasting")})
			e.check(len(found) == 1 && found[0] == o, "%v", found)
			return r
		}},
		{"5.7.2", "a copy has the original's attributes and a CKA_UNIQUE_ID of its own", "", ck.CKR_OK, func(e *env) rv {
			var o uint
			r := e.call("C_CopyObject", e.s, e.f.obj["data"], template{attr(ck.CKA_TOKEN, false)}, &o)
			e.check(o != e.f.obj["data"] && string(e.get(o, ck.CKA_VALUE)) == "public" && string(e.get(o, ck.CKA_APPLICATION)) == "conformance", "its attributes")
			e.check(string(e.get(o, ckaUniqueID)) != string(e.get(e.f.obj["data"], ckaUniqueID)), "the same CKA_UNIQUE_ID")
			return r
		}},
		copies("with another label", ck.CKR_OK, "data", attr(ck.CKA_LABEL, "copy")),
		copies("that is private", ck.CKR_OK, "data", attr(ck.CKA_PRIVATE, true)),
		copies("that is not modifiable", ck.CKR_OK, "data", attr(ck.CKA_MODIFIABLE, false)),
		copies("that is not destroyable", ck.CKR_OK, "data", attr(ck.CKA_DESTROYABLE, false)),
		copies("of a private object that is public", ck.CKR_TEMPLATE_INCONSISTENT, "secret", attr(ck.CKA_PRIVATE, false)),
		copies("with another class", ck.CKR_ATTRIBUTE_READ_ONLY, "data", attr(ck.CKA_CLASS, ck.CKO_CERTIFICATE)),
		copies("with another value", ck.CKR_ATTRIBUTE_READ_ONLY, "data", attr(ck.CKA_VALUE, "other")),
		copies("with a CKA_UNIQUE_ID", ck.CKR_ATTRIBUTE_READ_ONLY, "data", attr(ckaUniqueID, "x")),
		copies("with another class's attribute", ck.CKR_TEMPLATE_INCONSISTENT, "data", attr(ck.CKA_SUBJECT, "x")),
		copies("with an unknown attribute", ck.CKR_ATTRIBUTE_TYPE_INVALID, "data", attr(0x80000001, "x")),
		copies("with a bad value", ck.CKR_ATTRIBUTE_VALUE_INVALID, "data", attr(ck.CKA_MODIFIABLE, []byte{1, 1})),
		copies("of a private key that is not sensitive", ck.CKR_ATTRIBUTE_READ_ONLY, "pair priv", attr(ck.CKA_SENSITIVE, false)),
		copies("of a private key that is extractable", ck.CKR_ATTRIBUTE_READ_ONLY, "pair priv", attr(ck.CKA_EXTRACTABLE, true)),
		{"5.7.2", "C_CopyObject without a place for the handle", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_CopyObject", e.s, e.f.obj["data"], template{}, nil) }},
		{"5.7.2", "a copy of a private key signs as the original does, and is local as it", "", ck.CKR_OK, func(e *env) rv {
			var o uint
			r := e.call("C_CopyObject", e.s, e.f.priv(), template{attr(ck.CKA_TOKEN, false)}, &o)
			e.check(bytes.Equal(e.sign(o, message), e.sign(e.f.priv(), message)), "another signature")
			for _, typ := range []uint{ck.CKA_LOCAL, ck.CKA_ALWAYS_SENSITIVE, ck.CKA_NEVER_EXTRACTABLE} {
				e.check(bytes.Equal(e.get(o, typ), e.get(e.f.priv(), typ)), "attribute %#x", typ)
			}
			return r
		}},
		{"5.7.3", "C_DestroyObject of a token object", "", ck.CKR_OK, func(e *env) rv {
			o := e.create(with(outside.data1, attr(ck.CKA_TOKEN, true), attr(ck.CKA_LABEL, "to be destroyed")))
			r := e.call("C_DestroyObject", e.s, o)
			e.check(len(e.findAll(e.s, template{attr(ck.CKA_LABEL, "to be destroyed")})) == 0, "it is still found")
			return r
		}},
	}
}

func copies(what string, want rv, of string, change ...p11tool.Attribute) row {
	return row{"5.7.2", "a copy " + what, "", want, func(e *env) rv {
		var o uint
		r := e.call("C_CopyObject", e.s, e.f.obj[of], with(template{attr(ck.CKA_TOKEN, false)}, change...), &o)
		if r == ck.CKR_OK {
			e.check(bytes.Equal(e.get(o, change[0].Type), change[0].Value), "the attribute is %x", e.get(o, change[0].Type))
		}
		return r
	}}
}
