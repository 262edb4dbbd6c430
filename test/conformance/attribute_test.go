package conformance

import (
	"bytes"
	"fmt"
	"slices"

	ck "github.com/miekg/pkcs11"

	"github.com/InterCooperative-Network/icn-p11/test/p11tool"
)

// kinds are the objects whose attributes are checked, each made with nothing
// that it could go without.
var kinds = []struct {
	name string
	make func(*env) uint
	// defaults are the attributes that the object has, with their values; nil
	// where the value is not fixed.
	defaults map[uint][]byte
	// hidden are those that are never told.
	hidden []uint
	// settable are the values that C_SetAttributeValue takes, fixed those that
	// it refuses, since the standard's tables do not let them be changed.
	settable, fixed []p11tool.Attribute
}{
	{
		name: "data", make: func(e *env) uint { return e.create(outside.data1) },
		defaults: storage(ck.CKO_DATA, no, map[uint][]byte{ck.CKA_APPLICATION: {}, ck.CKA_OBJECT_ID: {}, ck.CKA_VALUE: {}}),
		settable: labels,
		fixed:    append(storageFixed, attr(ck.CKA_APPLICATION, "x"), attr(ck.CKA_OBJECT_ID, "x"), attr(ck.CKA_VALUE, "x")),
	},
	{
		name: "certificate", make: func(e *env) uint { return e.create(outside.certificate) },
		defaults: storage(ck.CKO_CERTIFICATE, no, map[uint][]byte{
			ck.CKA_CERTIFICATE_TYPE: ul(ck.CKC_X_509), ck.CKA_TRUSTED: no, ck.CKA_CERTIFICATE_CATEGORY: ul(0), ck.CKA_CHECK_VALUE: nil,
			ck.CKA_START_DATE: {}, ck.CKA_END_DATE: {}, ck.CKA_SUBJECT: outside.subject, ck.CKA_ID: {}, ck.CKA_ISSUER: {}, ck.CKA_SERIAL_NUMBER: {},
			ck.CKA_VALUE: outside.der, ck.CKA_URL: {}, ck.CKA_HASH_OF_SUBJECT_PUBLIC_KEY: {}, ck.CKA_HASH_OF_ISSUER_PUBLIC_KEY: {},
			ck.CKA_JAVA_MIDP_SECURITY_DOMAIN: ul(0)}),
		settable: append(labels, attr(ck.CKA_ID, "new id"), attr(ck.CKA_ISSUER, outside.issuer), attr(ck.CKA_SERIAL_NUMBER, outside.serial)),
		fixed: append(storageFixed, attr(ck.CKA_CERTIFICATE_TYPE, ck.CKC_X_509), attr(ck.CKA_TRUSTED, true), attr(ck.CKA_CERTIFICATE_CATEGORY, 1), attr(ck.CKA_CHECK_VALUE, "abc"),
			attr(ck.CKA_START_DATE, "20260101"), attr(ck.CKA_END_DATE, "20260101"), attr(ck.CKA_SUBJECT, outside.subject), attr(ck.CKA_VALUE, outside.der), attr(ck.CKA_URL, "https://example.org"),
			attr(ck.CKA_HASH_OF_SUBJECT_PUBLIC_KEY, "x"), attr(ck.CKA_HASH_OF_ISSUER_PUBLIC_KEY, "x"), attr(ck.CKA_JAVA_MIDP_SECURITY_DOMAIN, 1), attr(ck.CKA_NAME_HASH_ALGORITHM, ck.CKM_SHA_1)),
	},
	{
		name: "public key", make: func(e *env) uint { return e.create(outside.publicKey) },
		defaults: keys(ck.CKO_PUBLIC_KEY, no, false, map[uint][]byte{ck.CKA_ENCRYPT: no, ck.CKA_VERIFY: yes, ck.CKA_VERIFY_RECOVER: no, ck.CKA_WRAP: no, ck.CKA_TRUSTED: no}),
		settable: append(keySettable, attr(ck.CKA_ENCRYPT, true), attr(ck.CKA_VERIFY, false), attr(ck.CKA_VERIFY_RECOVER, true), attr(ck.CKA_WRAP, true)),
		fixed:    append(keyFixed, attr(ck.CKA_TRUSTED, true), attr(ck.CKA_EC_POINT, []byte(outside.pub))),
	},
	{
		name: "private key", make: func(e *env) uint { return e.create(outside.privateKey) },
		defaults: keys(ck.CKO_PRIVATE_KEY, yes, false, privateDefaults(no, no)),
		hidden:   []uint{ck.CKA_VALUE},
		settable: append(keySettable, attr(ck.CKA_SENSITIVE, true), attr(ck.CKA_DECRYPT, true), attr(ck.CKA_SIGN, false), attr(ck.CKA_SIGN_RECOVER, true),
			attr(ck.CKA_UNWRAP, true), attr(ck.CKA_EXTRACTABLE, false), attr(ck.CKA_WRAP_WITH_TRUSTED, true), attr(ckaPublicKeyInfo, append(bytes.Clone(spki), outside.pub...))),
		fixed: append(keyFixed, attr(ck.CKA_ALWAYS_SENSITIVE, true), attr(ck.CKA_NEVER_EXTRACTABLE, true), attr(ck.CKA_VALUE, outside.seed)),
	},
	{
		name: "generated public key", make: func(e *env) uint { return e.pair(nil, nil).pub },
		defaults: keys(ck.CKO_PUBLIC_KEY, no, true, map[uint][]byte{ck.CKA_ENCRYPT: no, ck.CKA_VERIFY: yes, ck.CKA_VERIFY_RECOVER: no, ck.CKA_WRAP: no, ck.CKA_TRUSTED: no}),
	},
	{
		name: "generated private key", make: func(e *env) uint { return e.pair(nil, nil).priv },
		defaults: keys(ck.CKO_PRIVATE_KEY, yes, true, privateDefaults(yes, yes)),
		hidden:   []uint{ck.CKA_VALUE},
	},
	{
		name: "generated private key that is extractable", make: func(e *env) uint { return e.pair(nil, template{attr(ck.CKA_EXTRACTABLE, true)}).priv },
		defaults: map[uint][]byte{ck.CKA_EXTRACTABLE: yes, ck.CKA_NEVER_EXTRACTABLE: no, ck.CKA_SENSITIVE: yes, ck.CKA_ALWAYS_SENSITIVE: yes},
		hidden:   []uint{ck.CKA_VALUE},
	},
	{
		name: "X25519 public key", make: func(e *env) uint { return e.montgomery().pub },
		defaults: keysOf(ckkECMontgomery, x25519OID, ckmMontgomery, ck.CKO_PUBLIC_KEY, no, map[uint][]byte{ck.CKA_ENCRYPT: no, ck.CKA_VERIFY: no, ck.CKA_VERIFY_RECOVER: no, ck.CKA_WRAP: no, ck.CKA_TRUSTED: no}),
	},
	{
		name: "X25519 private key", make: func(e *env) uint { return e.montgomery().priv },
		defaults: derives(keysOf(ckkECMontgomery, x25519OID, ckmMontgomery, ck.CKO_PRIVATE_KEY, yes, privateDefaults(yes, yes))),
		hidden:   []uint{ck.CKA_VALUE},
	},
	{
		name: "EC public key", make: func(e *env) uint { return e.copyOf("P-256 pub") },
		defaults: keysOf(ck.CKK_EC, curves[0].oid, ck.CKM_EC_KEY_PAIR_GEN, ck.CKO_PUBLIC_KEY, no,
			map[uint][]byte{ck.CKA_LABEL: nil, ck.CKA_ENCRYPT: no, ck.CKA_VERIFY: yes, ck.CKA_VERIFY_RECOVER: no, ck.CKA_WRAP: no, ck.CKA_TRUSTED: no}),
		settable: append(keySettable, attr(ck.CKA_VERIFY, false)),
		fixed:    append(keyFixed, attr(ck.CKA_TRUSTED, true), attr(ck.CKA_EC_POINT, []byte(outside.pub))),
	},
	{
		name: "EC private key, in the TPM", make: func(e *env) uint { return e.copyOf("P-256 priv") },
		defaults: labelled(keysOf(ck.CKK_EC, curves[0].oid, ck.CKM_EC_KEY_PAIR_GEN, ck.CKO_PRIVATE_KEY, yes, privateDefaults(yes, yes))),
		hidden:   []uint{ck.CKA_VALUE},
		settable: append(keySettable, attr(ck.CKA_SIGN, false), attr(ck.CKA_SENSITIVE, true), attr(ck.CKA_EXTRACTABLE, false), attr(ck.CKA_WRAP_WITH_TRUSTED, true)),
		fixed: append(keyFixed, attr(ck.CKA_SENSITIVE, false), attr(ck.CKA_EXTRACTABLE, true), attr(ck.CKA_ALWAYS_SENSITIVE, true), attr(ck.CKA_NEVER_EXTRACTABLE, true),
			attr(ck.CKA_VALUE, outside.seed), attr(ck.CKA_ALWAYS_AUTHENTICATE, true)),
	},
	{
		name: "AES key", make: func(e *env) uint { return e.secret(ck.CKK_AES, secret32) },
		defaults: secretDefaults(ck.CKK_AES, ck.CKA_ENCRYPT, ck.CKA_DECRYPT),
		hidden:   []uint{ck.CKA_VALUE},
		settable: append(labels[:2:2], attr(ck.CKA_ID, "new id"), attr(ck.CKA_START_DATE, "20260101"), attr(ck.CKA_END_DATE, "20261231"), attr(ck.CKA_DERIVE, true),
			attr(ck.CKA_ENCRYPT, false), attr(ck.CKA_DECRYPT, false), attr(ck.CKA_SIGN, true), attr(ck.CKA_VERIFY, true), attr(ck.CKA_WRAP, true), attr(ck.CKA_UNWRAP, true),
			attr(ck.CKA_SENSITIVE, true), attr(ck.CKA_EXTRACTABLE, false), attr(ck.CKA_WRAP_WITH_TRUSTED, true), attr(ck.CKA_TRUSTED, false), attr(ck.CKA_CHECK_VALUE, "")),
		fixed: append(storageFixed[:6:6], attr(ck.CKA_KEY_TYPE, ck.CKK_AES), attr(ck.CKA_LOCAL, true), attr(ck.CKA_KEY_GEN_MECHANISM, ck.CKM_AES_KEY_GEN), attr(ck.CKA_ALLOWED_MECHANISMS, ul(ck.CKM_AES_CBC)),
			attr(ck.CKA_VALUE, secret32), attr(ck.CKA_VALUE_LEN, 16), attr(ck.CKA_ALWAYS_SENSITIVE, true), attr(ck.CKA_NEVER_EXTRACTABLE, true), attr(ck.CKA_EXTRACTABLE, true), attr(ck.CKA_TRUSTED, true)),
	},
	{
		name: "generic secret", make: func(e *env) uint { return e.secret(ck.CKK_GENERIC_SECRET, secret32) },
		defaults: secretDefaults(ck.CKK_GENERIC_SECRET, ck.CKA_SIGN, ck.CKA_VERIFY, ck.CKA_DERIVE),
	},
	{
		name: "ChaCha20 key", make: func(e *env) uint { return e.secret(ckkChaCha20, secret32) },
		defaults: secretDefaults(ckkChaCha20, ck.CKA_ENCRYPT, ck.CKA_DECRYPT),
	},
	{
		name: "HKDF key", make: func(e *env) uint { return e.secret(ckkHKDF, secret32) },
		defaults: secretDefaults(ckkHKDF, ck.CKA_DERIVE),
	},
	{
		name: "HMAC key", make: func(e *env) uint { return e.secret(ckkSHA3x256HMAC, secret32) },
		defaults: secretDefaults(ckkSHA3x256HMAC, ck.CKA_SIGN, ck.CKA_VERIFY),
	},
	{
		name: "profile", make: func(e *env) uint { return e.findAll(e.s, template{attr(ck.CKA_CLASS, ckoProfile)})[0] },
		defaults: map[uint][]byte{ck.CKA_CLASS: ul(ckoProfile), ck.CKA_TOKEN: yes, ck.CKA_PRIVATE: no, ck.CKA_MODIFIABLE: no, ck.CKA_COPYABLE: no, ck.CKA_DESTROYABLE: no,
			ck.CKA_LABEL: nil, ckaUniqueID: nil, ckaProfileID: nil},
	},
}

