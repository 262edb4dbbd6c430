package p11tool

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/miekg/pkcs11"
)

func init() {
	workers["count"] = func(args []string) error {
		c, s, err := loginWorker("test token")
		if err != nil {
			return err
		}
		found, err := find(c, s, attr(pkcs11.CKA_LABEL, args[0]))
		fmt.Println(len(found))
		return err
	}
}

// certificate makes a self-signed certificate.
func certificate(t *testing.T) (*x509.Certificate, ed25519.PrivateKey) {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	template := &x509.Certificate{SerialNumber: big.NewInt(0x1234567), Subject: pkix.Name{CommonName: "icn node"},
		NotBefore: time.Unix(1e9, 0), NotAfter: time.Unix(4e9, 0)}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	ok(t, "certificate", err)
	cert, err := x509.ParseCertificate(der)
	ok(t, "certificate", err)
	return cert, key
}

func certTemplate(t *testing.T, cert *x509.Certificate, token bool, more ...*pkcs11.Attribute) []*pkcs11.Attribute {
	serial, err := asn1.Marshal(cert.SerialNumber)
	ok(t, "serial", err)
	return append([]*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE), attr(pkcs11.CKA_CERTIFICATE_TYPE, pkcs11.CKC_X_509),
		attr(pkcs11.CKA_TOKEN, token), attr(pkcs11.CKA_SUBJECT, cert.RawSubject), attr(pkcs11.CKA_ISSUER, cert.RawIssuer),
		attr(pkcs11.CKA_SERIAL_NUMBER, serial), attr(pkcs11.CKA_VALUE, cert.Raw)}, more...)
}

