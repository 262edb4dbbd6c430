package tpm

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
)

// Endorsement is the TPM's endorsement key (EK), which its maker certifies.
type Endorsement struct {
	Public []byte // TPMT_PUBLIC
	// Certificates are in DER, that of the key first, then those of its
	// issuers as far as the TPM holds them; empty: it holds none.
	Certificates [][]byte
}

// MaxCredential is the size of the largest secret in a credential, in bytes: a
// digest of SHA-256.
const MaxCredential = 32

// Errors of this package that no sealstore.Sealer has.
var (
	// ErrEndorsement: what needs the endorsement hierarchy needs its password.
	ErrEndorsement = errors.New("the endorsement hierarchy of the TPM has a password")
	// ErrCredential: a credential that this TPM does not open.
	ErrCredential = errors.New("the credential was not made for this TPM, or not for this key of it")
)

// Where the TCG's EK Credential Profile (section 2.2.1.4) has what a TPM's
// maker stores, as NV indices.
const (
	ekRSA2048     = 0x01C00002
	ekECC256      = 0x01C0000A
	ekHighRSA2048 = 0x01C00012
	ekHighECC256  = 0x01C00014
	ekHighECC384  = 0x01C00016
	ekHighECC521  = 0x01C00018
	ekHighRSA3072 = 0x01C0001C
	ekChain       = 0x01C00100 // the issuers' certificates, one behind the other
	ekLast        = 0x01C001FF
)

// Two bytes behind the certificate of a template of the low range may be a
// nonce that goes into the template, and a template of the maker's own.
const (
	ekNonce    = 1
	ekTemplate = 2
)

// ekPersistent and ekPersistentLast bound the handles of persistent
// endorsement keys (TCG Registry of Reserved TPM 2.0 Handles, 2.3.1).
const (
	ekPersistent     = 0x81010000
	ekPersistentLast = 0x8101FFFF
)

// endorsementKinds lists the keys that a maker may have certified, in the order
// of preference: an RSA key takes a TPM seconds to make anew.
var endorsementKinds = []struct {
	certificate uint32
	template    func() tpm2.TPMTPublic
}{
	{ekECC256, func() tpm2.TPMTPublic { return tpm2.ECCEKTemplate }},
	{ekHighECC256, func() tpm2.TPMTPublic { return highECC(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256, 128) }},
	{ekHighECC384, func() tpm2.TPMTPublic { return highECC(tpm2.TPMECCNistP384, tpm2.TPMAlgSHA384, 256) }},
	{ekHighECC521, func() tpm2.TPMTPublic { return highECC(tpm2.TPMECCNistP521, tpm2.TPMAlgSHA512, 256) }},
	{ekRSA2048, func() tpm2.TPMTPublic { return tpm2.RSAEKTemplate }},
	{ekHighRSA2048, func() tpm2.TPMTPublic { return highRSA(2048, tpm2.TPMAlgSHA256, 128) }},
	{ekHighRSA3072, func() tpm2.TPMTPublic { return highRSA(3072, tpm2.TPMAlgSHA384, 256) }},
}

// highPolicy is the policy of the high range's templates, PolicyB: either the
// endorsement hierarchy's password or what an NV index of the owner says.
var highPolicy = map[tpm2.TPMAlgID]string{
	tpm2.TPMAlgSHA256: "ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0",
	tpm2.TPMAlgSHA384: "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12",
	tpm2.TPMAlgSHA512: "b8221ca69e8550a4914de3faa6a18c072cc01208073a928d5d66d59ef79e49a4" +
		"29c41a6b269571d57edb25fbdb1838425608b413cd616a5f6db5b6071af99bea",
}