// storage are the attributes of every object that can be made (section 4.4).
func storage(class uint, private []byte, more map[uint][]byte) map[uint][]byte {
	m := map[uint][]byte{ck.CKA_CLASS: ul(class), ck.CKA_TOKEN: no, ck.CKA_PRIVATE: private, ck.CKA_MODIFIABLE: yes, ck.CKA_COPYABLE: yes,
		ck.CKA_DESTROYABLE: yes, ck.CKA_LABEL: {}, ckaUniqueID: nil}
	for typ, v := range more {
		m[typ] = v
	}
	return m
}

// keys are those of every key (sections 4.7 and 6.3.5).
func keys(class uint, private []byte, generated bool, more map[uint][]byte) map[uint][]byte {
	m := storage(class, private, map[uint][]byte{ck.CKA_KEY_TYPE: ul(ckkECEdwards), ck.CKA_ID: nil, ck.CKA_START_DATE: {}, ck.CKA_END_DATE: {}, ck.CKA_DERIVE: no,
		ck.CKA_LOCAL: no, ck.CKA_KEY_GEN_MECHANISM: ul(unavailable), ck.CKA_ALLOWED_MECHANISMS: {}, ck.CKA_SUBJECT: {}, ck.CKA_EC_PARAMS: oid, ck.CKA_EC_POINT: nil, ckaPublicKeyInfo: nil})
	if generated {
		m[ck.CKA_LOCAL], m[ck.CKA_KEY_GEN_MECHANISM] = yes, ul(ckmEdwards)
	}
	for typ, v := range more {
		m[typ] = v
	}
	return m
}

