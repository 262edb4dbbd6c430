package tpm

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// Foreign is a sealed object that another program has made on this TPM.
type Foreign struct {
	Parent  ForeignParent
	Public  []byte // TPMT_PUBLIC
	Private []byte // the buffer of TPM2B_PRIVATE
}

// ForeignParent is the key that a foreign object lies under.
type ForeignParent struct {
	handle    tpm2.TPMHandle    // a persistent key, or the hierarchy of a primary one
	templates []tpm2.TPMTPublic // of primary keys, the likely ones first
	name      []byte            // nil: any
}

// ICNParent is the key under which ICN's own TPM backend seals: a primary one
// in the owner hierarchy, made anew each time.
func ICNParent() ForeignParent {
	return ForeignParent{handle: tpm2.TPMRHOwner, templates: []tpm2.TPMTPublic{icnTemplate()}}
}

// icnTemplate is symmetric, so that no session can be salted to the key, and
// without noDA.
func icnTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgSymCipher,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, Decrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgSymCipher, &tpm2.TPMSSymCipherParms{Sym: aesCFB(128)}),
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgSymCipher, &tpm2.TPM2BDigest{}),
	}
}

// hierarchies are those that an object can lie in, with their names. What is in
// the null hierarchy ends with the next start of the TPM.
var hierarchies = map[tpm2.TPMHandle]string{
	tpm2.TPMRHOwner: "owner", tpm2.TPMRHEndorsement: "endorsement", tpm2.TPMRHNull: "null",
}

// Handles of persistent objects (Part 2, 7.2).
const (
	firstPersistent = 0x81000000
	lastPersistent  = 0x81FFFFFF
)

// ParentAt is the parent that a TPM 2.0 key file names: a persistent key, or a
// primary one of a hierarchy. rsa tells which of the latter's templates is the
// likely one, and name what it must be, unless it is nil.
func ParentAt(handle uint32, rsa bool, name []byte) (ForeignParent, error) {
	h := tpm2.TPMHandle(handle)
	p := ForeignParent{handle: h, name: name}
	if handle >= firstPersistent && handle <= lastPersistent {
		return p, nil
	}
	if _, ok := hierarchies[h]; !ok {
		return p, fmt.Errorf("the parent 0x%08x is neither a persistent key nor one of the owner, endorsement or null hierarchy", handle)
	}
	ecc, rsa2048 := storageTemplates(tpm2.ECCSRKTemplate), storageTemplates(tpm2.RSASRKTemplate)
	if rsa {
		ecc, rsa2048 = rsa2048, ecc
	}
	p.templates = append(ecc, rsa2048...)
	return p, nil
}

// storageTemplates are the forms in which the TCG's template of a storage root
// key is in use: with an empty unique, as OpenSSL's TPM engines and providers
// and ssh-tpm-agent have it, with zeros, as the TCG's provisioning guidance
// has it, and without noDA, which is the default of tpm2_createprimary.
func storageTemplates(zeros tpm2.TPMTPublic) []tpm2.TPMTPublic {
	empty := zeros
	empty.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	if zeros.Type == tpm2.TPMAlgRSA {
		empty.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	}
	tools := empty
	tools.ObjectAttributes.NoDA = false
	return []tpm2.TPMTPublic{empty, zeros, tools}
}

// ErrPolicyOnly: no password opens a sealed object, nor none.
var ErrPolicyOnly = errors.New("the sealed object opens by a policy")

// PolicyName names a command of a policy by its code (Part 2, 6.5.2).
func PolicyName(code uint32) string {
	name, ok := policyNames[tpm2.TPMCC(code)]
	if !ok {
		return fmt.Sprintf("command 0x%x", code)
	}
	return name
}

var policyNames = map[tpm2.TPMCC]string{
	tpm2.TPMCCPolicyAuthorize:         "PolicyAuthorize",
	tpm2.TPMCCPolicyAuthorizeNV:       "PolicyAuthorizeNV",
	tpm2.TPMCCPolicyAuthValue:         "PolicyAuthValue",
	tpm2.TPMCCPolicyCommandCode:       "PolicyCommandCode",
	tpm2.TPMCCPolicyCounterTimer:      "PolicyCounterTimer",
	tpm2.TPMCCPolicyCpHash:            "PolicyCpHash",
	tpm2.TPMCCPolicyDuplicationSelect: "PolicyDuplicationSelect",
	tpm2.TPMCCPolicyLocality:          "PolicyLocality",
	tpm2.TPMCCPolicyNameHash:          "PolicyNameHash",
	tpm2.TPMCCPolicyNV:                "PolicyNV",
	tpm2.TPMCCPolicyNvWritten:         "PolicyNvWritten",
	tpm2.TPMCCPolicyOR:                "PolicyOR",
	tpm2.TPMCCPolicyPassword:          "PolicyPassword",
	tpm2.TPMCCPolicyPCR:               "PolicyPCR",
	tpm2.TPMCCPolicySecret:            "PolicySecret",
	tpm2.TPMCCPolicySigned:            "PolicySigned",
	tpm2.TPMCCPolicyTemplate:          "PolicyTemplate",
	tpm2.TPMCCPolicyTicket:            "PolicyTicket",
}