// TestObjects makes one of each kind, in the token and in the session, and
// reads each back here and, where it is in the token, in another process.
func TestObjects(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		c := newToken(t)
		cert, key := certificate(t)
		pub := key.Public().(ed25519.PublicKey)
		for _, token := range []bool{true, false} {
			label := fmt.Sprintf("token %v", token)
			l := attr(pkcs11.CKA_LABEL, label)
			priv := c.create(privateTemplate(key.Seed(), token, l))
			public := c.create(publicTemplate(derPoint(pub), token, l))
			crt := c.create(certTemplate(t, cert, token, l))
			data := c.create(dataTemplate(label, []byte("data \x00\xff"), token, false))
			secret := c.create(dataTemplate(label, bytes.Repeat([]byte("long"), 5000), token, true))
			equal(t, "data", c.get(data, pkcs11.CKA_VALUE), []byte("data \x00\xff"))
			equal(t, "data", c.get(data, pkcs11.CKA_APPLICATION), []byte("p11tool"))
			equal(t, "private data", c.get(secret, pkcs11.CKA_VALUE), bytes.Repeat([]byte("long"), 5000))
			equal(t, "certificate", c.get(crt, pkcs11.CKA_VALUE), cert.Raw)
			equal(t, "certificate's subject", c.get(crt, pkcs11.CKA_SUBJECT), cert.RawSubject)
			ok(t, "sign", signChecked(c.Ctx, c.s, priv, pub, []byte("imported")))
			for _, o := range []pkcs11.ObjectHandle{priv, public, crt, data, secret} {
				if _, err := c.GetObjectSize(c.s, o); err != nil {
					t.Errorf("C_GetObjectSize: %v", err)
				}
				b := []byte{0}
				if token {
					b[0] = 1
				}
				equal(t, "CKA_TOKEN", c.get(o, pkcs11.CKA_TOKEN), b)
			}
			for _, q := range []struct {
				what     string
				template []*pkcs11.Attribute
				want     []pkcs11.ObjectHandle
			}{
				{"label", []*pkcs11.Attribute{l}, []pkcs11.ObjectHandle{priv, public, crt, data, secret}},
				{"label and class", []*pkcs11.Attribute{l, attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)}, []pkcs11.ObjectHandle{priv}},
				{"label and id", []*pkcs11.Attribute{l, attr(pkcs11.CKA_ID, []byte(pub))}, []pkcs11.ObjectHandle{priv, public}},
				{"class, id and SIGN", []*pkcs11.Attribute{l, attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), attr(pkcs11.CKA_ID, []byte(pub)), attr(pkcs11.CKA_SIGN, true)}, []pkcs11.ObjectHandle{priv}},
				{"certificate type", []*pkcs11.Attribute{l, attr(pkcs11.CKA_CERTIFICATE_TYPE, pkcs11.CKC_X_509)}, []pkcs11.ObjectHandle{crt}},
				{"value of data", []*pkcs11.Attribute{l, attr(pkcs11.CKA_VALUE, []byte("data \x00\xff"))}, []pkcs11.ObjectHandle{data}},
				{"private", []*pkcs11.Attribute{l, attr(pkcs11.CKA_PRIVATE, true)}, []pkcs11.ObjectHandle{priv, secret}},
				{"CKO_PROFILE", []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, 9), l}, nil},
				{"a vendor's class", []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, uint(0x80000123))}, nil},
				{"an unknown attribute", []*pkcs11.Attribute{attr(0x80001234, []byte("x"))}, nil},
				{"a value that is secret", []*pkcs11.Attribute{attr(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), attr(pkcs11.CKA_VALUE, key.Seed())}, nil},
			} {
				got := c.find(q.template...)
				slices.Sort(got)
				slices.Sort(q.want)
				if q.what == "label and id" {
					// A certificate's CKA_ID has no default; one that follows the key is allowed.
					got = slices.DeleteFunc(got, func(o pkcs11.ObjectHandle) bool { return o == crt })
				}
				if !slices.Equal(got, q.want) {
					t.Errorf("find by %s: %v, want %v", q.what, got, q.want)
				}
			}
		}
		if got := runWorker(t, "count", "token true"); got != "5" {
			t.Errorf("another process finds %s token objects, want 5", got)
		}
		if got := runWorker(t, "count", "token false"); got != "0" {
			t.Errorf("another process finds %s session objects", got)
		}

		ok(t, "C_Logout", c.Logout(c.s))
		for _, o := range c.find() {
			if c.get(o, pkcs11.CKA_PRIVATE)[0] != 0 {
				t.Errorf("private object %d is visible without a login", o)
			}
		}
		if n := len(c.find(attr(pkcs11.CKA_LABEL, "token true"))); n != 3 {
			t.Errorf("%d public token objects are visible without a login, want 3", n)
		}
		_, err := c.CreateObject(c.s, dataTemplate("x", []byte("x"), true, true))
		want(t, "C_CreateObject of a private object without a login", err, pkcs11.CKR_USER_NOT_LOGGED_IN)
		ro := c.open(openRO)
		_, err = c.CreateObject(ro, dataTemplate("x", []byte("x"), true, false))
		want(t, "C_CreateObject of a token object in a RO session", err, pkcs11.CKR_SESSION_READ_ONLY)

		// Only its owner may enter the store.
		err = filepath.WalkDir(p.store(), func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			i, err := d.Info()
			if err != nil {
				return err
			}
			mode := os.FileMode(0o600)
			if d.IsDir() {
				mode = 0o700
			}
			if i.Mode().Perm() != mode {
				t.Errorf("%s has mode %v", path, i.Mode())
			}
			return nil
		})
		ok(t, "walk", err)
	})
}

