package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
	"github.com/InterCooperative-Network/icn-p11/internal/icnblob"
	"github.com/InterCooperative-Network/icn-p11/internal/keyfile"
	"github.com/InterCooperative-Network/icn-p11/internal/pinsource"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/internal/tss2"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// keySource says how a file with a private key opens.
type keySource struct {
	passphrase pinsource.Source // of an OpenSSH key
	auth       *passwordFlag    // of a sealed object
	plaintext  bool             // ICN's blob of the kind that is not sealed
}

func newKeySource() *keySource {
	return &keySource{auth: &passwordFlag{name: "auth-source", what: "password of the sealed object", of: "the password of a sealed object"}}
}

// keySourceFlags are those that on declares.
var keySourceFlags = []string{"passphrase-source", "auth-source", "from-plaintext"}

func (k *keySource) on(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Var(&k.passphrase, "passphrase-source", "where the passphrase of an encrypted key comes from")
	f.BoolVar(&k.plaintext, "from-plaintext", false, "import an ICN blob of the kind that holds the seed in the clear")
	completeSource(cmd, "passphrase-source")
	k.auth.on(cmd)
}

// keyFile is a file with a private key, as it lies there.
type keyFile struct {
	name  string
	data  *secmem.Buffer
	size  int
	plain bool          // ICN's blob of the kind that is not sealed
	blob  *icnblob.Blob // nil: none of version 2
	tss   *tss2.Key     // nil: none
	// sealed is what blob or tss holds.
	sealed tpm.Foreign
}

// Names of the formats, beside those of keyfile.
const (
	formatICN      = "ICN sealed blob"
	formatICNPlain = "ICN blob in the clear"
	formatTSS2     = "TSS2 sealed data"
)

