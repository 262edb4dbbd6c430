package conformance

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha1"
	"fmt"

	ck "github.com/miekg/pkcs11"

	"github.com/InterCooperative-Network/icn-p11/test/p11tool"
)

// creationRows are the rows of templates for new objects (section 4.1.1).
func creationRows() (rows []row) {
	creates := func(section, rule string, want rv, t template) {
		rows = append(rows, row{section, rule, "", want, func(e *env) rv { return e.call("C_CreateObject", e.s, t, new(uint)) }})
	}
	creates("5.7.1", "an empty template", ck.CKR_TEMPLATE_INCOMPLETE, template{})
	creates("5.7.1", "NULL for an empty template", ck.CKR_TEMPLATE_INCOMPLETE, nil)
	creates("5.7.1", "a class that the token has not", ck.CKR_ATTRIBUTE_VALUE_INVALID, template{attr(ck.CKA_CLASS, uint(0x80000001))})
	creates("4.1.1", "a class of built-in objects", ck.CKR_ATTRIBUTE_VALUE_INVALID, template{attr(ck.CKA_CLASS, ckoProfile), attr(ckaProfileID, 5)})
	creates("4.1.1", "a class of the wrong length", ck.CKR_ATTRIBUTE_VALUE_INVALID, template{attr(ck.CKA_CLASS, []byte{0})})
	creates("5.7.1", "a data object", ck.CKR_OK, outside.data1)
	creates("5.7.1", "a certificate", ck.CKR_OK, outside.certificate)
	creates("5.7.1", "a public key", ck.CKR_OK, outside.publicKey)
	creates("5.7.1", "a private key", ck.CKR_OK, outside.privateKey)
	rows = append(rows,
		row{"5.7.1", "C_CreateObject with NULL for a template that is not empty", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_CreateObject", e.s, nil, 1, new(uint)) }},
		row{"5.7.1", "C_CreateObject without a place for the handle", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv { return e.call("C_CreateObject", e.s, outside.data1, nil) }})

	of := []struct {
		name string
		t    template
	}{{"data", outside.data1}, {"certificate", outside.certificate}, {"public key", outside.publicKey}, {"private key", outside.privateKey}}
	for _, x := range of {
		each := func(rule string, want rv, more ...p11tool.Attribute) {
			rows = append(rows, row{"4.1.1", rule, x.name, want, func(e *env) rv { return e.call("C_CreateObject", e.s, with(x.t, more...), new(uint)) }})
		}
		each("an attribute that Cryptoki does not know", ck.CKR_ATTRIBUTE_TYPE_INVALID, attr(0x7fffffff, "x"))
		each("an attribute of a vendor that the token does not know", ck.CKR_ATTRIBUTE_TYPE_INVALID, attr(0x80000001, "x"))
		each("an attribute of other objects", ck.CKR_TEMPLATE_INCONSISTENT, attr(ck.CKA_MODULUS_BITS, 2048))
		each("a read-only attribute: CKA_UNIQUE_ID", ck.CKR_ATTRIBUTE_READ_ONLY, attr(ckaUniqueID, "x"))
		each("a boolean that is neither true nor false", ck.CKR_ATTRIBUTE_VALUE_INVALID, attr(ck.CKA_MODIFIABLE, []byte{2}))
		each("a boolean of two bytes", ck.CKR_ATTRIBUTE_VALUE_INVALID, attr(ck.CKA_MODIFIABLE, []byte{1, 0}))
		each("a boolean of no bytes", ck.CKR_ATTRIBUTE_VALUE_INVALID, attr(ck.CKA_MODIFIABLE, []byte{}))
		each("two values for one attribute", ck.CKR_TEMPLATE_INCONSISTENT, attr(ck.CKA_LABEL, "a"), attr(ck.CKA_LABEL, "b"))
		each("one value for an attribute twice", ck.CKR_OK, attr(ck.CKA_LABEL, "a"), attr(ck.CKA_LABEL, "a"))
	}
	for _, x := range []struct {
		name string
		t    template
		need []uint
	}{
		{"certificate", outside.certificate, []uint{ck.CKA_CERTIFICATE_TYPE, ck.CKA_SUBJECT, ck.CKA_VALUE}},
		{"public key", outside.publicKey, []uint{ck.CKA_KEY_TYPE, ck.CKA_EC_PARAMS, ck.CKA_EC_POINT}},
		{"private key", outside.privateKey, []uint{ck.CKA_KEY_TYPE, ck.CKA_EC_PARAMS, ck.CKA_VALUE}},
	} {
		for _, typ := range append(x.need, ck.CKA_CLASS) {
			rows = append(rows, row{"4.1.1", "a template that lacks what it must have", fmt.Sprintf("%s without %#x", x.name, typ), ck.CKR_TEMPLATE_INCOMPLETE,
				func(e *env) rv { return e.call("C_CreateObject", e.s, without(x.t, typ), new(uint)) }})
		}
	}
	for _, x := range []struct {
		name string
		t    template
		ro   []uint
	}{
		{"public key", outside.publicKey, []uint{ck.CKA_LOCAL, ck.CKA_KEY_GEN_MECHANISM}},
		{"private key", outside.privateKey, []uint{ck.CKA_LOCAL, ck.CKA_KEY_GEN_MECHANISM, ck.CKA_ALWAYS_SENSITIVE, ck.CKA_NEVER_EXTRACTABLE}},
	} {
		for _, typ := range x.ro {
			v := attr(typ, true)
			if typ == ck.CKA_KEY_GEN_MECHANISM {
				v = attr(typ, ckmEdwards)
			}
			rows = append(rows, row{"4.7", "an attribute that must not be in a template for C_CreateObject", fmt.Sprintf("%s with %#x", x.name, typ), ck.CKR_ATTRIBUTE_READ_ONLY,
				func(e *env) rv { return e.call("C_CreateObject", e.s, with(x.t, v), new(uint)) }})
		}
	}
	creates("4.6.2", "another type of certificate", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(without(outside.certificate, ck.CKA_CERTIFICATE_TYPE), attr(ck.CKA_CERTIFICATE_TYPE, ck.CKC_WTLS)))
	creates("4.6.2", "a trusted certificate without the SO", ck.CKR_ATTRIBUTE_READ_ONLY, with(outside.certificate, attr(ck.CKA_TRUSTED, true)))
	creates("4.6.2", "a certificate that is said not to be trusted", ck.CKR_OK, with(outside.certificate, attr(ck.CKA_TRUSTED, false)))
	creates("4.6.2", "a category of certificates that there is", ck.CKR_OK, with(outside.certificate, attr(ck.CKA_CERTIFICATE_CATEGORY, 3)))
	creates("4.6.2", "a category of certificates that there is not", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(outside.certificate, attr(ck.CKA_CERTIFICATE_CATEGORY, 4)))
	creates("4.6.3", "a Java MIDP security domain that there is not", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(outside.certificate, attr(ck.CKA_JAVA_MIDP_SECURITY_DOMAIN, 4)))
	creates("4.6.3", "an empty certificate without a URL", ck.CKR_TEMPLATE_INCONSISTENT, with(without(outside.certificate, ck.CKA_VALUE), attr(ck.CKA_VALUE, "")))
	creates("4.6.3", "an empty certificate with a URL and hashes of the keys", ck.CKR_OK, with(without(outside.certificate, ck.CKA_VALUE), attr(ck.CKA_VALUE, ""), attr(ck.CKA_URL, "https://example.org/c"),
		attr(ck.CKA_HASH_OF_SUBJECT_PUBLIC_KEY, make([]byte, 20)), attr(ck.CKA_HASH_OF_ISSUER_PUBLIC_KEY, make([]byte, 20))))
	creates("4.6.3", "a URL without the hashes of the keys", ck.CKR_TEMPLATE_INCOMPLETE, with(outside.certificate, attr(ck.CKA_URL, "https://example.org/c")))
	creates("3.4", "a date", ck.CKR_OK, with(outside.certificate, attr(ck.CKA_START_DATE, "20261231")))
	creates("3.4", "an empty date", ck.CKR_OK, with(outside.certificate, attr(ck.CKA_START_DATE, "")))
	creates("3.4", "a date with letters", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(outside.certificate, attr(ck.CKA_START_DATE, "2026dec1")))
	creates("3.4", "a date of seven digits", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(outside.certificate, attr(ck.CKA_END_DATE, "2026123")))
	creates("3.4", "a date in month 13", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(outside.publicKey, attr(ck.CKA_END_DATE, "20261301")))
	creates("3.4", "a date on day 0", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(outside.publicKey, attr(ck.CKA_END_DATE, "20261200")))
	for _, x := range []struct {
		name string
		t    template
	}{{"public key", outside.publicKey}, {"private key", outside.privateKey}} {
		each := func(section, rule string, want rv, t template) {
			rows = append(rows, row{section, rule, x.name, want, func(e *env) rv { return e.call("C_CreateObject", e.s, t, new(uint)) }})
		}
		curve := func(params any) template {
			return with(without(x.t, ck.CKA_EC_PARAMS), attr(ck.CKA_EC_PARAMS, params))
		}
		each("4.7", "another type of key", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(without(x.t, ck.CKA_KEY_TYPE), attr(ck.CKA_KEY_TYPE, ck.CKK_DSA)))
		each("6.3", "the curve by its name", ck.CKR_OK, curve(append([]byte{0x13, 12}, "edwards25519"...)))
		each("6.3", "a curve that the token has not", ck.CKR_CURVE_NOT_SUPPORTED, curve([]byte{0x06, 0x03, 0x2b, 0x65, 0x71}))
		each("6.3", "parameters that name no curve: rubbish", ck.CKR_DOMAIN_PARAMS_INVALID, curve([]byte{1, 2, 3}))
		each("6.3", "parameters that name no curve: nothing", ck.CKR_DOMAIN_PARAMS_INVALID, curve([]byte{}))
		each("6.3", "parameters that name no curve: implicitlyCA", ck.CKR_DOMAIN_PARAMS_INVALID, curve([]byte{0x05, 0x00}))
		each("6.3", "parameters that name no curve: ecParameters", ck.CKR_DOMAIN_PARAMS_INVALID, curve([]byte{0x30, 0x03, 0x02, 0x01, 0x01}))
		each("4.7", "mechanisms that are no whole number of mechanisms", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(x.t, attr(ck.CKA_ALLOWED_MECHANISMS, []byte{1, 2, 3})))
		each("4.7", "mechanisms", ck.CKR_OK, with(x.t, attr(ck.CKA_ALLOWED_MECHANISMS, ul(ckmEdDSA))))
		each("4.8", "the right CKA_PUBLIC_KEY_INFO", ck.CKR_OK, with(x.t, attr(ckaPublicKeyInfo, append(bytes.Clone(spki), outside.pub...))))
	}
	wrong := attr(ckaPublicKeyInfo, append(bytes.Clone(spki), make([]byte, 32)...))
	creates("4.8", "a public key with another's CKA_PUBLIC_KEY_INFO", ck.CKR_TEMPLATE_INCONSISTENT, with(outside.publicKey, wrong))
	creates("4.9", "a private key with another's CKA_PUBLIC_KEY_INFO", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(outside.privateKey, wrong))
	creates("6.3.5", "a point that is none", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(without(outside.publicKey, ck.CKA_EC_POINT), attr(ck.CKA_EC_POINT, []byte{4, 2, 1, 1})))
	creates("6.3.5", "a point as raw bytes", ck.CKR_OK, with(without(outside.publicKey, ck.CKA_EC_POINT), attr(ck.CKA_EC_POINT, []byte(outside.pub))))
	creates("6.3.6", "a private value of 31 bytes", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(without(outside.privateKey, ck.CKA_VALUE), attr(ck.CKA_VALUE, make([]byte, 31))))
	creates("6.3.6", "a private value of 33 bytes", ck.CKR_ATTRIBUTE_VALUE_INVALID, with(without(outside.privateKey, ck.CKA_VALUE), attr(ck.CKA_VALUE, make([]byte, 33))))
	creates("4.8", "a trusted public key without the SO", ck.CKR_ATTRIBUTE_READ_ONLY, with(outside.publicKey, attr(ck.CKA_TRUSTED, true)))
	creates("4.9", "CKA_ALWAYS_AUTHENTICATE of a private key that is a private object", ck.CKR_OK, with(outside.privateKey, attr(ck.CKA_ALWAYS_AUTHENTICATE, true)))
	creates("4.9", "CKA_ALWAYS_AUTHENTICATE of a private key that is a public object", ck.CKR_TEMPLATE_INCONSISTENT, with(outside.privateKey, attr(ck.CKA_ALWAYS_AUTHENTICATE, true), attr(ck.CKA_PRIVATE, false)))
	creates("5.7.1", "a private data object", ck.CKR_OK, with(outside.data1, attr(ck.CKA_PRIVATE, true)))
	rows = append(rows,
		row{"4.4.1", "CKA_UNIQUE_ID of each new object is another", "", ck.CKR_OK, func(e *env) rv {
			seen := map[string]bool{}
			for range 5 {
				id := string(e.get(e.create(outside.data1), ckaUniqueID))
				e.check(id != "" && !seen[id], "%q", id)
				seen[id] = true
			}
			return ck.CKR_OK
		}},
		row{"4", "two objects with the same attributes", "", ck.CKR_OK, func(e *env) rv {
			a, b := e.create(outside.data1), e.create(outside.data1)
			e.check(a != b, "one handle for both")
			return ck.CKR_OK
		}},
		row{"4.6.2", "CKA_CHECK_VALUE of a certificate is the beginning of its SHA-1 hash", "", ck.CKR_OK, func(e *env) rv {
			sum := sha1.Sum(outside.der)
			got := e.get(e.f.obj["certificate"], ck.CKA_CHECK_VALUE)
			e.check(bytes.Equal(got, sum[:3]), "%x", got)
			return ck.CKR_OK
		}},
		row{"6.3.6", "an imported private key signs as the key does elsewhere", "", ck.CKR_OK, func(e *env) rv {
			sig := e.sign(e.create(outside.privateKey), message)
			e.check(bytes.Equal(sig, signature), "%x", sig)
			return ck.CKR_OK
		}},
	)
	return rows
}

// generateRows are the rows of C_GenerateKeyPair.
func generateRows() []row {
	params := template{attr(ck.CKA_EC_PARAMS, oid)}
	makes := func(section, rule string, want rv, m *p11tool.Mechanism, pub, priv template) row {
		return row{section, rule, "", want, func(e *env) rv {
			return e.call("C_GenerateKeyPair", e.s, m, pub, priv, new(uint), new(uint))
		}}
	}
	return []row{
		makes("5.18.2", "a key pair", ck.CKR_OK, mech(ckmEdwards), params, template{}),
		makes("5.18.2", "a key pair with NULL for an empty template", ck.CKR_OK, mech(ckmEdwards), params, nil),
		makes("5.18.2", "a mechanism that makes no key pairs", ck.CKR_MECHANISM_INVALID, mech(ck.CKM_SHA256), params, template{}),
		makes("5.18.2", "a mechanism that is not there", ck.CKR_MECHANISM_INVALID, mech(ck.CKM_RSA_PKCS_KEY_PAIR_GEN), params, template{}),
		makes("5.18.2", "a mechanism comes before a template", ck.CKR_MECHANISM_INVALID, mech(ck.CKM_RSA_PKCS_KEY_PAIR_GEN), template{attr(0x80000001, "x")}, template{}),
		makes("5.18.2", "a parameter comes before a template", ck.CKR_MECHANISM_PARAM_INVALID, &p11tool.Mechanism{Type: ckmEdwards, Param: []byte{1}}, template{attr(0x80000001, "x")}, template{}),
		makes("6.3.5", "a public template without CKA_EC_PARAMS", ck.CKR_TEMPLATE_INCOMPLETE, mech(ckmEdwards), template{}, template{}),
		makes("6.3", "a curve that the token has not", ck.CKR_CURVE_NOT_SUPPORTED, mech(ckmEdwards), template{attr(ck.CKA_EC_PARAMS, []byte{0x06, 0x03, 0x2b, 0x65, 0x71})}, template{}),
		makes("5.18.2", "class and type of the keys, as the mechanism has them", ck.CKR_OK, mech(ckmEdwards),
			with(params, attr(ck.CKA_CLASS, ck.CKO_PUBLIC_KEY), attr(ck.CKA_KEY_TYPE, ckkECEdwards)), template{attr(ck.CKA_CLASS, ck.CKO_PRIVATE_KEY), attr(ck.CKA_KEY_TYPE, ckkECEdwards)}),
		makes("5.18.2", "another class in the public template", ck.CKR_TEMPLATE_INCONSISTENT, mech(ckmEdwards), with(params, attr(ck.CKA_CLASS, ck.CKO_PRIVATE_KEY)), template{}),
		makes("5.18.2", "another class in the private template", ck.CKR_TEMPLATE_INCONSISTENT, mech(ckmEdwards), params, template{attr(ck.CKA_CLASS, ck.CKO_PUBLIC_KEY)}),
		makes("5.18.2", "another type of keys", ck.CKR_TEMPLATE_INCONSISTENT, mech(ckmEdwards), params, template{attr(ck.CKA_KEY_TYPE, ck.CKK_RSA)}),
		makes("4.1.1", "an unknown attribute in the public template", ck.CKR_ATTRIBUTE_TYPE_INVALID, mech(ckmEdwards), with(params, attr(0x80000001, "x")), template{}),
		makes("4.1.1", "an unknown attribute in the private template", ck.CKR_ATTRIBUTE_TYPE_INVALID, mech(ckmEdwards), params, template{attr(0x80000001, "x")}),
		makes("4.1.1", "an attribute of other objects in the private template", ck.CKR_TEMPLATE_INCONSISTENT, mech(ckmEdwards), params, template{attr(ck.CKA_MODULUS_BITS, 2048)}),
		makes("6.3.5", "CKA_EC_POINT must not be in the template", ck.CKR_ATTRIBUTE_READ_ONLY, mech(ckmEdwards), with(params, attr(ck.CKA_EC_POINT, []byte(outside.pub))), template{}),
		makes("6.3.6", "CKA_VALUE must not be in the template", ck.CKR_ATTRIBUTE_READ_ONLY, mech(ckmEdwards), params, template{attr(ck.CKA_VALUE, outside.seed)}),
		makes("4.7", "CKA_LOCAL must not be in the template", ck.CKR_ATTRIBUTE_READ_ONLY, mech(ckmEdwards), with(params, attr(ck.CKA_LOCAL, true)), template{}),
		makes("4.9", "CKA_ALWAYS_SENSITIVE must not be in the template", ck.CKR_ATTRIBUTE_READ_ONLY, mech(ckmEdwards), params, template{attr(ck.CKA_ALWAYS_SENSITIVE, true)}),
		makes("4.9", "CKA_NEVER_EXTRACTABLE must not be in the template", ck.CKR_ATTRIBUTE_READ_ONLY, mech(ckmEdwards), params, template{attr(ck.CKA_NEVER_EXTRACTABLE, true)}),
		makes("4.9", "CKA_ALWAYS_AUTHENTICATE of a public object", ck.CKR_TEMPLATE_INCONSISTENT, mech(ckmEdwards), params, template{attr(ck.CKA_ALWAYS_AUTHENTICATE, true), attr(ck.CKA_PRIVATE, false)}),
		{"5.18.2", "C_GenerateKeyPair without a mechanism", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv {
			return e.call("C_GenerateKeyPair", e.s, nil, params, template{}, new(uint), new(uint))
		}},
		{"5.18.2", "C_GenerateKeyPair without a place for the public key", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv {
			return e.call("C_GenerateKeyPair", e.s, mech(ckmEdwards), params, template{}, nil, new(uint))
		}},
		{"5.18.2", "C_GenerateKeyPair without a place for the private key", "", ck.CKR_ARGUMENTS_BAD, func(e *env) rv {
			return e.call("C_GenerateKeyPair", e.s, mech(ckmEdwards), params, template{}, new(uint), nil)
		}},
		{"5.18.2", "a failure makes neither key", "", ck.CKR_ATTRIBUTE_TYPE_INVALID, func(e *env) rv {
			before := len(e.findAll(e.s, nil))
			r := e.call("C_GenerateKeyPair", e.s, mech(ckmEdwards), params, template{attr(0x80000001, "x")}, new(uint), new(uint))
			e.check(len(e.findAll(e.s, nil)) == before, "an object was made")
			return r
		}},
		{"5.18.2", "the halves of a pair belong together", "", ck.CKR_OK, func(e *env) rv {
			var pub, priv uint
			r := e.call("C_GenerateKeyPair", e.s, mech(ckmEdwards), params, template{}, &pub, &priv)
			point := e.get(pub, ck.CKA_EC_POINT)
			e.check(ed25519.Verify(point[2:], message, e.sign(priv, message)), "the public key is another's")
			e.check(bytes.Equal(e.get(pub, ck.CKA_ID), e.get(priv, ck.CKA_ID)) && len(e.get(pub, ck.CKA_ID)) == 32, "CKA_ID")
			e.check(bytes.Equal(e.get(priv, ckaPublicKeyInfo), append(bytes.Clone(spki), point[2:]...)), "CKA_PUBLIC_KEY_INFO")
			return r
		}},
	}
}