// TestSetAttribute changes what may be changed, durably, and nothing else.
func TestSetAttribute(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		pub, priv := c.generate("before", true)
		for _, o := range []pkcs11.ObjectHandle{pub, priv} {
			ok(t, "C_SetAttributeValue", c.SetAttributeValue(c.s, o, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, "after"), attr(pkcs11.CKA_ID, []byte{1, 2, 3})}))
			equal(t, "label", c.get(o, pkcs11.CKA_LABEL), []byte("after"))
			equal(t, "id", c.get(o, pkcs11.CKA_ID), []byte{1, 2, 3})
		}
		if got := runWorker(t, "count", "after"); got != "2" {
			t.Errorf("another process finds %s objects by the new label", got)
		}
		readOnly := []uint{pkcs11.CKR_ATTRIBUTE_READ_ONLY}
		for _, x := range []struct {
			what  string
			o     pkcs11.ObjectHandle
			a     *pkcs11.Attribute
			codes []uint
		}{
			{"CKA_CLASS", priv, attr(pkcs11.CKA_CLASS, pkcs11.CKO_DATA), readOnly},
			{"CKA_KEY_TYPE", priv, attr(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_RSA), readOnly},
			{"CKA_SENSITIVE to false", priv, attr(pkcs11.CKA_SENSITIVE, false), readOnly},
			{"CKA_EXTRACTABLE to true", priv, attr(pkcs11.CKA_EXTRACTABLE, true), readOnly},
			{"CKA_VALUE", priv, attr(pkcs11.CKA_VALUE, make([]byte, 32)), readOnly},
			{"CKA_LOCAL", priv, attr(pkcs11.CKA_LOCAL, false), readOnly},
			{"CKA_EC_PARAMS", pub, attr(pkcs11.CKA_EC_PARAMS, oid), readOnly},
			{"CKA_EC_POINT", pub, attr(pkcs11.CKA_EC_POINT, make([]byte, 32)), readOnly},
			{"CKA_TOKEN", pub, attr(pkcs11.CKA_TOKEN, false), readOnly},
			{"CKA_PRIVATE", priv, attr(pkcs11.CKA_PRIVATE, false), readOnly},
			{"an attribute of another class", pub, attr(pkcs11.CKA_SERIAL_NUMBER, []byte{2, 1, 1}), []uint{pkcs11.CKR_ATTRIBUTE_TYPE_INVALID, pkcs11.CKR_TEMPLATE_INCONSISTENT}},
			{"a flag of two bytes", priv, attr(pkcs11.CKA_SIGN, []byte{1, 1}), []uint{pkcs11.CKR_ATTRIBUTE_VALUE_INVALID, pkcs11.CKR_ATTRIBUTE_READ_ONLY}},
		} {
			want(t, "C_SetAttributeValue of "+x.what, c.SetAttributeValue(c.s, x.o, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, "half"), x.a}), x.codes...)
			// All of a template or nothing (section 4.1.1).
			equal(t, "label after a refused change", c.get(x.o, pkcs11.CKA_LABEL), []byte("after"))
		}
		ro := c.open(openRO)
		want(t, "C_SetAttributeValue of a token object in a RO session", c.SetAttributeValue(ro, priv, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, "x")}), pkcs11.CKR_SESSION_READ_ONLY)
		want(t, "C_DestroyObject of a token object in a RO session", c.DestroyObject(ro, priv), pkcs11.CKR_SESSION_READ_ONLY)

		fixed := c.create(dataTemplate("fixed", []byte("x"), false, false, attr(pkcs11.CKA_MODIFIABLE, false), attr(pkcs11.CKA_COPYABLE, false), attr(pkcs11.CKA_DESTROYABLE, false)))
		want(t, "C_SetAttributeValue of what is not modifiable", c.SetAttributeValue(c.s, fixed, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, "x")}), pkcs11.CKR_ACTION_PROHIBITED)
		_, err := c.CopyObject(c.s, fixed, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, "copy")})
		want(t, "C_CopyObject of what is not copyable", err, pkcs11.CKR_ACTION_PROHIBITED)
		want(t, "C_DestroyObject of what is not destroyable", c.DestroyObject(c.s, fixed), pkcs11.CKR_ACTION_PROHIBITED)

		ok(t, "C_DestroyObject", c.DestroyObject(c.s, priv))
		want(t, "C_DestroyObject twice", c.DestroyObject(c.s, priv), pkcs11.CKR_OBJECT_HANDLE_INVALID)
		if got := runWorker(t, "count", "after"); got != "1" {
			t.Errorf("another process finds %s objects after C_DestroyObject", got)
		}
	})
}