// keysOf are those of a generated key of another curve.
func keysOf(typ uint, params []byte, mechanism, class uint, private []byte, more map[uint][]byte) map[uint][]byte {
	m := keys(class, private, true, map[uint][]byte{ck.CKA_KEY_TYPE: ul(typ), ck.CKA_EC_PARAMS: params, ck.CKA_KEY_GEN_MECHANISM: ul(mechanism)})
	for typ, v := range more {
		m[typ] = v
	}
	return m
}

// derives are those of a key that is for derivation.
func derives(m map[uint][]byte) map[uint][]byte {
	m[ck.CKA_DERIVE], m[ck.CKA_SIGN] = yes, no
	return m
}

// labelled are those of a key with a label.
func labelled(m map[uint][]byte) map[uint][]byte {
	m[ck.CKA_LABEL] = nil
	return m
}

// secretDefaults are those of an imported secret key that is for some uses
// (section 4.10).
func secretDefaults(typ uint, uses ...uint) map[uint][]byte {
	m := storage(ck.CKO_SECRET_KEY, yes, map[uint][]byte{ck.CKA_KEY_TYPE: ul(typ), ck.CKA_ID: {}, ck.CKA_START_DATE: {}, ck.CKA_END_DATE: {}, ck.CKA_DERIVE: no,
		ck.CKA_LOCAL: no, ck.CKA_KEY_GEN_MECHANISM: ul(unavailable), ck.CKA_ALLOWED_MECHANISMS: {}, ck.CKA_VALUE_LEN: ul(32), ck.CKA_CHECK_VALUE: nil,
		ck.CKA_SENSITIVE: no, ck.CKA_EXTRACTABLE: no, ck.CKA_ALWAYS_SENSITIVE: no, ck.CKA_NEVER_EXTRACTABLE: no,
		ck.CKA_ENCRYPT: no, ck.CKA_DECRYPT: no, ck.CKA_SIGN: no, ck.CKA_VERIFY: no, ck.CKA_WRAP: no, ck.CKA_UNWRAP: no, ck.CKA_WRAP_WITH_TRUSTED: no, ck.CKA_TRUSTED: no})
	for _, use := range uses {
		m[use] = yes
	}
	return m
}

