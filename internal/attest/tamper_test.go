package attest_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/InterCooperative-Network/icn-p11/internal/attest"
	"github.com/InterCooperative-Network/icn-p11/internal/swtpmtest"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// walk changes each field of v, and each byte of it, one at a time, and calls f
// after each change.
func walk(path string, v reflect.Value, f func(path string)) {
	change := func(what string, to reflect.Value) {
		old := reflect.ValueOf(v.Interface())
		v.Set(to.Convert(v.Type()))
		f(path + " " + what)
		v.Set(old)
	}
	if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8 {
		old := v.Bytes()
		for i := range old {
			b := bytes.Clone(old)
			b[i] ^= 1 << (i % 8)
			change(fmt.Sprintf("with byte %d changed", i), reflect.ValueOf(b))
		}
		change("without a value", reflect.ValueOf([]byte{}))
		change("longer", reflect.ValueOf(append(bytes.Clone(old), 0)))
		if len(old) > 0 {
			change("shorter", reflect.ValueOf(bytes.Clone(old[:len(old)-1])))
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			walk(path+"."+v.Type().Field(i).Name, v.Field(i), f)
		}
	case reflect.Slice:
		for i := range v.Len() {
			walk(fmt.Sprintf("%s[%d]", path, i), v.Index(i), f)
		}
		if v.Len() > 0 {
			change("without the last", v.Slice(0, v.Len()-1))
			change("with the last twice", reflect.Append(reflect.AppendSlice(reflect.MakeSlice(v.Type(), 0, v.Len()+1), v), v.Index(v.Len()-1)))
		}
		if v.Len() > 1 {
			swapped := reflect.AppendSlice(reflect.MakeSlice(v.Type(), 0, v.Len()), v)
			first := reflect.ValueOf(swapped.Index(0).Interface())
			swapped.Index(0).Set(swapped.Index(1))
			swapped.Index(1).Set(first)
			change("with the first two exchanged", swapped)
		}
	case reflect.Int:
		for _, d := range []int64{-1, 1} {
			change("another number", reflect.ValueOf(v.Int()+d))
		}
	case reflect.String:
		s := v.String()
		change("without text", reflect.ValueOf(""))
		for i := range s {
			b := []byte(s)
			b[i] = b[i]%26 + 'a'
			if string(b) != s {
				change(fmt.Sprintf("with character %d changed", i), reflect.ValueOf(string(b)))
			}
		}
	default:
		panic("a field of another kind: " + path)
	}
}

// Whoever does not hold the identity's key cannot change anything.
func TestTampered(t *testing.T) {
	kinds(t, func(t *testing.T, maker *swtpmtest.Maker, m *machine) {
		m.reseal(sealstore.SealOptions{Binding: m.binding()})
		nonce := newNonce()
		e := m.evidence(nonce)
		policy := attest.Policy{Nonce: nonce, Now: time.Now()}
		if r := attest.Verify(encode(t, e), policy); !r.OK {
			t.Fatalf("%+v", r)
		}
		n := 0
		walk("evidence", reflect.ValueOf(e).Elem(), func(path string) {
			n++
			r := attest.Verify(encode(t, e), policy)
			if r.OK {
				t.Errorf("%s: passes", path)
			}
			// It is either no evidence or not what the identity has signed.
			if p, ok := r.Point("identity-signature"); ok && p.Result != attest.Failed {
				t.Errorf("%s: the signature is %s", path, p.Result)
			}
		})
		t.Logf("%d changes", n)
		if r := attest.Verify(encode(t, e), policy); !r.OK || n < 2000 {
			t.Errorf("afterwards: %+v", r)
		}
	})
}