// TestGetAttributes checks the answer for each entry of a mixed template
// (section 5.7.5).
func TestGetAttributes(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		r := raw(t)
		pub, priv := c.generate("mixed", true)
		v := []Value{
			{Type: pkcs11.CKA_LABEL, Room: 64},
			{Type: pkcs11.CKA_VALUE, Room: 64},
			{Type: pkcs11.CKA_ID, Room: 31},
			{Type: pkcs11.CKA_MODULUS, Room: 64},
			{Type: pkcs11.CKA_EC_PARAMS, Room: -1},
			{Type: pkcs11.CKA_EC_PARAMS, Room: 5},
		}
		rv := r.GetAttributes(uint(c.s), uint(priv), v)
		if rv != pkcs11.CKR_ATTRIBUTE_SENSITIVE && rv != pkcs11.CKR_ATTRIBUTE_TYPE_INVALID && rv != pkcs11.CKR_BUFFER_TOO_SMALL {
			t.Errorf("C_GetAttributeValue of a mixed template: rv %#x", rv)
		}
		equal(t, "label", v[0].Data, []byte("mixed"))
		equal(t, "params", v[5].Data, oid)
		for i, n := range []uint{5, Unavailable, Unavailable, Unavailable, 5, 5} {
			if v[i].Len != n {
				t.Errorf("entry %d has length %d, want %d", i, v[i].Len, n)
			}
		}
		for _, x := range []struct {
			typ  uint
			room int
			rv   uint
		}{
			{pkcs11.CKA_VALUE, -1, pkcs11.CKR_ATTRIBUTE_SENSITIVE},
			{pkcs11.CKA_VALUE, 64, pkcs11.CKR_ATTRIBUTE_SENSITIVE},
			{pkcs11.CKA_MODULUS, -1, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID},
			{0x80004321, 8, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID},
			{pkcs11.CKA_ID, 31, pkcs11.CKR_BUFFER_TOO_SMALL},
			{pkcs11.CKA_ID, 0, pkcs11.CKR_BUFFER_TOO_SMALL},
			{pkcs11.CKA_ID, 32, pkcs11.CKR_OK},
		} {
			v := []Value{{Type: x.typ, Room: x.room}}
			if rv := r.GetAttributes(uint(c.s), uint(priv), v); rv != x.rv {
				t.Errorf("attribute %#x with room %d: rv %#x, want %#x", x.typ, x.room, rv, x.rv)
			}
			if x.rv != pkcs11.CKR_OK && v[0].Len != Unavailable {
				t.Errorf("attribute %#x with room %d: length %d", x.typ, x.room, v[0].Len)
			}
		}

		// What clients ask of keys; clients warn of each that is missing.
		common := []uint{pkcs11.CKA_CLASS, pkcs11.CKA_KEY_TYPE, pkcs11.CKA_ID, pkcs11.CKA_LABEL, pkcs11.CKA_TOKEN, pkcs11.CKA_PRIVATE,
			pkcs11.CKA_COPYABLE, pkcs11.CKA_MODIFIABLE, pkcs11.CKA_DESTROYABLE, pkcs11.CKA_LOCAL, pkcs11.CKA_EC_PARAMS, pkcs11.CKA_EC_POINT,
			pkcs11.CKA_DERIVE, pkcs11.CKA_PUBLIC_KEY_INFO, ckaUniqueID, pkcs11.CKA_KEY_GEN_MECHANISM, pkcs11.CKA_SUBJECT,
			pkcs11.CKA_START_DATE, pkcs11.CKA_END_DATE}
		for o, more := range map[pkcs11.ObjectHandle][]uint{
			pub: {pkcs11.CKA_VERIFY, pkcs11.CKA_VERIFY_RECOVER, pkcs11.CKA_ENCRYPT, pkcs11.CKA_WRAP, pkcs11.CKA_TRUSTED},
			priv: {pkcs11.CKA_SIGN, pkcs11.CKA_SIGN_RECOVER, pkcs11.CKA_DECRYPT, pkcs11.CKA_UNWRAP, pkcs11.CKA_SENSITIVE, pkcs11.CKA_ALWAYS_SENSITIVE,
				pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_NEVER_EXTRACTABLE, pkcs11.CKA_ALWAYS_AUTHENTICATE, pkcs11.CKA_WRAP_WITH_TRUSTED},
		} {
			for _, typ := range append(slices.Clone(common), more...) {
				if rv := r.GetAttributes(uint(c.s), uint(o), []Value{{Type: typ, Room: -1}}); rv != pkcs11.CKR_OK {
					t.Errorf("attribute %#x of object %d: rv %#x", typ, o, rv)
				}
			}
		}
		yes, no := []byte{1}, []byte{0}
		for typ, w := range map[uint][]byte{pkcs11.CKA_SENSITIVE: yes, pkcs11.CKA_ALWAYS_SENSITIVE: yes, pkcs11.CKA_EXTRACTABLE: no,
			pkcs11.CKA_NEVER_EXTRACTABLE: yes, pkcs11.CKA_LOCAL: yes, pkcs11.CKA_PRIVATE: yes, pkcs11.CKA_SIGN: yes, pkcs11.CKA_ALWAYS_AUTHENTICATE: no} {
			equal(t, fmt.Sprintf("attribute %#x of a generated private key", typ), c.get(priv, typ), w)
		}
		imported := c.create(privateTemplate(bytes.Repeat([]byte{9}, 32), false))
		for typ, w := range map[uint][]byte{pkcs11.CKA_ALWAYS_SENSITIVE: no, pkcs11.CKA_NEVER_EXTRACTABLE: no, pkcs11.CKA_LOCAL: no} {
			equal(t, fmt.Sprintf("attribute %#x of an imported private key", typ), c.get(imported, typ), w)
		}

		// A private value never comes back, whatever the template wished.
		seed := bytes.Repeat([]byte{11}, 32)
		template := privateTemplate(seed, false)
		for _, a := range template {
			switch a.Type {
			case pkcs11.CKA_SENSITIVE:
				a.Value = no
			case pkcs11.CKA_EXTRACTABLE:
				a.Value = yes
			}
		}
		if o, err := c.CreateObject(c.s, template); err == nil {
			v := []Value{{Type: pkcs11.CKA_VALUE, Room: 64}}
			if rv := r.GetAttributes(uint(c.s), uint(o), v); rv != pkcs11.CKR_ATTRIBUTE_SENSITIVE || len(v[0].Data) != 0 {
				t.Errorf("CKA_VALUE of a key that was imported as extractable: rv %#x, %x", rv, v[0].Data)
			}
		}
	})
}

