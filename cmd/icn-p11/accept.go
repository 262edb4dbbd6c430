package main

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/bootlog"
	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/internal/migration"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

type acceptFlags struct {
	change
	file    string
	proof   string
	label   string
	did     string
	replace bool
	force   bool
}

func (a *app) migrateAccept() *cobra.Command {
	var c acceptFlags
	cmd := &cobra.Command{
		Use:   "accept FILE",
		Short: "Take a token that another machine has sent",
		Long: `On the machine that has made the offer: import the keys into its TPM, make the
token anew there, under PINs of its own, and print the DID. All of it is there
afterwards, or nothing has changed. It is bound to the PCRs as they are now where
the configuration says so, or where it was bound before. Where the token is moved,
every key signs a proof for the other machine, in FILE.proof unless --proof names
another file. If it was interrupted, the same command completes it. Everybody who
has the offer can send to it: --did says whose key has to be in what has arrived.`,
		Example: `  icn-p11 migrate accept node.parcel --dry-run
  icn-p11 migrate accept node.parcel --did did:icn:zDu2dDpHMXewGo7jjvCHtbcKJhFt8QPQX2VjuozWNtvZt`,
		Args: oneFile,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			c.file = args[0]
			if c.label != "" {
				if err := checkLabel("--label", c.label, sealstore.MaxLabel); err != nil {
					return err
				}
			}
			if c.did != "" {
				if _, err := did.Parse(c.did); err != nil {
					return usage("--did: %w", err)
				}
			}
			return a.accept(c)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&c.proof, "proof", "", "file for the proof of possession")
	f.StringVar(&c.label, "label", "", "another label for the token")
	f.StringVar(&c.did, "did", "", "DID that has to be in it")
	f.BoolVar(&c.replace, "replace", false, "put the token in the place of one with its serial number")
	f.BoolVar(&c.force, "force", false, "also a token that needs no PIN and is not bound to the platform")
	noCompletion(cmd, "label", "did")
	c.flags(cmd, true, true, true)
	return cmd
}

func (a *app) accept(c acceptFlags) error {
	parcel, err := parseFile(c.file, migration.MaxParcel, migration.ParseParcel)
	if err != nil {
		return err
	}
	if c.proof == "" && parcel.Move {
		if c.proof = c.file + ".proof"; !isPath(c.file) {
			return usage("--proof is needed: the token is to be moved")
		}
	}
	p, err := a.open()
	if err != nil {
		return err
	}
	defer p.tpm.Close()
	x, err := a.unpack(p, parcel)
	if err != nil {
		return fmt.Errorf("%s: %w", c.file, err)
	}
	defer x.Destroy()
	d := x.Describe()
	defer d.Destroy()
	here, err := p.mayAccept(x, d, c)
	if err != nil {
		return err
	}
	label := d.Label
	if c.label != "" {
		label = c.label
	}
	r := migrationResult{Serial: d.Serial, Label: label, Offer: x.Offer.String(), Root: hex.EncodeToString(x.RootName), Move: x.Move, File: c.file, Proof: c.proof, DryRun: c.dryRun}
	if !c.dryRun {
		if c.replace && !c.yes && p.has(d.Serial) {
			if err := confirm("The token that is there will be gone for good, with all that was made in it.", d.Serial); err != nil {
				return err
			}
		}
		if r.DID, err = a.take(p, x, d, here, c); err != nil {
			return err
		}
	}
	return a.accepted(r, c)
}

func (a *app) accepted(r migrationResult, c acceptFlags) error {
	if err := a.outcome(c.change, r, "Token %s, serial number %s, has arrived", printable(r.Label), r.Serial); err != nil || c.json || c.dryRun {
		return err
	}
	if r.Proof != "" {
		a.note("The proof is in %s", r.Proof)
	}
	if r.Move {
		a.note("On the other machine: icn-p11 migrate finish %s PROOF", r.Serial)
	}
	if r.DID == "" {
		return nil
	}
	_, err := fmt.Fprintln(a.out, r.DID)
	return err
}

// isPath tells whether FILE is a file, and not a descriptor.
func isPath(name string) bool { return name != "-" && !strings.HasPrefix(name, "fd:") }