// high gives a template of the high range (EK Credential Profile, B.4): also
// the empty authorisation value opens the key, and unique is empty.
func high(kind, nameAlg tpm2.TPMAlgID, parameters tpm2.TPMUPublicParms, unique tpm2.TPMUPublicID) tpm2.TPMTPublic {
	policy, err := hex.DecodeString(highPolicy[nameAlg])
	if err != nil {
		panic(err) // a test makes them all
	}
	attributes := tpm2.ECCEKTemplate.ObjectAttributes
	attributes.UserWithAuth = true
	return tpm2.TPMTPublic{
		Type: kind, NameAlg: nameAlg, ObjectAttributes: attributes,
		AuthPolicy: tpm2.TPM2BDigest{Buffer: policy}, Parameters: parameters, Unique: unique,
	}
}

func aesCFB(bits tpm2.TPMKeyBits) tpm2.TPMTSymDefObject {
	return tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, bits),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
}

func highECC(curve tpm2.TPMECCCurve, nameAlg tpm2.TPMAlgID, aes tpm2.TPMKeyBits) tpm2.TPMTPublic {
	return high(tpm2.TPMAlgECC, nameAlg,
		tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: aesCFB(aes), CurveID: curve}),
		tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}))
}

func highRSA(bits tpm2.TPMKeyBits, nameAlg tpm2.TPMAlgID, aes tpm2.TPMKeyBits) tpm2.TPMTPublic {
	return high(tpm2.TPMAlgRSA, nameAlg,
		tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: aesCFB(aes), KeyBits: bits}),
		tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{}))
}

// withNonce puts the maker's nonce into the low range's template (EK
// Credential Profile, 2.2.1.3): what is not nonce is zero.
func withNonce(template tpm2.TPMTPublic, nonce []byte) tpm2.TPMTPublic {
	size := 32
	if template.Type == tpm2.TPMAlgRSA {
		size = 256
	}
	padded := make([]byte, size)
	copy(padded, nonce)
	if template.Type == tpm2.TPMAlgRSA {
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: padded})
	} else {
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: padded}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, size)},
		})
	}
	return template
}

// Endorsement gives the endorsement key that the TPM has a certificate for.
// Where it has none, it is the key of the TCG's ECC P-256 template.
func (t *TPM) Endorsement() (e Endorsement, err error) {
	err = t.do("reading the endorsement key", func() error {
		k, certificates, err := t.endorsement()
		if err != nil {
			return err
		}
		t.flushRoot(k)
		e = Endorsement{tpm2.Marshal(k.public), certificates}
		return nil
	})
	return e, err
}

// flushRoot flushes a key unless it is persistent.
func (t *TPM) flushRoot(k *rootKey) {
	if k.transient {
		t.flush(k.handle)
	}
}

// endorsement finds the endorsement key, with its certificates. The caller
// flushes it.
func (t *TPM) endorsement() (*rootKey, [][]byte, error) {
	present, err := t.handles(ekRSA2048, ekLast)
	if err != nil {
		return nil, nil, err
	}
	for _, kind := range endorsementKinds {
		if !slices.Contains(present, kind.certificate) {
			continue
		}
		leaf, err := t.certificate(kind.certificate)
		if err != nil {
			return nil, nil, err
		}
		if leaf == nil {
			continue
		}
		k, err := t.certified(leaf, kind.certificate, kind.template(), present)
		if err != nil {
			return nil, nil, err
		}
		if k == nil {
			t.cfg.Log.Warn("the TPM holds a certificate of an endorsement key that it does not have; it is left aside",
				"device", t.String(), "nv_index", fmt.Sprintf("0x%08x", kind.certificate))
			continue
		}
		issuers, err := t.issuers(present)
		if err != nil {
			t.flushRoot(k)
			return nil, nil, err
		}
		return k, append([][]byte{leaf.Raw}, issuers...), nil
	}
	k, err := t.primary(tpm2.ECCEKTemplate, "the endorsement key")
	return k, nil, err
}