// montgomery makes a pair of session keys of X25519.
func (e *env) montgomery() (p struct{ pub, priv uint }) {
	e.Helper()
	e.ok("C_GenerateKeyPair", e.s, mech(ckmMontgomery), template{attr(ck.CKA_EC_PARAMS, x25519OID)}, template{}, &p.pub, &p.priv)
	return p
}

// copyOf is a copy of a token object in the row's session.
func (e *env) copyOf(name string) (o uint) {
	e.Helper()
	e.ok("C_CopyObject", e.s, e.f.obj[name], template{attr(ck.CKA_TOKEN, false)}, &o)
	return o
}

// privateDefaults are those of a private key (section 4.9).
func privateDefaults(alwaysSensitive, neverExtractable []byte) map[uint][]byte {
	return map[uint][]byte{ck.CKA_SENSITIVE: yes, ck.CKA_EXTRACTABLE: no, ck.CKA_ALWAYS_SENSITIVE: alwaysSensitive, ck.CKA_NEVER_EXTRACTABLE: neverExtractable,
		ck.CKA_SIGN: yes, ck.CKA_SIGN_RECOVER: no, ck.CKA_DECRYPT: no, ck.CKA_UNWRAP: no, ck.CKA_WRAP_WITH_TRUSTED: no, ck.CKA_ALWAYS_AUTHENTICATE: no}
}