// Nor can an identity that wants to be taken for one of another machine, and
// signs whatever it likes, change what the TPM has stated.
func TestTamperedByTheIdentity(t *testing.T) {
	kinds(t, func(t *testing.T, maker *swtpmtest.Maker, m *machine) {
		m.reseal(sealstore.SealOptions{Binding: m.binding()})
		nonce := newNonce()
		e := m.evidence(nonce)
		policy := m.strict(nonce, maker.Certificates())
		ek := bytes.Clone(e.Endorsement.Public)
		walk("evidence", reflect.ValueOf(e).Elem(), func(path string) {
			switch {
			case strings.HasPrefix(path, "evidence.Signature"):
				return // it is made anew
			case strings.HasSuffix(path, "Certificates with the last twice"):
				return // that proves as much
			}
			m.sign(e)
			r := attest.Verify(encode(t, e), policy)
			// A certificate is of the key alone, not of its public area.
			if r.OK && (!strings.HasPrefix(path, "evidence.Endorsement.Public") || !sameKey(t, e.Endorsement.Public, ek)) {
				t.Errorf("%s: passes", path)
			}
			if p, ok := r.Point("identity-signature"); ok && p.Result == attest.Failed && !strings.HasPrefix(path, "evidence.DID") {
				t.Errorf("%s: the identity's signature is wrong", path)
			}
		})
		m.sign(e)
		if r := attest.Verify(encode(t, e), policy); !r.OK {
			t.Errorf("afterwards: %+v", r)
		}
	})
}