// certified finds the key of a certificate: persistent, or made anew from the
// maker's template, or from the TCG's. nil: the TPM has it not.
func (t *TPM) certified(leaf *x509.Certificate, index uint32, template tpm2.TPMTPublic, present []uint32) (*rootKey, error) {
	persistent, err := t.handles(ekPersistent, ekPersistentLast)
	if err != nil {
		return nil, err
	}
	for _, h := range persistent {
		k, err := t.readKey(tpm2.TPMHandle(h))
		if err != nil {
			return nil, err
		}
		if k != nil && isCertified(leaf, &k.public) {
			return k, nil
		}
	}
	if low := index < ekHighRSA2048; low {
		if template, err = t.makersTemplate(index, template, present); err != nil {
			return nil, err
		}
	}
	k, err := t.primary(template, "the endorsement key")
	if err != nil {
		return nil, err
	}
	if !isCertified(leaf, &k.public) {
		t.flush(k.handle)
		return nil, nil
	}
	return k, nil
}

// makersTemplate applies what the maker has stored about the template.
func (t *TPM) makersTemplate(index uint32, template tpm2.TPMTPublic, present []uint32) (tpm2.TPMTPublic, error) {
	if slices.Contains(present, index+ekTemplate) {
		b, err := t.readNV(index + ekTemplate)
		if err != nil {
			return template, err
		}
		own, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
		if err != nil {
			t.cfg.Log.Warn("the TPM's own template of its endorsement key is malformed; the TCG's is used", "device", t.String())
		} else {
			template = *own
		}
	}
	if !slices.Contains(present, index+ekNonce) {
		return template, nil
	}
	nonce, err := t.readNV(index + ekNonce)
	if err != nil {
		return template, err
	}
	return withNonce(template, nonce), nil
}

// isCertified tells whether a certificate is of a key.
func isCertified(leaf *x509.Certificate, public *tpm2.TPMTPublic) bool {
	key, err := tpm2.Pub(*public)
	if err != nil {
		return false
	}
	k, ok := key.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(leaf.PublicKey)
}

// certificate reads a certificate; nil if what is there is none.
func (t *TPM) certificate(index uint32) (*x509.Certificate, error) {
	b, err := t.readNV(index)
	if err != nil {
		return nil, err
	}
	// Makers may define the index larger than the certificate.
	var outer asn1.RawValue
	if _, err = asn1.Unmarshal(b, &outer); err == nil {
		var c *x509.Certificate
		if c, err = x509.ParseCertificate(outer.FullBytes); err == nil {
			return c, nil
		}
	}
	t.notCertificate(index, err)
	return nil, nil
}

func (t *TPM) notCertificate(index uint32, err error) {
	t.cfg.Log.Warn("what the TPM holds as the certificate of an endorsement key cannot be read as one; it is left aside",
		"device", t.String(), "nv_index", fmt.Sprintf("0x%08x", index), "error", err)
}

// issuers reads the certificates of those who certified endorsement keys: one
// behind the other, over as many indices as they fill.
func (t *TPM) issuers(present []uint32) (certificates [][]byte, err error) {
	var all []byte
	for _, index := range present {
		if index < ekChain || index > ekLast {
			continue
		}
		b, err := t.readNV(index)
		if err != nil {
			return nil, err
		}
		all = append(all, b...)
	}
	for len(all) > 0 {
		var outer asn1.RawValue
		rest, err := asn1.Unmarshal(all, &outer)
		if err == nil {
			_, err = x509.ParseCertificate(outer.FullBytes)
		}
		if err != nil {
			if len(bytes.Trim(all, "\x00\xff")) > 0 { // not what fills the last index up
				t.notCertificate(ekChain, err)
			}
			break
		}
		certificates = append(certificates, outer.FullBytes)
		all = rest
	}
	return certificates, nil
}