var (
	labels       = []p11tool.Attribute{attr(ck.CKA_LABEL, "new label"), attr(ck.CKA_COPYABLE, false)}
	storageFixed = []p11tool.Attribute{attr(ck.CKA_CLASS, ck.CKO_DATA), attr(ck.CKA_TOKEN, true), attr(ck.CKA_PRIVATE, true),
		attr(ck.CKA_MODIFIABLE, false), attr(ck.CKA_DESTROYABLE, false), attr(ckaUniqueID, "x")}
	keySettable = slices.Clip(append(labels[:2:2], attr(ck.CKA_ID, "new id"), attr(ck.CKA_START_DATE, "20260101"), attr(ck.CKA_END_DATE, "20261231"),
		attr(ck.CKA_DERIVE, true), attr(ck.CKA_SUBJECT, outside.subject)))
	keyFixed = slices.Clip(append(storageFixed[:6:6], attr(ck.CKA_KEY_TYPE, ckkECEdwards), attr(ck.CKA_LOCAL, true), attr(ck.CKA_KEY_GEN_MECHANISM, ckmEdwards),
		attr(ck.CKA_ALLOWED_MECHANISMS, ul(ckmEdDSA)), attr(ck.CKA_EC_PARAMS, oid)))
)

// attributeRows are the attribute tables.
func attributeRows() (rows []row) {
	for _, k := range kinds {
		for typ, want := range k.defaults {
			rows = append(rows, row{tableOf(k.name, typ), "attributes and their defaults", fmt.Sprintf("%s %#x", k.name, typ), ck.CKR_OK, func(e *env) rv {
				v := []value{{Type: typ, Room: 4096}}
				r := e.call("C_GetAttributeValue", e.s, k.make(e), v)
				e.check(want == nil && len(v[0].Data) > 0 || want != nil && bytes.Equal(v[0].Data, want), "%x, not %x", v[0].Data, want)
				return r
			}})
		}
		for _, typ := range k.hidden {
			rows = append(rows, row{"5.7.5", "a sensitive attribute is never told, and the others all the same", fmt.Sprintf("%s %#x", k.name, typ), ck.CKR_ATTRIBUTE_SENSITIVE, func(e *env) rv {
				v := []value{{Type: ck.CKA_SENSITIVE, Room: 1}, {Type: typ, Room: 100}, {Type: typ, Room: -1}, {Type: ck.CKA_CLASS, Room: 8}}
				o := k.make(e)
				r := e.call("C_GetAttributeValue", e.s, o, v)
				e.check(v[1].Len == unavailable && v[2].Len == unavailable, "lengths %d and %d", v[1].Len, v[2].Len)
				e.check(len(v[0].Data) == 1 && number(v[3].Data) == e.class(e.s, o), "the others: %x, %x", v[0].Data, v[3].Data)
				return r
			}})
		}
		for _, a := range k.settable {
			rows = append(rows, row{tableOf(k.name, a.Type), "what C_SetAttributeValue changes", fmt.Sprintf("%s %#x", k.name, a.Type), ck.CKR_OK, func(e *env) rv {
				o := k.make(e)
				r := e.call("C_SetAttributeValue", e.s, o, template{a})
				e.check(bytes.Equal(e.get(o, a.Type), a.Value), "%x", e.get(o, a.Type))
				return r
			}})
		}
		for _, a := range k.fixed {
			rows = append(rows, row{tableOf(k.name, a.Type), "what C_SetAttributeValue does not change", fmt.Sprintf("%s %#x", k.name, a.Type), ck.CKR_ATTRIBUTE_READ_ONLY, func(e *env) rv {
				o := k.make(e)
				before := e.get(o, a.Type)
				r := e.call("C_SetAttributeValue", e.s, o, template{a})
				e.check(bytes.Equal(e.get(o, a.Type), before), "%x", e.get(o, a.Type))
				return r
			}})
		}
	}
	return append(rows,
		row{"4.9", "a private key's CKA_PUBLIC_KEY_INFO cannot become another's", "", ck.CKR_ATTRIBUTE_VALUE_INVALID, func(e *env) rv {
			return e.call("C_SetAttributeValue", e.s, e.create(outside.privateKey), template{attr(ckaPublicKeyInfo, append(bytes.Clone(spki), make([]byte, 32)...))})
		}},
		row{"4.9", "nor that of a copy", "", ck.CKR_ATTRIBUTE_VALUE_INVALID, func(e *env) rv {
			return e.call("C_CopyObject", e.s, e.create(outside.privateKey), template{attr(ckaPublicKeyInfo, append(bytes.Clone(spki), make([]byte, 32)...))}, new(uint))
		}})
}

