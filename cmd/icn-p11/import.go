package main

import (
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/internal/eddsa"
	"github.com/InterCooperative-Network/icn-p11/internal/keyfile"
	"github.com/InterCooperative-Network/icn-p11/internal/pinsource"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

func (a *app) importCommand() *cobra.Command {
	var c change
	var label string
	var passphrase pinsource.Source
	cmd := &cobra.Command{
		Use:   "import TOKEN FILE",
		Short: "Import an Ed25519 private key",
		Long: `Seal an Ed25519 private key from a file into a token: PKCS#8 (PEM or DER), an
OpenSSH private key, also with a passphrase, or the 32 bytes of a seed. FILE may be
fd:N, or - for standard input. The user PIN is needed. The file stays: destroy it,
and every copy, unless it is meant as a backup.`,
		Example: `  icn-p11 import node ~/.ssh/id_ed25519 --label mail
  icn-p11 import node fd:3 --label seed 3<seed`,
		Args:              tokenAnd("FILE"),
		ValidArgsFunction: tokenThenFile,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			if err := checkLabel("--label", label, 255); err != nil {
				return err
			}
			seed, format, err := readKey(args[1], passphrase)
			if err != nil {
				return fmt.Errorf("%s: %w", args[1], err)
			}
			defer seed.Destroy()
			key, err := eddsa.NewKey(seed.Bytes())
			if err != nil {
				return err
			}
			k := tokenKey{publicKey: publicKey{label: label, public: key.Public()}}
			key.Destroy()
			k.id = k.public[:]
			p, t, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			absent := func(m *module, s p11.SessionHandle) error { return m.absent(s, t, label, k.public) }
			if err := p.inModule(t, absent); err != nil {
				return explain(err)
			}
			if c.dryRun {
				err = p.changeable(t, sealstore.User)
			} else {
				err = p.asUser(t, c.user, func(m *module, s p11.SessionHandle) error {
					if err := absent(m, s); err != nil {
						return err
					}
					return m.importKey(s, k, seed)
				})
			}
			if err != nil {
				return err
			}
			r := k.row()
			r.DryRun = c.dryRun
			if err := a.outcome(c, r, "Key %s (%s), ID %x, is imported into token %s", printable(label), format, k.id, printable(t.Label)); err != nil || c.json {
				return err
			}
			_, err = fmt.Fprintln(a.out, k.did())
			return err
		}),
	}
	cmd.Flags().StringVar(&label, "label", "", "label of the key")
	cmd.Flags().Var(&passphrase, "passphrase-source", "where the passphrase of an encrypted key comes from")
	completeSource(cmd, "passphrase-source")
	noCompletion(cmd, "label")
	c.flags(cmd, false, true, false)
	return cmd
}

// readKey reads a private key from a file, a descriptor or standard input.
func readKey(name string, passphrase pinsource.Source) (seed *secmem.Buffer, format string, err error) {
	var r io.Reader = os.Stdin
	if number, ok := strings.CutPrefix(name, "fd:"); ok {
		fd, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return nil, "", usage("fd: takes the number of an open file descriptor")
		}
		r = os.NewFile(uintptr(fd), name)
	} else if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, "", errors.Unwrap(err)
		}
		defer f.Close()
		r = f
	}
	data, n, err := keyfile.Read(r)
	if err != nil {
		return nil, "", err
	}
	defer data.Destroy()
	var pass *secmem.Buffer
	defer func() { pass.Destroy() }()
	return keyfile.Parse(data.Bytes()[:n], func() ([]byte, error) {
		if pass, err = passphrase.ReadPassword("passphrase"); err != nil {
			return nil, err
		}
		return pass.Bytes(), nil
	})
}

// importKey stores both halves of a key, or nothing.
func (m *module) importKey(s p11.SessionHandle, k tokenKey, seed *secmem.Buffer) error {
	yes, no := []byte{1}, []byte{0}
	private, err := m.CreateObject(s, []p11.Attribute{
		{Type: p11.CKA_CLASS, Value: ulong(p11.CKO_PRIVATE_KEY)},
		{Type: p11.CKA_KEY_TYPE, Value: ulong(p11.CKK_EC_EDWARDS)},
		{Type: p11.CKA_TOKEN, Value: yes},
		{Type: p11.CKA_PRIVATE, Value: yes},
		{Type: p11.CKA_SENSITIVE, Value: yes},
		{Type: p11.CKA_EXTRACTABLE, Value: no},
		{Type: p11.CKA_SIGN, Value: yes},
		{Type: p11.CKA_LABEL, Value: []byte(k.label)},
		{Type: p11.CKA_ID, Value: k.id},
		{Type: p11.CKA_EC_PARAMS, Value: edwardsParams},
		{Type: p11.CKA_EC_POINT, Value: k.public[:]},
		{Type: p11.CKA_VALUE, Value: seed.Bytes()},
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
			{Type: p11.CKA_LABEL, Value: []byte(k.label)},
			{Type: p11.CKA_ID, Value: k.id},
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