// sameKey tells whether two public areas are of one key.
func sameKey(t testing.TB, a, b []byte) bool {
	t.Helper()
	var keys []crypto.PublicKey
	for _, data := range [][]byte{a, b} {
		public, err := tpm2.Unmarshal[tpm2.TPMTPublic](data)
		if err != nil {
			t.Fatal(err)
		}
		k, err := tpm2.Pub(*public)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	return keys[0].(interface{ Equal(crypto.PublicKey) bool }).Equal(keys[1])
}

// wantFailed checks that a point has failed.
func wantFailed(t testing.TB, e *attest.Evidence, policy attest.Policy, ids ...string) {
	t.Helper()
	r := attest.Verify(encode(t, e), policy)
	if r.OK {
		t.Errorf("passes: %+v", r.Points)
	}
	for _, id := range ids {
		if p, ok := r.Point(id); !ok || p.Result != attest.Failed {
			t.Errorf("%s is %s (%s)", id, p.Result, p.Text)
		}
	}
}

// What other verifiers, other states and other machines were shown does not
// pass.
func TestReplayed(t *testing.T) {
	maker := swtpmtest.NewMaker(t)
	m := newMachine(t, maker.Start(), sealstore.SealOptions{})
	ca := maker.Certificates()
	nonce := newNonce()
	e := m.evidence(nonce)
	policy := m.strict(nonce, ca)
	if r := attest.Verify(encode(t, e), policy); !r.OK {
		t.Fatalf("%+v", r)
	}

	// Another nonce, also one that begins or ends like it.
	for _, other := range [][]byte{newNonce(), nonce[:16], append(bytes.Clone(nonce[:31]), 0), nil} {
		p := policy
		p.Nonce = other
		wantFailed(t, e, p, "nonce")
	}
	// The old statements with the new nonce, and the identity's help.
	fresh := newNonce()
	old := again(t, e)
	old.Nonce = fresh
	p := policy
	p.Nonce = fresh
	wantFailed(t, old, p, "identity-signature", "quote", "creation")
	m.sign(old)
	wantFailed(t, old, p, "quote", "pcr-0", "creation")
	// One old statement among new ones.
	half := m.evidence(fresh)
	half.Quote = e.Quote
	m.sign(half)
	wantFailed(t, half, p, "quote", "pcr-7")
	half = m.evidence(fresh)
	half.Creation = e.Creation
	m.sign(half)
	wantFailed(t, half, p, "creation")
	// One statement in the place of the other.
	half = m.evidence(fresh)
	half.Quote.Statement, half.Quote.Signature = half.Creation.Statement, half.Creation.Signature
	m.sign(half)
	wantFailed(t, half, p, "quote")

	// Another identity.
	other := newMachine(t, m.swtpm, sealstore.SealOptions{})
	p = policy
	public := other.public()
	p.DID = &public
	wantFailed(t, e, p, "did")
	taken := again(t, e)
	taken.DID = attest.New(nil, public).DID
	other.sign(taken)
	wantFailed(t, taken, p, "quote", "creation")

	// Other PCRs than before, and PCRs that were not quoted.
	before := policy.PCRs
	m.swtpm.Extend(7, bytes.Repeat([]byte{1}, 32))
	e = m.evidence(nonce)
	wantFailed(t, e, policy, "pcr-7")
	p = m.strict(nonce, ca)
	if r := attest.Verify(encode(t, e), p); !r.OK {
		t.Errorf("%+v", r)
	}
	p.PCRs[8] = before[7]
	wantFailed(t, e, p, "pcr-8")
	wished := again(t, e)
	wished.Quote.PCRs[1].Value = before[7]
	m.sign(wished)
	wantFailed(t, wished, policy, "pcr-values", "pcr-7")
	wished.Quote.Bank = "sha512"
	for i := range wished.Quote.PCRs {
		wished.Quote.PCRs[i].Value = make([]byte, 64)
	}
	m.sign(wished)
	wantFailed(t, wished, policy, "pcr-values")

	// After another start of the machine.
	m.swtpm.Reboot()
	later := m.evidence(nonce)
	later.Quote = e.Quote
	m.sign(later)
	wantFailed(t, later, attest.Policy{Nonce: nonce, Now: time.Now()}, "boot")
}

// Parts of two machines, or of two tokens of one, do not make one.
func TestMixed(t *testing.T) {
	maker := swtpmtest.NewMaker(t)
	one := newMachine(t, maker.Start(), sealstore.SealOptions{})
	two := newMachine(t, maker.Start(), sealstore.SealOptions{})
	ca := maker.Certificates()
	nonce := newNonce()
	policy := one.strict(nonce, ca)
	e, f := one.evidence(nonce), two.evidence(nonce)

	mixed := func(change func(e *attest.Evidence), ids ...string) {
		t.Helper()
		m := again(t, e)
		change(m)
		one.sign(m)
		wantFailed(t, m, policy, ids...)
	}
	mixed(func(e *attest.Evidence) { e.Endorsement.Certificates = f.Endorsement.Certificates }, "ek-certificate")
	mixed(func(e *attest.Evidence) { e.Endorsement.Public = f.Endorsement.Public }, "ek-certificate")
	mixed(func(e *attest.Evidence) { e.Key = f.Key }, "quote", "creation")
	mixed(func(e *attest.Evidence) { e.Quote = f.Quote }, "quote")
	mixed(func(e *attest.Evidence) { e.Creation = f.Creation }, "creation")
	mixed(func(e *attest.Evidence) { e.Creation.Seal = f.Creation.Seal }, "creation")
	mixed(func(e *attest.Evidence) { e.Creation.Data = f.Creation.Data }, "creation")

	// The attestation key of another token of the same TPM signs for the same
	// identity, but both statements have to be of one key.
	other := *one
	other.serial = "0000000000000000"
	g := other.evidence(nonce)
	mixed(func(e *attest.Evidence) { e.Key = g.Key }, "quote", "creation")
	mixed(func(e *attest.Evidence) { e.Key, e.Quote = g.Key, g.Quote }, "creation")

	// A seal that was made for another key, or for nothing.
	sealed := *one
	sealed.seal, sealed.key = two.seal, one.key
	stranger := newMachine(t, one.swtpm, sealstore.SealOptions{})
	sealed.seal = stranger.seal
	wantFailed(t, sealed.evidence(nonce), policy, "creation")

	// Another machine's identity under this machine's statements: what links
	// them is that this identity has not signed it.
	taken := again(t, e)
	message, err := taken.Message()
	if err != nil {
		t.Fatal(err)
	}
	taken.Signature = ed25519.Sign(two.key, message)
	wantFailed(t, taken, policy, "identity-signature")

	// The endorsement key of another TPM, with its own certificate: the
	// evidence cannot tell, and says so. The challenge can.
	borrowed := again(t, e)
	borrowed.Endorsement = f.Endorsement
	one.sign(borrowed)
	r := attest.Verify(encode(t, borrowed), policy)
	want(t, r, map[attest.Result]string{attest.NotProved: never + "seal-bound attestation-key-in-tpm genuine-tpm"})
	c, _, err := attest.NewChallenge(encode(t, borrowed), newNonce(), tpm.Credential)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*machine{one, two} {
		if r, err := m.respond(c); !errors.Is(err, tpm.ErrCredential) {
			t.Errorf("%+v, %v", r, err)
		}
	}
}

// pretended is evidence that a program has made without a TPM, all of whose
// signatures are right.
func pretended(t testing.TB, m *machine, e *attest.Evidence, attributes tpm2.TPMAObject) *attest.Evidence {
	t.Helper()
	e = again(t, e)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ak, err := tpm2.Unmarshal[tpm2.TPMTPublic](e.Key)
	must(err)
	point, err := key.PublicKey.Bytes()
	must(err)
	ak.ObjectAttributes = attributes
	ak.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	e.Key = tpm2.Marshal(*ak)
	name, err := tpm2.ObjectName(ak)
	must(err)
	signer := sha256.Sum256(append(tpm2.HandleName(tpm2.TPMRHEndorsement).Buffer, name.Buffer...))
	sign := func(statement, signature *[]byte) {
		s, err := tpm2.Unmarshal[tpm2.TPMSAttest](*statement)
		must(err)
		s.QualifiedSigner.Buffer = append([]byte{0, 0x0b}, signer[:]...)
		*statement = tpm2.Marshal(*s)
		digest := sha256.Sum256(*statement)
		r, v, err := ecdsa.Sign(rand.Reader, key, digest[:])
		must(err)
		*signature = tpm2.Marshal(tpm2.TPMTSignature{
			SigAlg: tpm2.TPMAlgECDSA,
			Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
				Hash:       tpm2.TPMAlgSHA256,
				SignatureR: tpm2.TPM2BECCParameter{Buffer: r.Bytes()}, SignatureS: tpm2.TPM2BECCParameter{Buffer: v.Bytes()},
			}),
		})
	}
	sign(&e.Quote.Statement, &e.Quote.Signature)
	sign(&e.Creation.Statement, &e.Creation.Signature)
	m.sign(e)
	return e
}