// handles lists the handles in use between two.
func (t *TPM) handles(first, last uint32) (all []uint32, err error) {
	for {
		r, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(t.link)
		if err != nil {
			return nil, err
		}
		list, err := r.CapabilityData.Data.Handles()
		if err != nil {
			return nil, err
		}
		for _, h := range list.Handle {
			if uint32(h) < first || uint32(h) > last {
				return all, nil
			}
			all = append(all, uint32(h))
			first = uint32(h) + 1
		}
		if len(list.Handle) == 0 || !bool(r.MoreData) {
			return all, nil
		}
	}
}

// maxNV bounds what is read of an NV index: no certificate is as large.
const maxNV = 16 << 10

// readNV reads an NV index under its own, empty, authorisation value. Of one
// that cannot be read so, or was never written, it gives nothing.
func (t *TPM) readNV(index uint32) (data []byte, err error) {
	defer func() {
		for _, rc := range []tpm2.TPMRC{tpm2.TPMRCNVAuthorization, tpm2.TPMRCNVUninitialized, tpm2.TPMRCNVLocked, tpm2.TPMRCAuthUnavailable} {
			if errors.Is(err, rc) {
				data, err = nil, nil
			}
		}
		if err != nil {
			err = fmt.Errorf("reading NV index 0x%08x: %w", index, err)
		}
	}()
	props, err := t.properties(tpm2.TPMPTNVBufferMax, 1)
	if err != nil {
		return nil, err
	}
	chunk := min(props[tpm2.TPMPTNVBufferMax], 1024)
	if chunk == 0 {
		chunk = 512
	}
	r, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(t.link)
	if err != nil {
		return nil, err
	}
	public, err := r.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	size := int(public.DataSize)
	if size > maxNV {
		return nil, fmt.Errorf("%w: it has %d bytes", errFrame, size)
	}
	for len(data) < size {
		r, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(index), Name: r.NVName, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: r.NVName},
			Size:       uint16(min(int(chunk), size-len(data))),
			Offset:     uint16(len(data)),
		}.Execute(t.link)
		if err != nil {
			return nil, err
		}
		if len(r.Data.Buffer) == 0 {
			return nil, errFrame
		}
		data = append(data, r.Data.Buffer...)
	}
	return data, nil
}

// primary creates a key in the endorsement hierarchy. The caller flushes it.
func (t *TPM) primary(template tpm2.TPMTPublic, what string) (*rootKey, error) {
	k, err := t.createPrimary(tpm2.TPMRHEndorsement, template, tpm2.PasswordAuth(nil))
	if isWrongAuth(err) {
		return nil, endorsementError()
	}
	if err != nil {
		return nil, fmt.Errorf("creating %s: %w", what, err)
	}
	return k, nil
}

func endorsementError() error {
	return advice.With(ErrEndorsement, "take it away for the time (tpm2_changeauth -c endorsement -p PASSWORD), since this command has no way to be given it")
}

// Credential encrypts a secret so that only the TPM with an endorsement key,
// holding an object of that Name, opens it: TPM2_MakeCredential (Part 1, 24)
// in software. The result is a TPM2B_ID_OBJECT and a TPM2B_ENCRYPTED_SECRET.
func Credential(ekPublic, name, secret []byte) (credential []byte, err error) {
	if len(secret) < 1 || len(secret) > MaxCredential {
		return nil, fmt.Errorf("the secret of a credential has 1 to %d bytes, not %d", MaxCredential, len(secret))
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](ekPublic)
	if err != nil || !bytes.Equal(tpm2.Marshal(*public), ekPublic) {
		return nil, errors.New("the endorsement key is malformed")
	}
	if a := public.ObjectAttributes; !a.FixedTPM || !a.Restricted || !a.Decrypt || a.SignEncrypt {
		return nil, errors.New("the endorsement key has not the attributes of one")
	}
	key, err := tpm2.ImportEncapsulationKey(public)
	if err != nil {
		return nil, fmt.Errorf("the endorsement key is of no use: %w", err)
	}
	var object, encrypted []byte
	secmem.Compute(func() { object, encrypted, err = tpm2.CreateCredential(rand.Reader, key, name, secret) })
	if err != nil {
		return nil, fmt.Errorf("encrypting to the endorsement key: %w", err)
	}
	return append(tpm2.Marshal(tpm2.TPM2BIDObject{Buffer: object}), tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: encrypted})...), nil
}