// tableOf is the section with the table that describes an attribute of a kind of
// objects.
func tableOf(kind string, typ uint) string {
	secret := map[string]string{"AES key": "6.10", "generic secret": "6.8", "ChaCha20 key": "6.58", "HKDF key": "6.62", "HMAC key": "6.29"}[kind]
	switch typ {
	case ck.CKA_VALUE, ck.CKA_VALUE_LEN:
		if secret != "" {
			return secret
		}
	case ck.CKA_CHECK_VALUE, ck.CKA_ENCRYPT, ck.CKA_DECRYPT, ck.CKA_SIGN, ck.CKA_VERIFY, ck.CKA_WRAP, ck.CKA_UNWRAP, ck.CKA_SENSITIVE, ck.CKA_EXTRACTABLE,
		ck.CKA_ALWAYS_SENSITIVE, ck.CKA_NEVER_EXTRACTABLE, ck.CKA_WRAP_WITH_TRUSTED, ck.CKA_TRUSTED:
		if secret != "" {
			return "4.10"
		}
	}
	switch typ {
	case ck.CKA_CLASS, ck.CKA_TOKEN, ck.CKA_PRIVATE, ck.CKA_MODIFIABLE, ck.CKA_LABEL, ck.CKA_COPYABLE, ck.CKA_DESTROYABLE:
		return "4.4"
	case ckaUniqueID:
		return "4.4.1"
	case ck.CKA_APPLICATION, ck.CKA_OBJECT_ID:
		return "4.5"
	case ck.CKA_CERTIFICATE_TYPE, ck.CKA_CERTIFICATE_CATEGORY, ck.CKA_CHECK_VALUE:
		return "4.6.2"
	case ck.CKA_ISSUER, ck.CKA_SERIAL_NUMBER, ck.CKA_URL, ck.CKA_HASH_OF_SUBJECT_PUBLIC_KEY, ck.CKA_HASH_OF_ISSUER_PUBLIC_KEY, ck.CKA_JAVA_MIDP_SECURITY_DOMAIN, ck.CKA_NAME_HASH_ALGORITHM:
		return "4.6.3"
	case ck.CKA_ENCRYPT, ck.CKA_VERIFY, ck.CKA_VERIFY_RECOVER, ck.CKA_WRAP, ck.CKA_TRUSTED:
		return "4.8"
	case ck.CKA_SENSITIVE, ck.CKA_EXTRACTABLE, ck.CKA_ALWAYS_SENSITIVE, ck.CKA_NEVER_EXTRACTABLE, ck.CKA_SIGN, ck.CKA_SIGN_RECOVER, ck.CKA_DECRYPT, ck.CKA_UNWRAP,
		ck.CKA_WRAP_WITH_TRUSTED, ck.CKA_ALWAYS_AUTHENTICATE, ckaPublicKeyInfo:
		return "4.9"
	case ckaProfileID:
		return "4.13"
	case ck.CKA_EC_PARAMS, ck.CKA_EC_POINT:
		switch kind {
		case "EC public key":
			return "6.3.3"
		case "EC private key, in the TPM":
			return "6.3.4"
		case "X25519 public key":
			return "6.3.7"
		case "X25519 private key":
			return "6.3.8"
		}
		return "6.3.5"
	}
	return "4.7"
}