// A program that acts as a TPM cannot be told from one by the evidence alone;
// that it could be one stands in the report. It does not answer the challenge.
func TestProgramInPlaceOfATPM(t *testing.T) {
	maker := swtpmtest.NewMaker(t)
	m := newMachine(t, maker.Start(), sealstore.SealOptions{})
	nonce := newNonce()
	genuine := m.evidence(nonce)
	policy := m.strict(nonce, maker.Certificates())
	ak, err := tpm2.Unmarshal[tpm2.TPMTPublic](genuine.Key)
	if err != nil {
		t.Fatal(err)
	}
	e := pretended(t, m, genuine, ak.ObjectAttributes)
	want(t, attest.Verify(encode(t, e), policy), map[attest.Result]string{attest.NotProved: never + "seal-bound attestation-key-in-tpm genuine-tpm"})
	c, state, err := attest.NewChallenge(encode(t, e), newNonce(), tpm.Credential)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := m.respond(c); !errors.Is(err, tpm.ErrCredential) {
		t.Errorf("%+v, %v", r, err)
	}
	policy.State, policy.Response = state, c.Respond(newNonce())
	wantFailed(t, e, policy, "attestation-key-in-tpm")

	// A real TPM has such a key too, but then it signs anything.
	for what, change := range map[string]func(a *tpm2.TPMAObject){
		"not restricted":         func(a *tpm2.TPMAObject) { a.Restricted = false },
		"decrypts":               func(a *tpm2.TPMAObject) { a.Decrypt = true },
		"does not sign":          func(a *tpm2.TPMAObject) { a.SignEncrypt = false },
		"may leave the TPM":      func(a *tpm2.TPMAObject) { a.FixedTPM = false },
		"may leave its parent":   func(a *tpm2.TPMAObject) { a.FixedParent = false },
		"was made outside of it": func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false },
	} {
		attributes := ak.ObjectAttributes
		change(&attributes)
		t.Run(what, func(t *testing.T) { wantFailed(t, pretended(t, m, genuine, attributes), policy, "attestation-key") })
	}
}