// TestCopy copies objects, as pkcs11-provider does before it signs.
func TestCopy(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		pub, priv := c.generate("original", true)
		key, err := point(c.Ctx, c.s, pub)
		ok(t, "public key", err)
		ro := c.open(openRO)
		dup, err := c.CopyObject(ro, priv, []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, false), attr(pkcs11.CKA_LABEL, "copy")})
		ok(t, "C_CopyObject to a session object in a RO session", err)
		equal(t, "CKA_TOKEN", c.get(dup, pkcs11.CKA_TOKEN), []byte{0})
		equal(t, "CKA_LABEL", c.get(dup, pkcs11.CKA_LABEL), []byte("copy"))
		equal(t, "CKA_EC_POINT", c.get(dup, pkcs11.CKA_EC_POINT), derPoint(key))
		ok(t, "sign with the copy", signChecked(c.Ctx, ro, dup, key, []byte("copy")))
		want(t, "CKA_VALUE of the copy", func() error {
			_, err := c.GetAttributeValue(ro, dup, []*pkcs11.Attribute{attr(pkcs11.CKA_VALUE, nil)})
			return err
		}(), pkcs11.CKR_ATTRIBUTE_SENSITIVE)
		ok(t, "C_DestroyObject of the copy", c.DestroyObject(ro, dup))
		ok(t, "sign with the original", signChecked(c.Ctx, ro, priv, key, []byte("original")))

		_, err = c.CopyObject(ro, priv, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, "copy")})
		want(t, "C_CopyObject to a token object in a RO session", err, pkcs11.CKR_SESSION_READ_ONLY)
		for what, a := range map[string]*pkcs11.Attribute{
			"CKA_SENSITIVE":   attr(pkcs11.CKA_SENSITIVE, false),
			"CKA_EXTRACTABLE": attr(pkcs11.CKA_EXTRACTABLE, true),
			"CKA_EC_PARAMS":   attr(pkcs11.CKA_EC_PARAMS, []byte{6, 1, 0}),
		} {
			_, err = c.CopyObject(c.s, priv, []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, false), a})
			want(t, "C_CopyObject that changes "+what, err, pkcs11.CKR_ATTRIBUTE_READ_ONLY, pkcs11.CKR_TEMPLATE_INCONSISTENT)
		}

		// Token to token: the copy has a life of its own.
		twin, err := c.CopyObject(c.s, priv, []*pkcs11.Attribute{attr(pkcs11.CKA_LABEL, "twin")})
		ok(t, "C_CopyObject to a token object", err)
		ok(t, "C_DestroyObject of the original", c.DestroyObject(c.s, priv))
		ok(t, "sign with the twin", signChecked(c.Ctx, c.s, twin, key, []byte("twin")))
		if got := runWorker(t, "count", "twin"); got != "1" {
			t.Errorf("another process finds %s twins", got)
		}
		// Session to token.
		note := c.create(dataTemplate("note", []byte("text"), false, true))
		kept, err := c.CopyObject(c.s, note, []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_LABEL, "kept")})
		ok(t, "C_CopyObject of a session object to the token", err)
		equal(t, "value", c.get(kept, pkcs11.CKA_VALUE), []byte("text"))
		if got := runWorker(t, "count", "kept"); got != "1" {
			t.Errorf("another process finds %s kept notes", got)
		}
	})
}