// ActivateRoot opens a credential for the storage root key whose Name is
// parent (TPM2_ActivateCredential). It writes the secret to dst, which is
// secret memory, and gives its length. Fails with ErrCredential if the
// credential is not for this TPM and that key.
func (t *TPM) ActivateRoot(parent, credential, dst []byte) (n int, err error) {
	return t.activate(parent, credential, dst, func(srk *rootKey) (*rootKey, error) { return srk, nil })
}

// activate opens a credential for the object that subject gives, which is the
// storage root key, or one that is flushed at the end.
func (t *TPM) activate(parent, credential, dst []byte, subject func(*rootKey) (*rootKey, error)) (n int, err error) {
	r := reader{credential}
	r.sized()
	r.sized()
	if r.buf == nil || len(r.buf) != 0 {
		return 0, fmt.Errorf("%w: it is malformed", ErrCredential)
	}
	err = t.do("activating a credential", func() error {
		t.unload() // its slot is needed
		srk, err := t.root(parent)
		if err != nil {
			return err
		}
		object, err := subject(srk)
		if err != nil {
			return err
		}
		if object != srk {
			defer t.flushRoot(object)
		}
		ek, _, err := t.endorsement()
		if err != nil {
			return err
		}
		defer t.flushRoot(ek)
		s, err := t.endorsed(srk, ek)
		if err != nil {
			return err
		}
		defer t.dropSession(s)
		page, err := secmem.New(secmem.Max)
		if err != nil {
			return err
		}
		defer page.Destroy()
		w := writer{buf: page.Bytes()}
		w.raw(credential)
		if w.full {
			return fmt.Errorf("%w: it is too long", ErrCredential)
		}
		out, err := t.exec(command{
			code:    tpm2.TPMCCActivateCredential,
			handles: []tpm2.TPMHandle{object.handle, ek.handle}, names: []tpm2.TPM2BName{object.name, ek.name},
			open: true, params: w.buf[:w.n],
		}, s, page.Bytes())
		if err != nil {
			return credentialError(err)
		}
		r := reader{out}
		secret := r.sized()
		if r.buf == nil || len(r.buf) != 0 || len(secret) > len(dst) {
			return errFrame
		}
		n = secmem.Copy(dst, secret)
		return nil
	})
	return n, err
}

// credentialError tells a credential that the TPM does not open from other
// failures: all that is wrong with one is an error about a parameter.
func credentialError(err error) error {
	for _, rc := range []tpm2.TPMRC{tpm2.TPMRCIntegrity, tpm2.TPMRCValue, tpm2.TPMRCSize, tpm2.TPMRCECCPoint, tpm2.TPMRCInsufficient} {
		if errors.Is(err, rc) {
			return fmt.Errorf("%w: %w", ErrCredential, err)
		}
	}
	return err
}

// endorsed gives the session that may use an endorsement key: one that knows
// its empty authorisation value, or whose policy was satisfied with the empty
// password of the hierarchy. It encrypts answers.
func (t *TPM) endorsed(srk, ek *rootKey) (*hmacSession, error) {
	if ek.public.ObjectAttributes.UserWithAuth {
		return t.session(srk, nil, outOnly)
	}
	s, err := t.session(srk, nil, policy)
	if err != nil {
		return nil, err
	}
	_, err = tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: s.Handle(),
		NonceTPM:      s.NonceTPM(),
	}.Execute(t.link)
	if err == nil {
		return s, nil
	}
	t.dropSession(s)
	if isWrongAuth(err) {
		return nil, endorsementError()
	}
	return nil, fmt.Errorf("authorising the endorsement key: %w", err)
}