// own is a program of the machine's owner, who lets the TPM make what icn-p11
// does not.
type own struct {
	signer  tpm2.TPMHandle // hierarchy of the key that signs
	parent  tpm2.TPMHandle // hierarchy of the key under which the object is made
	object  tpm2.TPMTPublic
	outside []byte
	pcrs    tpm2.TPMLPCRSelection
}

// state has the TPM state it all for evidence that is like e.
func (o own) state(t testing.TB, m *machine, e *attest.Evidence) *attest.Evidence {
	t.Helper()
	e = again(t, e)
	c, err := linuxudstpm.Open(m.swtpm.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	primary := func(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) *tpm2.CreatePrimaryResponse {
		t.Helper()
		r, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(c)
		must(err)
		return r
	}
	flush := func(h tpm2.TPMHandle) {
		t.Helper()
		_, err := tpm2.FlushContext{FlushHandle: h}.Execute(c)
		must(err)
	}
	parent := primary(o.parent, tpm2.ECCSRKTemplate)
	defer flush(parent.ObjectHandle)
	made, err := tpm2.Create{
		ParentHandle: tpm2.NamedHandle{Handle: parent.ObjectHandle, Name: parent.Name},
		InSensitive:  sensitive(o.object),
		InPublic:     tpm2.New2B(o.object), OutsideInfo: tpm2.TPM2BData{Buffer: o.outside}, CreationPCR: o.pcrs,
	}.Execute(c)
	must(err)
	object, err := tpm2.Load{
		ParentHandle: tpm2.NamedHandle{Handle: parent.ObjectHandle, Name: parent.Name}, InPrivate: made.OutPrivate, InPublic: made.OutPublic,
	}.Execute(c)
	must(err)
	defer flush(object.ObjectHandle)
	template, err := tpm2.Unmarshal[tpm2.TPMTPublic](e.Key)
	must(err)
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	ak := primary(o.signer, *template)
	defer flush(ak.ObjectHandle)
	signer := tpm2.AuthHandle{Handle: ak.ObjectHandle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)}
	scheme := tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}

	quote, err := tpm2.Quote{
		SignHandle: signer, QualifyingData: tpm2.TPM2BData{Buffer: attest.QuoteData(e.Nonce, m.public())}, InScheme: scheme,
		PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(0, 7)}}},
	}.Execute(c)
	must(err)
	creation, err := tpm2.CertifyCreation{
		SignHandle: signer, ObjectHandle: tpm2.NamedHandle{Handle: object.ObjectHandle, Name: object.Name},
		QualifyingData: tpm2.TPM2BData{Buffer: attest.CreationData(e.Nonce, m.public())},
		CreationHash:   made.CreationHash, InScheme: scheme, CreationTicket: made.CreationTicket,
	}.Execute(c)
	must(err)
	e.Key = ak.OutPublic.Bytes()
	e.Quote.Statement, e.Quote.Signature = quote.Quoted.Bytes(), tpm2.Marshal(quote.Signature)
	e.Creation.Seal, e.Creation.Data = made.OutPublic.Bytes(), made.CreationData.Bytes()
	e.Creation.Statement, e.Creation.Signature = creation.CertifyInfo.Bytes(), tpm2.Marshal(creation.Signature)
	m.sign(e)
	return e
}

// sensitive is what a TPM is given to make an object: data only for a sealed
// one.
func sensitive(object tpm2.TPMTPublic) tpm2.TPM2BSensitiveCreate {
	var data []byte
	if !object.ObjectAttributes.SensitiveDataOrigin {
		data = []byte("something")
	}
	return tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
		Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: data}),
	}}
}