// Check refuses what cannot be unsealed with a password or none. It asks no
// TPM.
func (f *Foreign) Check() error {
	_, err := f.public()
	return err
}

func (f *Foreign) public() (*tpm2.TPMTPublic, error) {
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](f.Public)
	if err != nil || !bytes.Equal(tpm2.Marshal(*p), f.Public) {
		return nil, errors.New("the public area of the object is malformed")
	}
	a := p.ObjectAttributes
	if p.Type != tpm2.TPMAlgKeyedHash || a.SignEncrypt || a.Decrypt || a.Restricted {
		return nil, errors.New("the object is a key of the TPM, which cannot be taken out of it, and no sealed data")
	}
	if !a.UserWithAuth {
		return nil, ErrPolicyOnly
	}
	return p, nil
}

// objectPassword is what the authorisation value of a foreign object is called.
const objectPassword = "password of the sealed object"

// ErrObjectPassword: the sealed object has a password, and another one or none
// was given.
var ErrObjectPassword = errors.New("wrong password of the sealed object")

// UnsealForeign puts the content of a foreign object into dst, which is in
// secret memory, and gives its size. root is the Name of a storage root key, to
// which the session is salted that encrypts the content on its way. owner is
// the owner hierarchy's password, auth the object's; both may be empty. The
// TPM may count a wrong auth.
func (t *TPM) UnsealForeign(root []byte, f Foreign, owner, auth, dst []byte) (n int, err error) {
	if _, err := f.public(); err != nil {
		return 0, err
	}
	if err := checkPassword(objectPassword, true, auth); err != nil {
		return 0, err
	}
	err = t.do("unsealing the object of another program", func() error {
		return t.underForeign(root, f.Parent, owner, bytes.TrimRight(auth, "\x00"), outOnly, func(parent *rootKey, s *hmacSession) error {
			key, err := t.loadForeign(parent, f)
			if err != nil {
				return err
			}
			defer t.flush(key.handle)
			n, err = t.unsealWith(key, s, dst)
			if isWrongAuth(err) {
				return verdict{ErrObjectPassword}
			}
			return err
		})
	})
	return n, err
}

// SealForeign seals a secret under a foreign parent: without a password and
// with no policy, for another program to unseal.
func (t *TPM) SealForeign(root []byte, p ForeignParent, owner, secret []byte) (f Foreign, err error) {
	if len(secret) < 1 || len(secret) > maxSecret {
		return f, fmt.Errorf("a sealed secret has 1 to %d bytes, not %d", maxSecret, len(secret))
	}
	f.Parent = p
	err = t.do("sealing for another program", func() error {
		return t.underForeign(root, p, owner, nil, inOut, func(parent *rootKey, s *hmacSession) error {
			b, err := t.create(parent, s, sealTemplate(sealstore.SealOptions{DictionaryAttack: true}), secret, nil, nil)
			f.Public, f.Private = b.Public, b.Private
			return err
		})
	})
	return f, err
}

// errNotChild: an object is not under the key that was tried.
var errNotChild = errors.New("it was sealed under another key or by another TPM, or is damaged")

// underForeign runs f with a foreign parent and a session of the kind that f
// needs. Where there are several keys that could be the parent, f is run with
// one after the other until it does not give errNotChild.
func (t *TPM) underForeign(root []byte, p ForeignParent, owner, auth []byte, dir direction, f func(*rootKey, *hmacSession) error) error {
	srk, err := t.root(root)
	if err != nil {
		return err
	}
	s, err := t.session(srk, auth, dir)
	if err != nil {
		return err
	}
	defer t.dropSession(s) // it may know a password
	if p.templates == nil {
		parent, err := t.persistentParent(p)
		if err == nil {
			err = f(parent, s)
		}
		return err
	}
	if err := t.checkOwner(p, owner); err != nil {
		return err
	}
	for _, template := range p.templates {
		parent, err := t.primaryParent(p.handle, template, owner)
		if err != nil {
			return err
		}
		if parent == nil {
			continue
		}
		if err = errNotChild; p.name == nil || bytes.Equal(p.name, parent.name.Buffer) {
			err = f(parent, s)
		}
		t.flush(parent.handle)
		if !errors.Is(err, errNotChild) {
			return err
		}
	}
	return verdict{fmt.Errorf("no key of the %s hierarchy opens the sealed object: %w", hierarchies[p.handle], errNotChild)}
}

