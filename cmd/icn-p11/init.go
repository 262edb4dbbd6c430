package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/InterCooperative-Network/icn-p11/internal/bootlog"
	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// initFlags are what init takes.
type initFlags struct {
	change
	label, keyLabel string
	noPIN, force    bool
	recoverable     bool
	owner           *passwordFlag
	from            string // file with the key; "": one is made
	source          *keySource
}

func (a *app) initCommand() *cobra.Command {
	o := initFlags{owner: ownerFlag(), source: newKeySource()}
	cmd := &cobra.Command{
		Use:   "init --label L",
		Short: "Make a token with an Ed25519 identity key",
		Long: `Make a token: both its PINs and an Ed25519 identity key, sealed to the TPM. The
DID goes to standard output. With --no-pin, for servers that nobody attends, the
token needs no user PIN: its binding to the platform alone holds it. With
--recoverable, both PINs together can take its keys out, into a backup or to
another TPM; otherwise nothing ever can. That is decided here for good. With
--owner-auth-source, "srk persist" is done first: where the TPM's owner hierarchy
has a password, applications cannot use tokens without a persistent storage root
key. With --import the identity key is one that there is, in a file of any kind
that "import" takes, and the DID stays the same.`,
		Example: `  icn-p11 init --label node --import ~/.local/share/icn/tpm/sealed-0x81000001.blob
  icn-p11 init --label node --pin-source credential:pin --so-pin-source credential:so-pin`,
		Args: noArgs,
		RunE: a.does(func(cmd *cobra.Command, _ []string) error {
			if err := checkLabel("--label", o.label, sealstore.MaxLabel); err != nil {
				return err
			}
			if err := checkLabel("--key-label", o.keyLabel, 255); err != nil {
				return err
			}
			switch {
			case o.noPIN && cmd.Flags().Changed("pin-source"):
				return usage("--no-pin and --pin-source exclude each other")
			case o.force && !o.noPIN:
				return usage("--force goes with --no-pin")
			}
			if cmd.Flags().Changed("import") {
				return a.adopt(o)
			}
			for _, f := range keySourceFlags {
				if cmd.Flags().Changed(f) {
					return usage("--%s goes with --import", f)
				}
			}
			return a.init(o, nil)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&o.label, "label", "", "label of the token, at most 32 bytes")
	f.StringVar(&o.keyLabel, "key-label", identityLabel, "label of the key")
	f.BoolVar(&o.noPIN, "no-pin", false, "make a token that needs no user PIN")
	f.BoolVar(&o.force, "force", false, "with --no-pin: also where the token is not bound to the platform")
	f.BoolVar(&o.recoverable, "recoverable", false, "let both PINs together take the keys out: for backups, and to another TPM")
	f.StringVar(&o.from, "import", "", "file with the identity key, instead of a new one")
	o.source.on(cmd)
	o.owner.on(cmd)
	noCompletion(cmd, "label", "key-label")
	o.flags(cmd, true, true, false)
	return cmd
}

// checkLabel refuses what would not come back as it was given: Cryptoki pads
// labels with blanks.
func checkLabel(flag, s string, size int) error {
	switch {
	case s == "":
		return usage("%s is needed", flag)
	case len(s) > size:
		return usage("%s has %d bytes; %d is the most", flag, len(s), size)
	case !utf8.ValidString(s):
		return usage("%s is not UTF-8 text", flag)
	case strings.ContainsFunc(s, unicode.IsControl):
		return usage("%s has a control character, such as a tab or the end of a line", flag)
	case strings.TrimSpace(s) != s:
		return usage("%s begins or ends with blanks", flag)
	case strings.HasPrefix(s, did.Prefix):
		return usage("%s looks like a DID, which would be taken for another token", flag)
	}
	return nil
}

// newToken is what init prints.
type newToken struct {
	Serial      string      `json:"serial,omitempty"` // not in a dry run
	Label       string      `json:"label"`
	Slot        *p11.SlotID `json:"slot"` // null: hidden, or see doctor
	DID         string      `json:"did,omitempty"`
	Key         string      `json:"key"` // its label
	KeyID       string      `json:"key_id,omitempty"`
	Format      string      `json:"format,omitempty"` // of the file that the key came from
	NoPIN       bool        `json:"no_pin"`
	Recoverable bool        `json:"recoverable"`
	Bank        string      `json:"pcr_bank,omitempty"`
	PCRs        []int       `json:"pcrs,omitempty"`
	EventLog    string      `json:"event_log,omitempty"` // why it is not kept
	DryRun      bool        `json:"dry_run,omitempty"`
}

// adopt is init with a key that there is.
func (a *app) adopt(o initFlags) error {
	f, err := readKeyFile(o.from, o.source.plaintext)
	if err != nil {
		return err
	}
	defer f.destroy()
	if err := a.init(o, f); err != nil {
		return err
	}
	if !o.dryRun {
		a.warn(f)
	}
	return nil
}

// init makes a token. from holds its key; nil has one made.
func (a *app) init(o initFlags, from *keyFile) error {
	p, err := a.open()
	if err != nil {
		return err
	}
	defer p.tpm.Close()
	if err := p.unused(o.label, ""); err != nil {
		return err
	}
	if o.noPIN && p.cfg.Binding() == nil && !o.force {
		return errors.New("no token made: without a PIN and a binding to the platform, whoever starts this machine with any system can sign; " +
			"set platform_binding = true in the configuration, or insist with --force")
	}
	var owner *secmem.Buffer
	if o.owner.given() {
		if _, owner, err = p.ownerPassword(o.owner); err != nil {
			return explain(err)
		}
		defer owner.Destroy()
	}
	if o.dryRun {
		return a.wouldInit(p, o, from, owner.Bytes())
	}
	if o.owner.given() {
		// Applications have no such password: the key has to stay.
		r, err := p.persistBy(owner.Bytes(), false)
		if err != nil {
			return explain(err)
		}
		a.note("%s", r.persisted())
	}
	// Nobody should type four PINs to hear that the TPM is missing.
	if err := p.reachable(); err != nil {
		return err
	}
	imported, err := p.adopted(from, o.source, owner.Bytes())
	if err != nil {
		return err
	}
	defer imported.destroy()
	var t sealstore.TokenInfo
	var k tokenKey
	err = o.withPINs(!o.noPIN, true, func(user, so []byte) (err error) {
		t, k, err = a.create(p, o, imported, so, user)
		return err
	})
	if err != nil {
		return err
	}
	r := o.result(p, t)
	r.of(k, imported)
	a.note("Token %s in slot %s, serial number %s", printable(o.label), r.slot(), t.Serial)
	a.note("Key %s, sealed to the TPM at %s", r.key(), p.tpm)
	if o.recoverable {
		a.note("Recoverable: make a backup with \"icn-p11 backup create\"")
	}
	if len(r.PCRs) > 0 {
		a.note("Bound to PCRs %s of the %s bank, as they are now", numbers(r.PCRs), r.Bank)
		if tok, err := p.store.Token(t.Serial); err == nil {
			r.EventLog = a.keepBootLog(tok, bootlog.Path)
		}
	}
	if o.json {
		err = a.json(r)
	} else {
		_, err = fmt.Fprintln(a.out, r.DID)
	}
	if err != nil {
		return fmt.Errorf("the token is made, but its DID could not be printed (%w): \"icn-p11 did %s\" prints it", err, t.Serial)
	}
	return nil
}

// result is what is known of a token that was made, or would be.
func (o *initFlags) result(p *place, t sealstore.TokenInfo) newToken {
	r := newToken{Serial: t.Serial, Label: o.label, Key: o.keyLabel, NoPIN: o.noPIN, Recoverable: o.recoverable, DryRun: o.dryRun}
	tokens, err := p.store.Tokens()
	if err == nil {
		if o.dryRun {
			tokens = append(tokens, t)
		}
		ids, _ := p11.SlotIDs(p.cfg, tokens, nil)
		r.Slot = slotIn(ids, t.Serial)
	}
	if b := p.cfg.Binding(); b != nil {
		r.Bank, r.PCRs = b.Bank, slices.Sorted(slices.Values(b.PCRs))
	}
	return r
}

func (r *newToken) slot() string { return slotOf(r.Slot) }

// slotIn gives the slot of a token; nil: it is hidden, or has none.
func slotIn(slots map[string]p11.SlotID, serial string) *p11.SlotID {
	if id, ok := slots[serial]; ok {
		return &id
	}
	return nil
}

// slotOf writes a slot number, or a dash for a token that is hidden.
func slotOf(id *p11.SlotID) string {
	if id == nil {
		return dash("")
	}
	return fmt.Sprint(*id)
}

// of tells the result which key the token has.
func (r *newToken) of(k tokenKey, imported *seed) {
	r.DID, r.KeyID = k.did(), hex.EncodeToString(k.id)
	if imported != nil {
		r.Format = imported.format
	}
}

// key names the key, and what it came from.
func (r *newToken) key() string {
	if r.Format == "" {
		return printable(r.Key)
	}
	return fmt.Sprintf("%s (%s)", printable(r.Key), r.Format)
}

// adopted opens the file with the key of a token that is about to be made; nil
// where there is none.
func (p *place) adopted(from *keyFile, source *keySource, owner []byte) (*seed, error) {
	if from == nil {
		return nil, nil
	}
	root, err := p.tpm.Parent()
	if err != nil {
		return nil, explain(err)
	}
	return p.openKey(from, source, root, owner)
}

// wouldInit is the dry run of init.
func (a *app) wouldInit(p *place, o initFlags, from *keyFile, owner []byte) error {
	if o.owner.given() {
		if _, err := p.persistBy(owner, true); err != nil {
			return explain(err)
		}
	} else if err := p.reachable(); err != nil {
		return err
	}
	imported, err := p.adopted(from, o.source, owner)
	if err != nil {
		return err
	}
	defer imported.destroy()
	_, end := p.progress(atTPM)
	defer end()
	if err := p.store.Writable(); err != nil {
		return err
	}
	if b := p.cfg.Binding(); b != nil {
		if _, err := p.tpm.PCRs(b.Bank, b.PCRs); err != nil {
			return explain(err)
		}
	}
	slot, err := p.store.FreeSlot(p.cfg.FixedSlots()...)
	if err != nil {
		return err
	}
	r := o.result(p, sealstore.TokenInfo{Label: o.label, Slot: slot})
	if imported != nil {
		r.of(imported.key(o.keyLabel), imported)
	}
	end()
	return a.outcome(o.change, r, "Token %s is made in slot %s, with key %s", printable(o.label), r.slot(), r.key())
}

// create makes all of a token or nothing.
func (a *app) create(p *place, o initFlags, imported *seed, so, user []byte) (sealstore.TokenInfo, tokenKey, error) {
	_, end := p.progress(atTPM)
	defer end()
	// From here on an interrupt must wait until what was made is removed; a
	// second one does not.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	context.AfterFunc(ctx, stop)
	defer stop()
	t, err := p.store.Create(sealstore.InitParams{Label: o.label, SOPIN: so, Reserved: p.cfg.FixedSlots(), Binding: p.cfg.Binding(), NoPIN: o.noPIN, Recoverable: o.recoverable})
	if err != nil {
		return t, tokenKey{}, explain(err)
	}
	p.tpm.Release()
	k, err := fill(ctx, t, o.keyLabel, imported, so, user)
	if err != nil {
		if rerr := discard(p.cfg.SealedBlobDir, t.Serial); rerr != nil {
			a.note("icn-p11: token %s is unfinished and could not be removed: %v", t.Serial, rerr)
		}
		return t, k, explain(err)
	}
	return t, k, nil
}

var errInterrupted = errors.New("interrupted; nothing was made")

// fill sets the user PIN of a new token, if it shall have one, and makes its
// key, as an application would: the calls are those of ICN. Where a key was
// imported, that is stored instead.
func fill(ctx context.Context, t sealstore.TokenInfo, keyLabel string, imported *seed, so, user []byte) (k tokenKey, err error) {
	m, err := startModule()
	if err != nil {
		return k, err
	}
	defer m.stop()
	s, err := m.session(t)
	if err != nil {
		return k, err
	}
	setPIN := []func() error{
		func() error { return m.Login(s, p11.CKU_SO, so) },
		func() error { return m.InitPIN(s, user) },
		func() error { return m.Logout(s) },
		func() error { return m.Login(s, p11.CKU_USER, user) },
	}
	if t.NoPIN {
		setPIN = nil
	}
	var public p11.ObjectHandle
	makeKey := []func() error{
		func() (err error) {
			public, err = m.generate(s, keyLabel)
			return err
		},
		func() (err error) {
			k, err = m.tokenKey(s, public)
			return err
		},
	}
	if imported != nil {
		k = imported.key(keyLabel)
		makeKey = []func() error{func() error { return m.importKey(s, keyLabel, imported) }}
	}
	for _, step := range append(setPIN, makeKey...) {
		if ctx.Err() != nil {
			return k, errInterrupted
		}
		if err := step(); err != nil {
			return k, err
		}
	}
	return k, nil
}

// discard removes a token that was not finished. It first gets the name of
// an unfinished one, so that no process sees half of it and the next writer
// removes what is left should this one be killed (docs/format.md).
func discard(store, serial string) error {
	tokens := filepath.Join(store, "tokens")
	gone := filepath.Join(tokens, ".tmp-"+serial)
	if err := os.Rename(filepath.Join(tokens, serial), gone); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}

// completeSource offers the kinds of PIN sources.
func completeSource(cmd *cobra.Command, flags ...string) {
	for _, f := range flags {
		cmd.RegisterFlagCompletionFunc(f, func(_ *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if strings.HasPrefix(prefix, "file:") {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return []cobra.Completion{"file:", "env:", "fd:", "credential:", "prompt"},
				cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
		})
	}
}

func noCompletion(cmd *cobra.Command, flags ...string) {
	for _, f := range flags {
		cmd.RegisterFlagCompletionFunc(f, cobra.NoFileCompletions)
	}
}