// Statements of a real TPM about other objects, or by other keys of it, are
// refused, though the TPM and the identity have signed them.
func TestOtherObjects(t *testing.T) {
	m := newMachine(t, swtpmtest.Start(t), sealstore.SealOptions{})
	nonce := newNonce()
	policy := attest.Policy{Nonce: nonce, Now: time.Now()}
	e := m.evidence(nonce)
	seal, err := tpm2.Unmarshal[tpm2.TPMTPublic](m.seal.Public)
	if err != nil {
		t.Fatal(err)
	}
	seal.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{})
	good := own{signer: tpm2.TPMRHEndorsement, parent: tpm2.TPMRHOwner, object: *seal, outside: m.key[32:]}
	if r := attest.Verify(encode(t, good.state(t, m, e)), policy); !r.OK {
		t.Fatalf("what icn-p11 would make: %+v", r)
	}
	attributes := func(change func(a *tpm2.TPMAObject)) func(o *own) {
		return func(o *own) { change(&o.object.ObjectAttributes) }
	}
	for what, test := range map[string]struct {
		change func(o *own)
		failed []string
	}{
		"signed by a key of the owner hierarchy":   {func(o *own) { o.signer = tpm2.TPMRHOwner }, []string{"quote", "creation"}},
		"signed by a key of the null hierarchy":    {func(o *own) { o.signer = tpm2.TPMRHNull }, []string{"quote", "creation"}},
		"under a key of the endorsement hierarchy": {func(o *own) { o.parent = tpm2.TPMRHEndorsement }, []string{"seal"}},
		"made for another key":                     {func(o *own) { o.outside = bytes.Repeat([]byte{1}, 32) }, []string{"creation"}},
		"made for the key and more":                {func(o *own) { o.outside = append(bytes.Clone(o.outside), 0) }, []string{"creation"}},
		"with PCRs": {func(o *own) {
			o.pcrs.PCRSelections = []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{1, 0, 0}}}
		}, []string{"seal"}},
		"with another policy":                {func(o *own) { o.object.AuthPolicy.Buffer = make([]byte, 32) }, []string{"seal-bound"}},
		"that nothing opens":                 {attributes(func(a *tpm2.TPMAObject) { a.UserWithAuth = false }), []string{"seal-bound"}},
		"with a policy for changing its PIN": {attributes(func(a *tpm2.TPMAObject) { a.AdminWithPolicy = true }), []string{"seal"}},
		"an HMAC key": {func(o *own) {
			o.object.ObjectAttributes.SignEncrypt, o.object.ObjectAttributes.SensitiveDataOrigin = true, true
			o.object.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{
				Scheme: tpm2.TPMAlgHMAC, Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: tpm2.TPMAlgSHA256}),
			}})
		}, []string{"seal"}},
	} {
		t.Run(what, func(t *testing.T) {
			o := good
			test.change(&o)
			wantFailed(t, o.state(t, m, e), policy, test.failed...)
		})
	}

	// A binding that the seal does not have, and another than it has.
	b := m.binding()
	x := again(t, e)
	x.Creation.Approver = b.Approver
	m.sign(x)
	wantFailed(t, x, policy, "seal-bound")
	m.reseal(sealstore.SealOptions{Binding: b})
	e = m.evidence(nonce)
	x = again(t, e)
	x.Creation.Approver = nil
	m.sign(x)
	wantFailed(t, x, policy, "seal-bound")
	other, err := m.tpm.Approver(bytes.Repeat([]byte{2}, 32))
	if err != nil {
		t.Fatal(err)
	}
	x.Creation.Approver = other
	m.sign(x)
	wantFailed(t, x, policy, "seal-bound")
}

// tree is an issuer of certificates of endorsement keys.
type tree struct {
	t   testing.TB
	key *ecdsa.PrivateKey
	c   *x509.Certificate
}

func newTree(t testing.TB) *tree {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &tree{t: t, key: key}
	a.c = a.issue(&key.PublicKey, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		c.Subject = pkix.Name{CommonName: "issuer"}
	})
	return a
}

var (
	oidEK       = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	oidPlatform = asn1.ObjectIdentifier{2, 23, 133, 8, 2}
)

func (a *tree) issue(key any, change func(c *x509.Certificate)) *x509.Certificate {
	a.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{oidEK},
	}
	change(template)
	issuer := a.c
	if issuer == nil {
		issuer = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return c
}