// checkOwner refuses a password where the owner hierarchy has none.
func (t *TPM) checkOwner(p ForeignParent, owner []byte) error {
	if len(owner) == 0 || p.handle != tpm2.TPMRHOwner {
		return nil
	}
	props, err := t.properties(tpm2.TPMPTPermanent, 1)
	if err != nil {
		return err
	}
	return checkPassword("owner password", props[tpm2.TPMPTPermanent]&permanentOwnerAuth != 0, owner)
}

// persistentParent finds the key at a persistent handle.
func (t *TPM) persistentParent(p ForeignParent) (*rootKey, error) {
	r, err := tpm2.ReadPublic{ObjectHandle: p.handle}.Execute(t.link)
	if errors.Is(err, tpm2.TPMRCHandle) || errors.Is(err, tpm2.TPMRCValue) {
		return nil, verdict{fmt.Errorf("there is no key at 0x%08x, under which the object was sealed", uint32(p.handle))}
	}
	if err != nil {
		return nil, err
	}
	public, err := r.OutPublic.Contents()
	if err == nil {
		err = checkName(public, r.Name)
	}
	if err != nil {
		return nil, err
	}
	if p.name != nil && !bytes.Equal(p.name, r.Name.Buffer) {
		return nil, verdict{fmt.Errorf("the key at 0x%08x is another one than that under which the object was sealed", uint32(p.handle))}
	}
	return &rootKey{handle: p.handle, name: r.Name, public: *public}, nil
}

// primaryParent makes a primary key; nil if the TPM knows no such keys.
func (t *TPM) primaryParent(hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic, owner []byte) (k *rootKey, err error) {
	if hierarchy != tpm2.TPMRHOwner {
		owner = nil
	}
	err = t.withPassword(owner, func(s tpm2.Session) (err error) {
		k, err = t.createPrimary(hierarchy, template, s)
		return err
	})
	var fmt1 tpm2.TPMFmt1Error
	switch {
	case err == nil:
		return k, nil
	case isWrongAuth(err) && hierarchy != tpm2.TPMRHOwner:
		return nil, verdict{fmt.Errorf("the %s hierarchy has a password, which is not supported", hierarchies[hierarchy])}
	case isWrongAuth(err) && len(owner) > 0:
		return nil, ownerError(owner)
	case isWrongAuth(err):
		return nil, advice.With(fmt.Errorf("creating the key that the object is sealed under: %w", sealstore.ErrOwner),
			"give it with --owner-auth-source")
	case errors.As(err, &fmt1) && !isStale(err):
		return nil, nil
	}
	return nil, fmt.Errorf("creating the key that the object is sealed under: %w", err)
}

// loadForeign loads a foreign object. The caller flushes it.
func (t *TPM) loadForeign(parent *rootKey, f Foreign) (*loadedKey, error) {
	public, err := f.public()
	if err != nil {
		return nil, err
	}
	// A parent with a password may count that none was given.
	t.counting = !parent.public.ObjectAttributes.NoDA
	r, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: parent.handle, Name: parent.name, Auth: tpm2.PasswordAuth(nil)},
		InPrivate:    tpm2.TPM2BPrivate{Buffer: f.Private},
		InPublic:     tpm2.New2B(*public),
	}.Execute(t.link)
	var fmt1 tpm2.TPMFmt1Error
	switch {
	case err == nil:
		t.counting = false
	case isWrongAuth(err):
		return nil, verdict{fmt.Errorf("the key at 0x%08x, under which the object was sealed, has a password, which is not supported", uint32(parent.handle))}
	case errors.As(err, &fmt1) && !isStale(err):
		return nil, verdict{fmt.Errorf("the TPM does not take the sealed object: %w", errNotChild)}
	default:
		return nil, fmt.Errorf("loading a sealed object: %w", err)
	}
	return &loadedKey{handle: r.ObjectHandle, name: r.Name, byAuth: true, counts: !public.ObjectAttributes.NoDA}, nil
}
