package main

import (
	"cmp"
	"crypto"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/internal/backup"
	"github.com/InterCooperative-Network/icn-p11/internal/bootlog"
	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// restoreFlags are those of "backup restore".
type restoreFlags struct {
	change
	opener
	label   string
	replace bool
	force   bool
}

func (a *app) backupRestore() *cobra.Command {
	var c restoreFlags
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Restore a token from a backup",
		Long: `Make the token of a backup again, on this TPM: with its serial number, keys, DID
and label, in its slot where that is free, and print the DID. All of it is there
afterwards, or nothing has changed. A recoverable token gets the PINs that are
given, and is bound to PCRs as they are now if the configuration says so, or if it
was bound before. A token that is not recoverable keeps its PINs, which the TPM
checks, and can be restored onto the TPM that it was made on alone. FILE may be
fd:N, or - for standard input.`,
		Example: `  icn-p11 backup restore node.backup
  icn-p11 backup restore node.backup --identity offline.key --replace`,
		Args: oneFile,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			if err := c.opener.check(); err != nil {
				return err
			}
			if c.label != "" {
				if err := checkLabel("--label", c.label, sealstore.MaxLabel); err != nil {
					return err
				}
			}
			return a.restore(args[0], c)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&c.label, "label", "", "another label for the token")
	f.BoolVar(&c.replace, "replace", false, "put the backup in the place of the token that is there")
	f.BoolVar(&c.force, "force", false, "also a token that needs no PIN and is not bound to the platform")
	noCompletion(cmd, "label")
	c.opener.flags(cmd)
	c.change.flags(cmd, true, true, true)
	return cmd
}

// restoreResult is what "backup restore" prints.
type restoreResult struct {
	Serial string      `json:"serial"`
	Label  string      `json:"label"`
	Slot   *p11.SlotID `json:"slot,omitempty"`
	Kind   backup.Kind `json:"kind"`
	DID    string      `json:"did,omitempty"`
	*held
	Bank     string `json:"pcr_bank,omitempty"`
	PCRs     []int  `json:"pcrs,omitempty"`
	EventLog string `json:"event_log,omitempty"` // why it is not kept
	DryRun   bool   `json:"dry_run,omitempty"`
}

func (a *app) restore(name string, c restoreFlags) error {
	p, err := a.open()
	if err != nil {
		return err
	}
	defer p.tpm.Close()
	// Nobody should type a passphrase to hear that nothing can be stored, or that the TPM is missing.
	if err := p.store.Writable(); err != nil {
		return explain(err)
	}
	if err := p.reachable(); err != nil {
		return err
	}
	p.tpm.Release()
	b, err := a.openBackup(name, c.opener)
	if err != nil {
		return err
	}
	defer b.Destroy()
	m := &b.Manifest
	r := restoreResult{Serial: m.Token.Serial, Label: cmp.Or(c.label, m.Token.Label), Kind: m.Kind, DID: m.DID, held: heldBy(m), DryRun: c.dryRun}
	if b.Contents != nil {
		b.Contents.Binding = p.bindingOf(b.Contents)
	}
	if spec := bindingIn(b); spec != nil {
		r.Bank, r.PCRs = spec.Bank, slices.Sorted(slices.Values(spec.PCRs))
	}
	exists, err := p.mayRestore(b, r.Label, c)
	if err != nil {
		return err
	}
	if !c.dryRun {
		if exists && !c.yes {
			question := fmt.Sprintf("The token that is there, with all that was made in it since %s, will be gone for good.", m.Created.Format("2006-01-02 15:04:05 MST"))
			if err := confirm(question, r.Serial); err != nil {
				return err
			}
		}
		// The PINs of a recoverable token are those that it gets.
		err := c.withPINs(m.Token.UserPIN, b.Contents != nil, func(user, so []byte) error {
			return a.putBack(p, b, c, &r, user, so)
		})
		if err != nil {
			return err
		}
	}
	if err := a.outcome(c.change, r, "Token %s, serial number %s, is restored: %s", printable(r.Label), r.Serial, r.held); err != nil || c.json || c.dryRun {
		return err
	}
	a.note("It is in slot %s", slotOf(r.Slot))
	if r.PCRs != nil && m.Kind == backup.Recoverable {
		a.note("Bound to PCRs %s of the %s bank, as they are now on this machine", numbers(r.PCRs), r.Bank)
	}
	if r.TPMKeys > 0 && m.Kind == backup.Recoverable {
		a.note("Not restored: %s", fixed(r.TPMKeys))
	}
	if r.DID != "" {
		_, err = fmt.Fprintln(a.out, r.DID)
	}
	return err
}