// Which certificates of endorsement keys are taken.
func TestCertificates(t *testing.T) {
	m := newMachine(t, swtpmtest.Start(t), sealstore.SealOptions{})
	nonce := newNonce()
	e := m.evidence(nonce)
	ek, err := tpm2.Unmarshal[tpm2.TPMTPublic](e.Endorsement.Public)
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm2.Pub(*ek)
	if err != nil {
		t.Fatal(err)
	}
	root, stranger := newTree(t), newTree(t)
	between := &tree{t: t}
	if between.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	between.c = root.issue(&between.key.PublicKey, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		c.Subject = pkix.Name{CommonName: "between"}
		c.UnknownExtKeyUsage = nil
	})
	same := func(*x509.Certificate) {}
	for what, test := range map[string]struct {
		chain []*x509.Certificate
		ca    []*x509.Certificate
		want  string // the beginning of the text
	}{
		"a root's":                  {[]*x509.Certificate{root.issue(key, same)}, []*x509.Certificate{root.c}, "somebody who is trusted"},
		"with an issuer in between": {[]*x509.Certificate{between.issue(key, same), between.c}, []*x509.Certificate{root.c}, "somebody who is trusted"},
		"with an issuer in between that the verifier has": {[]*x509.Certificate{between.issue(key, same)}, []*x509.Certificate{root.c, between.c}, "somebody who is trusted"},
		"without the one in between":                      {[]*x509.Certificate{between.issue(key, same)}, []*x509.Certificate{root.c}, "nobody who is trusted"},
		"a stranger's":                                    {[]*x509.Certificate{stranger.issue(key, same)}, []*x509.Certificate{root.c}, "nobody who is trusted"},
		"a stranger's, with it":                           {[]*x509.Certificate{stranger.issue(key, same), stranger.c}, []*x509.Certificate{root.c}, "nobody who is trusted"},
		"nobody is trusted":                               {[]*x509.Certificate{root.issue(key, same)}, []*x509.Certificate{}, "nobody who is trusted"},
		"without a purpose":                               {[]*x509.Certificate{root.issue(key, func(c *x509.Certificate) { c.UnknownExtKeyUsage = nil })}, []*x509.Certificate{root.c}, "somebody who is trusted"},
		"of a platform":                                   {[]*x509.Certificate{root.issue(key, func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{oidPlatform} })}, []*x509.Certificate{root.c}, "the certificate of the endorsement key is for another purpose"},
		"of a server": {[]*x509.Certificate{root.issue(key, func(c *x509.Certificate) {
			c.UnknownExtKeyUsage, c.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		})}, []*x509.Certificate{root.c}, "the certificate of the endorsement key is for another purpose"},
		"of an issuer": {[]*x509.Certificate{root.issue(key, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true })}, []*x509.Certificate{root.c}, "the certificate of the endorsement key is one of an issuer"},
		"expired":      {[]*x509.Certificate{root.issue(key, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })}, []*x509.Certificate{root.c}, "nobody who is trusted"},
		"with an unknown critical extension": {[]*x509.Certificate{root.issue(key, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		})}, []*x509.Certificate{root.c}, "nobody who is trusted"},
		"of another key": {[]*x509.Certificate{root.issue(&stranger.key.PublicKey, same)}, []*x509.Certificate{root.c}, "the certificate is of another key"},
	} {
		t.Run(what, func(t *testing.T) {
			x := again(t, e)
			for _, c := range test.chain {
				x.Endorsement.Certificates = append(x.Endorsement.Certificates, c.Raw)
			}
			m.sign(x)
			r := attest.Verify(encode(t, x), attest.Policy{Nonce: nonce, Now: time.Now(), CA: test.ca})
			p, _ := r.Point("ek-certificate")
			if good := strings.HasPrefix(test.want, "somebody"); !strings.HasPrefix(p.Text, test.want) || (p.Result == attest.Proved) != good || r.OK != good {
				t.Errorf("%s: %s", p.Result, p.Text)
			}
		})
	}
	x := again(t, e)
	x.Endorsement.Certificates = [][]byte{[]byte("no certificate")}
	m.sign(x)
	wantFailed(t, x, attest.Policy{Nonce: nonce, Now: time.Now()}, "ek-certificate")
	// Such a key decrypts nothing, or anything.
	for _, change := range []func(a *tpm2.TPMAObject){
		func(a *tpm2.TPMAObject) { a.Restricted = false },
		func(a *tpm2.TPMAObject) { a.Decrypt = false },
		func(a *tpm2.TPMAObject) { a.FixedTPM = false },
	} {
		bad := *ek
		change(&bad.ObjectAttributes)
		x := again(t, e)
		x.Endorsement.Public = tpm2.Marshal(bad)
		m.sign(x)
		wantFailed(t, x, attest.Policy{Nonce: nonce, Now: time.Now()}, "ek-certificate")
	}
}