// readKeyFile reads a file and finds out what it is. Nothing is asked for, and
// the TPM is not used. The caller destroys the result.
func readKeyFile(name string, plaintext bool) (*keyFile, error) {
	r, err := openInput(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f := &keyFile{name: name}
	if f.data, f.size, err = keyfile.Read(r); err == nil {
		if err = f.recognise(); err == nil && plaintext && !f.plain {
			err = errors.New("--from-plaintext is only for an ICN blob that holds the seed in the clear, and this is none")
		} else if f.plain && !plaintext {
			err = advice.With(icnblob.ErrPlaintext, "import it with --from-plaintext, and destroy the file")
		}
	}
	if err != nil {
		f.destroy()
		return nil, pathCause(name, err)
	}
	return f, nil
}

func (f *keyFile) destroy() { f.data.Destroy() }

func (f *keyFile) bytes() []byte { return f.data.Bytes()[:f.size] }

func (f *keyFile) recognise() (err error) {
	data := f.bytes()
	if len(data) == eddsa.SeedSize {
		return nil // a bare seed, whatever its bytes are
	}
	if icnblob.Is(data) {
		f.blob, err = icnblob.Parse(data)
		if errors.Is(err, icnblob.ErrPlaintext) {
			f.plain = true
			return nil
		}
		if err == nil {
			f.sealed = tpm.Foreign{Parent: tpm.ICNParent(), Public: f.blob.Public, Private: f.blob.Private}
			err = f.sealed.Check()
		}
		return err
	}
	kind, body, ok := keyfile.Block(data)
	if !ok || kind != tss2.PEMType {
		return nil
	}
	der := make([]byte, len(body))
	n, err := keyfile.Decode(der, body)
	if err != nil {
		return errors.New("the " + tss2.PEMType + " is not in base64")
	}
	if f.tss, err = tss2.Parse(der[:n]); err != nil {
		return err
	}
	return f.checkTSS2()
}

// checkTSS2 refuses what cannot be unsealed here, and tells what the file wants.
func (f *keyFile) checkTSS2() (err error) {
	k := f.tss
	if k.Type == tss2.Importable {
		return advice.With(errors.New("the object has to be imported into the TPM first (TPM2_Import), which is not supported"),
			"seal the key itself to this TPM, or import it from a file")
	}
	f.sealed = tpm.Foreign{Public: k.Public, Private: k.Private}
	if f.sealed.Parent, err = tpm.ParentAt(k.Parent, k.RSAParent.Set(), k.ParentName); err != nil {
		return err
	}
	err = f.sealed.Check()
	if err != nil && !errors.Is(err, tpm.ErrPolicyOnly) {
		return err
	}
	steps := policySteps(k.Policy)
	for _, a := range k.AuthPolicies {
		steps = append(steps, policySteps(a.Policy)...)
	}
	if err == nil && len(steps) == 0 {
		return nil
	}
	wants := "which the file does not tell"
	if len(steps) > 0 {
		wants = strings.Join(steps, ", ")
	}
	return advice.With(fmt.Errorf("%w (%s), which is not supported", tpm.ErrPolicyOnly, wants),
		"unseal it with the program that sealed it, into a pipe to icn-p11 import TOKEN -")
}

func policySteps(p []tss2.Command) (names []string) {
	for _, c := range p {
		names = append(names, tpm.PolicyName(c.Code))
	}
	return names
}

// seed is a private key that is about to be imported.
type seed struct {
	*secmem.Buffer
	public [32]byte
	format string
}

// destroy wipes the seed; a nil one may be destroyed.
func (s *seed) destroy() {
	if s != nil {
		s.Destroy()
	}
}

// key is what the seed becomes in a token.
func (s *seed) key(label string) tokenKey {
	return tokenKey{publicKey: publicKey{label: label, public: s.public}, id: s.public[:]}
}

// openKey gets the seed out of a file, and out of the TPM where it is sealed to
// it. root is the Name of the storage root key of the token that it goes to,
// or would.
func (p *place) openKey(f *keyFile, k *keySource, root, owner []byte) (*seed, error) {
	s, err := &seed{}, error(nil)
	var claimed *[32]byte // the public key that the file tells
	switch {
	case f.plain:
		s.format = formatICNPlain
		if s.Buffer, err = secmem.New(eddsa.SeedSize); err == nil {
			var public [32]byte
			public, err = icnblob.ParsePlaintext(s.Bytes(), f.bytes())
			claimed = &public
		}
	case f.blob != nil:
		s.format, claimed = formatICN, &f.blob.PublicKey
		s.Buffer, err = p.unsealKey(f, k, root, owner)
	case f.tss != nil:
		s.format = formatTSS2
		s.Buffer, err = p.unsealKey(f, k, root, owner)
	default:
		s.Buffer, s.format, err = k.parse(f.bytes())
	}
	if err == nil {
		s.public, err = eddsa.PublicOf(s.Bytes())
	}
	if err == nil && claimed != nil && *claimed != s.public {
		err = fmt.Errorf("the file says that it is of %s, but its seed is that of %s: it was altered, or put together from two; nothing is imported",
			did.Encode(*claimed), did.Encode(s.public))
	}
	if err != nil {
		s.Destroy()
		return nil, pathCause(f.name, err)
	}
	return s, nil
}

// parse reads a key that no TPM is needed for.
func (k *keySource) parse(data []byte) (*secmem.Buffer, string, error) {
	var pass *secmem.Buffer
	defer func() { pass.Destroy() }()
	return keyfile.Parse(data, func() (_ []byte, err error) {
		if pass, err = k.passphrase.ReadPassword("passphrase"); err != nil {
			return nil, err
		}
		return pass.Bytes(), nil
	})
}

// unsealKey gets a seed out of a sealed object of another program.
func (p *place) unsealKey(f *keyFile, k *keySource, root, owner []byte) (*secmem.Buffer, error) {
	password, err := k.auth.read(f.tss != nil && f.tss.WantsPassword())
	if err != nil {
		return nil, err
	}
	defer password.Destroy()
	page, err := secmem.New(sealstore.MaxSecret)
	if err != nil {
		return nil, err
	}
	defer page.Destroy()
	_, end := p.progress(atTPM)
	n, err := p.tpm.UnsealForeign(root, f.sealed, owner, password.Bytes(), page.Bytes())
	end()
	p.tpm.Release()
	switch {
	case errors.Is(err, tpm.ErrObjectPassword) && password.Bytes() == nil:
		return nil, advice.With(errors.New("the sealed object has a password"), "say with --auth-source where it comes from")
	case errors.Is(err, tpm.ErrObjectPassword):
		return nil, tpm.ErrObjectPassword
	case err != nil:
		return nil, explain(err)
	}
	if f.blob != nil && n != eddsa.SeedSize {
		return nil, fmt.Errorf("what is sealed in the blob has %d bytes, and a seed has %d", n, eddsa.SeedSize)
	}
	seed, _, err := keyfile.Parse(page.Bytes()[:n], func() ([]byte, error) { return nil, keyfile.ErrPassphrase })
	if err != nil {
		err = fmt.Errorf("what is sealed is no Ed25519 key: %w", err)
	}
	return seed, err
}

// warn tells the operator what an imported file is from now on.
func (a *app) warn(f *keyFile) {
	switch {
	case f.plain:
		a.note("%s holds the private key in the clear: destroy it, and every copy. Overwriting (shred) does not reach what an SSD, "+
			"a copy-on-write file system or a snapshot keeps. Where the disk was ever copied or backed up, or left the machine, "+
			"hold the key for exposed and make a new identity.", f.name)
	case f.blob != nil:
		a.note("%s still opens on this TPM without a PIN: destroy it, and every copy, as soon as the node signs through the token.", f.name)
	}
}