// bindingIn is what a restored token is bound to.
func bindingIn(b *backup.Backup) *sealstore.BindingSpec {
	if b.Contents != nil {
		return b.Contents.Binding
	}
	if x := b.Manifest.Token.Binding; x != nil {
		return &sealstore.BindingSpec{Bank: x.Bank, PCRs: x.PCRs}
	}
	return nil
}

// mayRestore tells whether a token is there already, and why a backup cannot be
// restored, as far as that can be known without PINs.
func (p *place) mayRestore(b *backup.Backup, label string, c restoreFlags) (exists bool, err error) {
	m := &b.Manifest
	if m.Kind == backup.Sealed {
		_, end := p.progress(atTPM)
		parent, err := p.tpm.Parent()
		end()
		p.tpm.Release()
		if err != nil {
			return false, explain(err)
		}
		if m.Token.Parent != hex.EncodeToString(parent) {
			return false, errors.New("the token of this backup is not recoverable: it was sealed to another TPM, or this one was cleared since, and nothing else opens it")
		}
	}
	serial := m.Token.Serial
	if exists = p.has(serial); exists && !c.replace {
		return exists, fmt.Errorf("token %s is there already: --replace puts the backup in its place", serial)
	}
	if err := p.unused(label, serial); err != nil {
		if c.label == "" {
			err = fmt.Errorf("%w (--label)", err)
		}
		return exists, err
	}
	if m.Kind == backup.Recoverable && m.Token.NoPIN && b.Contents.Binding == nil && !c.force {
		return exists, errors.New("the token needs no PIN and is not bound to the platform: whoever starts this machine with any system can sign; insist with --force")
	}
	return exists, nil
}

// putBack restores the token and has it sign.
func (a *app) putBack(p *place, b *backup.Backup, c restoreFlags, r *restoreResult, user, so []byte) error {
	step, end := p.progress("Restoring")
	defer end()
	params := sealstore.RestoreParams{UserPIN: user, SOPIN: so, Label: r.Label,
		Reserved: p.cfg.FixedSlots(), Replace: c.replace, Progress: step}
	var t sealstore.TokenInfo
	var err error
	if b.Contents != nil {
		t, err = p.store.Restore(b.Contents, params)
	} else {
		t, err = p.store.RestoreFiles(b.Files, params)
	}
	p.tpm.Release()
	if err != nil {
		return p.bindingFailure(sealstore.TokenInfo{Serial: r.Serial}, err)
	}
	if err := p.signsAgain(t, user, &b.Manifest); err != nil {
		return fmt.Errorf("token %s is restored, but does not sign: %w", t.Serial, err)
	}
	end()
	if b.Contents != nil && b.Contents.Binding != nil {
		if tok, err := p.store.Token(t.Serial); err == nil {
			r.EventLog = a.keepBootLog(tok, bootlog.Path)
		}
	}
	slots, _ := p.slots()
	r.Slot = slotIn(slots, t.Serial)
	return nil
}

// signsAgain has the identity of a restored token sign, as an application would.
func (p *place) signsAgain(t sealstore.TokenInfo, user []byte, want *backup.Manifest) error {
	if !t.UserPIN && !t.NoPIN {
		return nil // nobody can log in before the SO has set the user PIN
	}
	return p.inModule(t, func(m *module, s p11.SessionHandle) error {
		if err := m.Login(s, p11.CKU_USER, user); err != nil {
			return p.pinFailure("user", err)
		}
		keys, err := m.keys(s)
		if err != nil {
			return explain(err)
		}
		for _, k := range want.Keys {
			if k.DID != want.DID && want.DID != "" {
				continue // each seal was opened already
			}
			i := slices.IndexFunc(keys, func(have tokenKey) bool { return have.did() == k.DID })
			if i < 0 {
				return fmt.Errorf("%s is missing", k.DID)
			}
			if err := m.proves(s, keys[i]); err != nil {
				return fmt.Errorf("%s: %w", k.DID, explain(err))
			}
		}
		return nil
	})
}

// proves has a key sign and checks the signature.
func (m *module) proves(s p11.SessionHandle, k tokenKey) error {
	key, err := m.signer(s, k)
	if err != nil {
		return err
	}
	message := []byte("icn-p11 restore")
	sig, err := key.Sign(nil, message, crypto.Hash(0))
	if err == nil && !ed25519.Verify(k.public[:], message, sig) {
		err = errors.New("its signature is wrong")
	}
	return err
}