func TestChallenges(t *testing.T) {
	kinds(t, func(t *testing.T, maker *swtpmtest.Maker, m *machine) {
		nonce := newNonce()
		policy := m.strict(nonce, maker.Certificates())
		e := m.evidence(nonce)
		data := encode(t, e)
		c, state, err := attest.NewChallenge(data, newNonce(), tpm.Credential)
		if err != nil {
			t.Fatal(err)
		}
		r, err := m.respond(c)
		if err != nil {
			t.Fatal(err)
		}
		policy.State, policy.Response = state, r
		if v := attest.Verify(data, policy); !v.OK {
			t.Fatalf("%+v", v)
		}
		failed := func(data []byte, s *attest.State, r *attest.Response) {
			t.Helper()
			p := policy
			p.State, p.Response = s, r
			e := &attest.Evidence{}
			if err := reparse(data, e); err != nil {
				t.Fatal(err)
			}
			wantFailed(t, e, p, "attestation-key-in-tpm")
		}
		// Any change.
		walk("response", reflect.ValueOf(r).Elem(), func(path string) {
			if strings.HasPrefix(path, "response.Evidence") || strings.HasPrefix(path, "response.MAC") {
				failed(data, state, r)
			}
			if _, err := attest.ParseResponse(encode(t, r)); err == nil && !strings.Contains(path, "changed") {
				t.Errorf("%s: it is read", path)
			}
		})
		walk("state", reflect.ValueOf(state).Elem(), func(path string) {
			if strings.HasPrefix(path, "state.Evidence") || strings.HasPrefix(path, "state.Response") {
				failed(data, state, r)
			}
			if _, err := attest.ParseState(encode(t, state)); err == nil && !strings.Contains(path, "changed") {
				t.Errorf("%s: it is read", path)
			}
		})
		// Another challenge for the same evidence, and other evidence.
		_, second, err := attest.NewChallenge(data, newNonce(), tpm.Credential)
		if err != nil {
			t.Fatal(err)
		}
		failed(data, second, r)
		newer := m.evidence(nonce)
		failed(encode(t, newer), state, r)
		// An answer without the secret, from what is public.
		failed(data, state, c.Respond(nil))
		failed(data, state, c.Respond(state.Response))
		failed(data, state, &attest.Response{Type: r.Type, Version: r.Version, Evidence: r.Evidence, MAC: state.Response})

		// A challenge for the attestation key of another token.
		other := *m
		other.serial = "0000000000000000"
		if r, err := other.respond(c); !errors.Is(err, tpm.ErrCredential) {
			t.Errorf("%+v, %v", r, err)
		}
		if _, _, err := attest.NewChallenge(data, nil, tpm.Credential); err == nil {
			t.Error("a challenge without a secret")
		}
		if _, _, err := attest.NewChallenge(data[1:], newNonce(), tpm.Credential); err == nil {
			t.Error("a challenge for no evidence")
		}
		if i := slices.IndexFunc([][]byte{encode(t, c), encode(t, state)}, func(b []byte) bool { return bytes.Contains(b, r.MAC) }); i >= 0 {
			t.Error("the answer is in public")
		}
	})
}
