package conformance

import (
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"time"

	ck "github.com/miekg/pkcs11"
)

// oid is the DER of 1.3.101.112, id-Ed25519 (RFC 8410, section 3).
var oid = []byte{0x06, 0x03, 0x2b, 0x65, 0x70}

// spki is what stands before the public key in its SubjectPublicKeyInfo.
var spki = []byte{0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00}

// outside is a key pair that the tests know, with a certificate of it.
var outside = func() (o struct {
	key                                       ed25519.PrivateKey
	seed, pub, der, subject, issuer, serial   []byte
	publicKey, privateKey, certificate, data1 template
}) {
	o.seed = []byte(strings.Repeat("seed", 8))
	o.key = ed25519.NewKeyFromSeed(o.seed)
	o.pub = o.key.Public().(ed25519.PublicKey)
	t := &x509.Certificate{SerialNumber: big.NewInt(0x1234567), Subject: pkix.Name{CommonName: "conformance"},
		NotBefore: time.Unix(1e9, 0), NotAfter: time.Unix(4e9, 0)}
	der, err := x509.CreateCertificate(nil, t, t, o.key.Public(), o.key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	o.der, o.subject, o.issuer = der, cert.RawSubject, cert.RawIssuer
	if o.serial, err = asn1.Marshal(cert.SerialNumber); err != nil {
		panic(err)
	}
	o.publicKey = template{attr(ck.CKA_CLASS, ck.CKO_PUBLIC_KEY), attr(ck.CKA_KEY_TYPE, ckkECEdwards),
		attr(ck.CKA_EC_PARAMS, oid), attr(ck.CKA_EC_POINT, append([]byte{4, 32}, o.pub...))}
	o.privateKey = template{attr(ck.CKA_CLASS, ck.CKO_PRIVATE_KEY), attr(ck.CKA_KEY_TYPE, ckkECEdwards),
		attr(ck.CKA_EC_PARAMS, oid), attr(ck.CKA_VALUE, o.seed)}
	o.certificate = template{attr(ck.CKA_CLASS, ck.CKO_CERTIFICATE), attr(ck.CKA_CERTIFICATE_TYPE, ck.CKC_X_509),
		attr(ck.CKA_SUBJECT, o.subject), attr(ck.CKA_VALUE, o.der)}
	o.data1 = template{attr(ck.CKA_CLASS, ck.CKO_DATA)}
	return o
}()

// message is what is signed where it does not matter, and signature its
// signature by the key pair that the tests know.
var (
	message   = []byte("any message")
	signature = ed25519.Sign(outside.key, message)
)

// fixtures are the objects of the first token, by label.
var fixtures = []struct {
	label     string
	mech      uint     // that makes a pair; CKM_EC_EDWARDS_KEY_PAIR_GEN
	pub, priv template // of a pair
	object    template // of anything else
}{
	{label: "pair"},
	{label: "useless", pub: template{attr(ck.CKA_VERIFY, false)}, priv: template{attr(ck.CKA_SIGN, false)}},
	{label: "for others", pub: template{attr(ck.CKA_ALLOWED_MECHANISMS, ul(ck.CKM_SHA256))}, priv: template{attr(ck.CKA_ALLOWED_MECHANISMS, ul(ck.CKM_SHA256))}},
	{label: "allowed", pub: template{attr(ck.CKA_ALLOWED_MECHANISMS, append(ul(ck.CKM_SHA256), ul(ckmEdDSA)...))}, priv: template{attr(ck.CKA_ALLOWED_MECHANISMS, ul(ckmEdDSA))}},
	{label: "always", priv: template{attr(ck.CKA_ALWAYS_AUTHENTICATE, true)}},
	{label: "P-256", mech: ck.CKM_EC_KEY_PAIR_GEN, pub: template{attr(ck.CKA_EC_PARAMS, curves[0].oid)}},
	{label: "P-384", mech: ck.CKM_EC_KEY_PAIR_GEN, pub: template{attr(ck.CKA_EC_PARAMS, curves[1].oid)}},
	{label: "P-256 always", mech: ck.CKM_EC_KEY_PAIR_GEN, pub: template{attr(ck.CKA_EC_PARAMS, curves[0].oid)}, priv: template{attr(ck.CKA_ALWAYS_AUTHENTICATE, true)}},
	{label: "X25519", mech: ckmMontgomery, pub: template{attr(ck.CKA_EC_PARAMS, x25519OID)}},
	{label: "data", object: template{attr(ck.CKA_CLASS, ck.CKO_DATA), attr(ck.CKA_PRIVATE, false), attr(ck.CKA_APPLICATION, "conformance"), attr(ck.CKA_VALUE, "public")}},
	{label: "secret", object: template{attr(ck.CKA_CLASS, ck.CKO_DATA), attr(ck.CKA_PRIVATE, true), attr(ck.CKA_VALUE, "private")}},
	{label: "fixed", object: template{attr(ck.CKA_CLASS, ck.CKO_DATA), attr(ck.CKA_MODIFIABLE, false), attr(ck.CKA_COPYABLE, false), attr(ck.CKA_DESTROYABLE, false)}},
	{label: "certificate", object: with(outside.certificate, attr(ck.CKA_ID, "cert id"), attr(ck.CKA_ISSUER, outside.issuer), attr(ck.CKA_SERIAL_NUMBER, outside.serial))},
	{label: "outside", object: with(outside.publicKey, attr(ck.CKA_ID, "cert id"))},
}

// make makes the tokens and the objects.
func (f *fixture) make(e *env) {
	slot := func(name string) (slot uint) {
		var n uint
		e.ok("C_GetSlotList", true, nil, &n)
		slots := make(words, n)
		e.ok("C_GetSlotList", true, slots, &n)
		slot = slots[n-1]
		e.ok("C_InitToken", slot, in(soPIN), label(name))
		return slot
	}
	f.token, f.fresh, f.prot = slot("conformance"), slot("fresh"), slot("protected")
	var s uint
	for _, slot := range []uint{f.token, f.prot} {
		e.ok("C_OpenSession", slot, rw, nil, nil, &s)
		e.ok("C_Login", s, ck.CKU_SO, in(soPIN))
		e.ok("C_InitPIN", s, in(userPIN))
		e.ok("C_CloseSession", s)
	}
	e.ok("C_OpenSession", f.token, rw, nil, nil, &s)
	e.ok("C_Login", s, ck.CKU_USER, in(userPIN))
	for _, x := range fixtures {
		common := template{attr(ck.CKA_TOKEN, true), attr(ck.CKA_LABEL, x.label)}
		if x.object != nil {
			var o uint
			e.ok("C_CreateObject", s, with(x.object, common...), &o)
			continue
		}
		var pub, priv uint
		m, public := x.mech, with(x.pub, common...)
		if m == 0 {
			m, public = ckmEdwards, append(public, attr(ck.CKA_EC_PARAMS, oid))
		}
		e.ok("C_GenerateKeyPair", s, mech(m), public, with(x.priv, common...), &pub, &priv)
	}
	// What the configuration says of a token counts from C_Initialize on.
	e.ok("C_Finalize", nil)
	e.ok("C_Initialize", nil)
	var n uint
	e.ok("C_GetSlotList", true, nil, &n)
	slots := make(words, n)
	e.ok("C_GetSlotList", true, slots, &n)
	f.free = slots[n-1]
}

// find finds the objects that a session sees.
func (f *fixture) find(e *env, s uint) {
	clear(f.obj)
	for _, x := range fixtures {
		for _, o := range e.findAll(s, template{attr(ck.CKA_LABEL, x.label), attr(ck.CKA_TOKEN, true)}) {
			name := x.label
			if x.object == nil {
				name += map[uint]string{ck.CKO_PUBLIC_KEY: " pub", ck.CKO_PRIVATE_KEY: " priv"}[e.class(s, o)]
			}
			f.obj[name] = o
		}
	}
}

// class is an object's class.
func (e *env) class(s, o uint) uint {
	v := []value{{Type: ck.CKA_CLASS, Room: 8}}
	e.ok("C_GetAttributeValue", s, o, v)
	return number(v[0].Data)
}