// TestFindOperation is the state machine of a search.
func TestFindOperation(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, _ *place) {
		c := newToken(t)
		for i := range 10 {
			c.create(dataTemplate(fmt.Sprint(i), []byte("x"), i%2 == 0, false))
		}
		_, _, err := c.FindObjects(c.s, 1)
		want(t, "C_FindObjects without a search", err, pkcs11.CKR_OPERATION_NOT_INITIALIZED)
		want(t, "C_FindObjectsFinal without a search", c.FindObjectsFinal(c.s), pkcs11.CKR_OPERATION_NOT_INITIALIZED)
		ok(t, "C_FindObjectsInit", c.FindObjectsInit(c.s, nil))
		want(t, "C_FindObjectsInit twice", c.FindObjectsInit(c.s, nil), pkcs11.CKR_OPERATION_ACTIVE)
		seen := map[pkcs11.ObjectHandle]bool{}
		for _, n := range []int{3, 1, 5, 5} {
			o, _, err := c.FindObjects(c.s, n)
			ok(t, "C_FindObjects", err)
			for _, o := range o {
				seen[o] = true
			}
		}
		if len(seen) != 10 {
			t.Errorf("found %d different objects, want 10", len(seen))
		}
		ok(t, "C_FindObjectsFinal", c.FindObjectsFinal(c.s))
		for range 3 {
			for _, o := range c.find() {
				if !seen[o] {
					t.Errorf("handle %d is new", o)
				}
			}
		}
	})
}

// TestCopyKeepsRestrictions: a copy is not freer than its original.
func TestCopyKeepsRestrictions(t *testing.T) {
	isolated(t, setup{}, func(t *testing.T, p *place) {
		c := newToken(t)
		eddsa := make([]byte, 8)
		binary.NativeEndian.PutUint64(eddsa, ckmEdDSA)
		private := func(more ...*pkcs11.Attribute) []*pkcs11.Attribute {
			return append([]*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_SIGN, true)}, more...)
		}
		public := []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, true), attr(pkcs11.CKA_EC_PARAMS, oid)}
		_, key, err := c.GenerateKeyPair(c.s, mech(ckmEdwards), public,
			private(attr(pkcs11.CKA_ALWAYS_AUTHENTICATE, true), attr(pkcs11.CKA_ALLOWED_MECHANISMS, eddsa)))
		ok(t, "C_GenerateKeyPair", err)
		for what, a := range map[string]*pkcs11.Attribute{
			"CKA_ALWAYS_AUTHENTICATE": attr(pkcs11.CKA_ALWAYS_AUTHENTICATE, false),
			"CKA_ALLOWED_MECHANISMS":  attr(pkcs11.CKA_ALLOWED_MECHANISMS, []byte{}),
		} {
			for _, token := range []bool{true, false} {
				_, err := c.CopyObject(c.s, key, []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, token), a})
				want(t, "C_CopyObject that changes "+what, err, pkcs11.CKR_ATTRIBUTE_READ_ONLY)
			}
		}
		dup, err := c.CopyObject(c.s, key, []*pkcs11.Attribute{attr(pkcs11.CKA_TOKEN, false)})
		ok(t, "C_CopyObject", err)
		ok(t, "C_SignInit", c.SignInit(c.s, mech(ckmEdDSA), dup))
		_, err = c.Sign(c.s, []byte("m"))
		want(t, "C_Sign with the copy", err, pkcs11.CKR_USER_NOT_LOGGED_IN)

		_, _, err = c.GenerateKeyPair(c.s, mech(ckmEdwards), public,
			private(attr(pkcs11.CKA_ALWAYS_AUTHENTICATE, true), attr(pkcs11.CKA_PRIVATE, false)))
		want(t, "a public object that asks for the PIN", err, pkcs11.CKR_TEMPLATE_INCONSISTENT)
	})
}