// unpack opens what was sent to this machine, as far as that goes without
// importing a key. The caller destroys it.
func (a *app) unpack(p *place, parcel *migration.Parcel) (*migration.Opened, error) {
	if err := p.store.Writable(); err != nil {
		return nil, explain(err)
	}
	id := sealstore.OfferID(parcel.Offer)
	if err := p.hasOffer(id); err != nil {
		return nil, err
	}
	_, end := a.progress("Opening")
	defer end()
	parent, err := p.tpm.Parent()
	if err != nil {
		return nil, explain(err)
	}
	if !bytes.Equal(parent, parcel.RootName) {
		return nil, fmt.Errorf("it was sent to the TPM whose storage root key has the Name %x, and that of this one has %x", parcel.RootName, parent)
	}
	secret, err := secmem.New(sealstore.MaxSecret)
	if err != nil {
		return nil, err
	}
	defer secret.Destroy()
	n, err := p.store.OpenOffer(id, secret.Bytes())
	if err != nil {
		return nil, explain(err)
	}
	x, err := parcel.Open(secret.Bytes()[:n], func(credential, dst []byte) (int, error) {
		return p.tpm.ActivateRoot(parent, credential, dst)
	})
	return x, explain(err)
}

// mayAccept tells why a token that was sent cannot be taken, as far as that can
// be known without PINs. here is the token if it is here already, and not to be
// replaced: it may be that it was taken, and the proof is missing.
func (p *place) mayAccept(x *migration.Opened, d *sealstore.Contents, c acceptFlags) (here *sealstore.Token, err error) {
	if err := d.Check(); err != nil {
		return nil, err
	}
	if key, err := did.Parse(c.did); err == nil && !x.Has(key) {
		return nil, fmt.Errorf("the key of %s is not in it: it is another token than the one that is meant", c.did)
	}
	label := d.Label
	if c.label != "" {
		label = c.label
	}
	if err := p.unused(label, d.Serial); err != nil {
		if c.label == "" {
			err = fmt.Errorf("%w (--label)", err)
		}
		return nil, err
	}
	if d.NoPIN && p.bindingOf(d) == nil && !c.force {
		return nil, errors.New("the token needs no PIN and is not bound to the platform: whoever starts this machine with any system can sign; insist with --force")
	}
	if err := checkProofFile(x, c.proof); err != nil {
		return nil, err
	}
	tok, err := p.store.Token(d.Serial)
	switch {
	case errors.Is(err, sealstore.ErrNotFound):
		return nil, nil
	case err != nil && !c.replace:
		return nil, explain(err)
	case c.replace:
		return nil, nil
	}
	// The proof that a token has arrived is not made by the one that is to go.
	m, err := tok.Move()
	if err == nil && m != nil {
		err = fmt.Errorf("token %s is in this store, and on its way to another", d.Serial)
	}
	return tok, explain(err)
}

// has tells whether the store has a token, be it damaged.
func (p *place) has(serial string) bool {
	_, err := p.store.Token(serial)
	return !errors.Is(err, sealstore.ErrNotFound)
}

// bindingOf is what the token gets bound to: as the configuration says, or else
// as it was.
func (p *place) bindingOf(d *sealstore.Contents) *sealstore.BindingSpec {
	if b := p.cfg.Binding(); b != nil {
		return b
	}
	return d.Binding
}

// checkProofFile tells why the proof could not be written. One that was written
// before, by a run that was interrupted, is as good as a new one.
func checkProofFile(x *migration.Opened, path string) error {
	if path == "" {
		return nil
	}
	err := target{path: path}.check()
	if err == nil {
		return nil
	}
	if proof, perr := parseFile(path, migration.MaxProof, migration.ParseProof); perr == nil && x.Proves(proof) {
		return nil
	}
	return err
}

// take makes the token, or finds that it is made already, has it sign the
// proof, and destroys the offer. It gives the token's DID. The offer goes last:
// as long as it is there, whatever has failed is made up for by repeating the
// command.
func (a *app) take(p *place, x *migration.Opened, d *sealstore.Contents, here *sealstore.Token, c acceptFlags) (identity string, err error) {
	user, err := p.makeArrived(a, x, d, here, c)
	if err != nil {
		return "", err
	}
	defer user.Destroy()
	tok, err := p.store.Token(d.Serial)
	if err != nil {
		return "", explain(err)
	}
	if err := a.prove(tok, x, d, user.Bytes(), c.proof); err != nil {
		return "", fmt.Errorf("the token is here; repeat the command for the proof of it: %w", err)
	}
	if identity, err = p.arrivedAs(tok); err != nil {
		return "", fmt.Errorf("the token is here; repeat the command for its DID: %w", explain(err))
	}
	if err := p.store.DropOffer(sealstore.OfferID(x.Offer)); err != nil {
		return "", fmt.Errorf("the token is here, but its offer is not destroyed (\"icn-p11 migrate withdraw %s\"): %w", x.Offer, explain(err))
	}
	return identity, nil
}

