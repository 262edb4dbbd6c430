package main

import (
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

func (a *app) importCommand() *cobra.Command {
	var c change
	var label string
	k, owner := newKeySource(), ownerFlag()
	cmd := &cobra.Command{
		Use:   "import TOKEN FILE",
		Short: "Import an Ed25519 private key",
		Long: `Seal an Ed25519 private key from a file into a token: PKCS#8 (PEM or DER), an
OpenSSH private key, also with a passphrase, the 32 bytes of a seed, data that
another program has sealed to this TPM (TSS2 PRIVATE KEY), or the sealed identity
of an ICN node (sealed-0x81000001.blob). FILE may be fd:N, or - for standard
input. The user PIN is needed. The file stays: destroy it, and every copy, unless
it is meant as a backup. A token without keys gets an identity key by default.`,
		Example: `  icn-p11 import node ~/.ssh/id_ed25519 --label mail
  icn-p11 import node sealed.pem --label web --auth-source file:password`,
		Args:              tokenAnd("FILE"),
		ValidArgsFunction: tokenThenFile,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			if label != "" {
				if err := checkLabel("--label", label, 255); err != nil {
					return err
				}
			}
			f, err := readKeyFile(args[1], k.plaintext)
			if err != nil {
				return err
			}
			defer f.destroy()
			p, t, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			return a.importInto(p, t, f, k, owner, label, c)
		}),
	}
	cmd.Flags().StringVar(&label, "label", "", "label of the key (default: "+identityLabel+", in a token without keys)")
	k.on(cmd)
	owner.on(cmd)
	noCompletion(cmd, "label")
	c.flags(cmd, false, true, false)
	return cmd
}

// importRow is what import prints.
type importRow struct {
	keyRow
	Format string `json:"format"`
}

func (a *app) importInto(p *place, t sealstore.TokenInfo, f *keyFile, k *keySource, owner *passwordFlag, label string, c change) error {
	var keys []tokenKey
	err := p.inModule(t, func(m *module, s p11.SessionHandle) (err error) {
		keys, err = m.keys(s)
		return err
	})
	if err != nil {
		return explain(err)
	}
	if label == "" && len(keys) > 0 {
		return usage("--label is needed: token %s has keys already", printable(t.Label))
	}
	if label == "" {
		label = identityLabel
	}
	if err := absentFrom(keys, t, label); err != nil {
		return err
	}
	password, err := owner.read(false)
	if err != nil {
		return err
	}
	defer password.Destroy()
	seed, err := p.openKey(f, k, t.Parent, password.Bytes())
	if err != nil {
		return err
	}
	defer seed.Destroy()
	if err := absentFrom(keys, t, label, seed.public); err != nil {
		return err
	}
	if c.dryRun {
		err = p.changeable(t, sealstore.User)
	} else {
		err = p.asUser(t, c.user, func(m *module, s p11.SessionHandle) error {
			if err := m.absent(s, t, label, seed.public); err != nil {
				return err
			}
			return m.importKey(s, label, seed)
		})
	}
	if err != nil {
		return err
	}
	key := seed.key(label)
	r := importRow{key.row(), seed.format}
	r.DryRun = c.dryRun
	err = a.outcome(c, r, "Key %s (%s), ID %x, is imported into token %s", printable(label), seed.format, key.id, printable(t.Label))
	if err == nil && !c.json {
		_, err = fmt.Fprintln(a.out, key.did())
	}
	if !c.dryRun {
		a.warn(f)
	}
	return err
}

// importKey stores both halves of a key, or nothing.
func (m *module) importKey(s p11.SessionHandle, label string, k *seed) error {
	yes, no := []byte{1}, []byte{0}
	private, err := m.CreateObject(s, []p11.Attribute{
		{Type: p11.CKA_CLASS, Value: ulong(p11.CKO_PRIVATE_KEY)},
		{Type: p11.CKA_KEY_TYPE, Value: ulong(p11.CKK_EC_EDWARDS)},
		{Type: p11.CKA_TOKEN, Value: yes},
		{Type: p11.CKA_PRIVATE, Value: yes},
		{Type: p11.CKA_SENSITIVE, Value: yes},
		{Type: p11.CKA_EXTRACTABLE, Value: no},
		{Type: p11.CKA_SIGN, Value: yes},
		{Type: p11.CKA_LABEL, Value: []byte(label)},
		{Type: p11.CKA_ID, Value: k.public[:]},
		{Type: p11.CKA_EC_PARAMS, Value: edwardsParams},
		{Type: p11.CKA_EC_POINT, Value: k.public[:]},
		{Type: p11.CKA_VALUE, Value: k.Bytes()},
	})
	if err != nil {
		return err
	}
	err = m.signsAs(s, private, k.public)
	if err == nil {
		_, err = m.CreateObject(s, []p11.Attribute{
			{Type: p11.CKA_CLASS, Value: ulong(p11.CKO_PUBLIC_KEY)},
			{Type: p11.CKA_KEY_TYPE, Value: ulong(p11.CKK_EC_EDWARDS)},
			{Type: p11.CKA_TOKEN, Value: yes},
			{Type: p11.CKA_PRIVATE, Value: no},
			{Type: p11.CKA_VERIFY, Value: yes},
			{Type: p11.CKA_LABEL, Value: []byte(label)},
			{Type: p11.CKA_ID, Value: k.public[:]},
			{Type: p11.CKA_EC_PARAMS, Value: edwardsParams},
			{Type: p11.CKA_EC_POINT, Value: k.public[:]},
		})
	}
	if err != nil {
		if derr := m.DestroyObject(s, private); derr != nil {
			err = errors.Join(err, derr)
		}
	}
	return err
}

// signsAs makes sure that a key has arrived: it signs, and its public half
// verifies.
func (m *module) signsAs(s p11.SessionHandle, private p11.ObjectHandle, public [32]byte) error {
	key := signer{m, s, private, public[:]}
	message := []byte("icn-p11 import")
	sig, err := key.Sign(nil, message, crypto.Hash(0))
	if err != nil {
		return err
	}
	if !ed25519.Verify(public[:], message, sig) {
		return errors.New("the imported key does not sign as it should")
	}
	return nil
}