// arrivedAs gives the DID of a token that has arrived, "" where none of its
// keys is the identity.
func (p *place) arrivedAs(tok *sealstore.Token) (string, error) {
	info, err := tok.Info()
	if err != nil {
		return "", err
	}
	p.tpm.Release()
	k, err := p.identity(info)
	switch {
	case errors.Is(err, errNoIdentity):
		return "", nil
	case err != nil:
		return "", err
	}
	return k.did(), nil
}

// makeArrived asks for the PINs and makes the token, unless it is here. It gives
// the user PIN; nil if there is none.
func (p *place) makeArrived(a *app, x *migration.Opened, d *sealstore.Contents, here *sealstore.Token, c acceptFlags) (user *secmem.Buffer, err error) {
	var so *secmem.Buffer
	if here == nil {
		if so, err = c.so.Read("SO PIN", true); err != nil {
			return nil, err
		}
		defer so.Destroy()
	}
	if d.UserPIN {
		if user, err = c.user.Read("user PIN", here == nil); err != nil {
			return nil, err
		}
		defer func() {
			if err != nil {
				user.Destroy()
				user = nil
			}
		}()
	}
	if here != nil {
		return user, p.same(here, x, d, user.Bytes())
	}
	step, end := a.progress("Importing the keys")
	contents, err := x.Contents(func(w tpm.Duplicate, auth, dst []byte) (int, error) {
		return p.tpm.ImportWrapped(x.RootName, w, auth, dst)
	}, step)
	end()
	if err != nil {
		return user, explain(err)
	}
	defer contents.Destroy()
	contents.Binding = p.bindingOf(d)
	step, end = a.progress("Making the token")
	defer end()
	t, err := p.store.Restore(contents, sealstore.RestoreParams{
		UserPIN: user.Bytes(), SOPIN: so.Bytes(), Label: c.label, Reserved: p.cfg.FixedSlots(), Replace: c.replace, Progress: step,
	})
	if err != nil {
		return user, explain(err)
	}
	end()
	if b := contents.Binding; b != nil {
		a.note("Bound to PCRs %s of the %s bank, as they are now", numbers(slices.Sorted(slices.Values(b.PCRs))), b.Bank)
		if tok, err := p.store.Token(t.Serial); err == nil {
			a.keepBootLog(tok, bootlog.Path)
		}
	}
	return user, nil
}

// same makes sure that a token that is here is the one that was sent.
func (p *place) same(here *sealstore.Token, x *migration.Opened, d *sealstore.Contents, user []byte) error {
	if err := login(here, d, user); err != nil {
		return p.bindingFailure(sealstore.TokenInfo{Serial: d.Serial}, err)
	}
	objects, err := here.Objects()
	if err != nil {
		return explain(err)
	}
	if !x.Same(objects) {
		return advice.With(fmt.Errorf("token %s: %w, and not the same as the one that was sent", d.Serial, sealstore.ErrExists),
			"look at both, and put the one that was sent in its place with --replace")
	}
	return nil
}

func login(tok *sealstore.Token, d *sealstore.Contents, user []byte) error {
	if !d.UserPIN && !d.NoPIN {
		return nil // all is public
	}
	return tok.Login(sealstore.User, user)
}

// prove has each key, as it is sealed here, sign the proof, and writes it.
func (a *app) prove(tok *sealstore.Token, x *migration.Opened, d *sealstore.Contents, user []byte, path string) error {
	if path == "" {
		return nil
	}
	_, end := a.progress("Signing the proof")
	defer end()
	if err := login(tok, d, user); err != nil {
		return explain(err)
	}
	defer tok.Logout()
	proof, err := x.Prove(tok.Unseal)
	if err != nil {
		return explain(err)
	}
	data := proof.Encode()
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return target{path: path}.write(data, func([]byte) error { return nil })
}
