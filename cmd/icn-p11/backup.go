package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/InterCooperative-Network/icn-p11/internal/backup"
	"github.com/InterCooperative-Network/icn-p11/internal/did"
	"github.com/InterCooperative-Network/icn-p11/internal/pinsource"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

func (a *app) backupCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "backup",
		Short: "Write a token into an encrypted file, and restore it from there",
		Long: `A backup is one file, encrypted with age: under a passphrase, or to public keys of
age or ssh. Of a recoverable token ("init --recoverable") it holds the keys, and
restores it onto any TPM. Of any other it holds the sealed files, which serve the
same TPM only.`,
	},
		a.backupCreate(),
		a.backupVerify(),
		a.backupRestore(),
	)
}

// createFlags are those of "backup create".
type createFlags struct {
	change
	out        target
	passphrase pinsource.Source
	recipients []string
	armor      bool
}

func (a *app) backupCreate() *cobra.Command {
	var c createFlags
	cmd := &cobra.Command{
		Use:   "create TOKEN --out FILE",
		Short: "Back a token up",
		Long: `Write a token into an encrypted file: keys, certificates, data and what is known
of them. Both PINs are needed. What was written is read back before it is
reported. FILE may be - for standard output.`,
		Example: `  icn-p11 backup create node --out node.backup --passphrase-source prompt
  icn-p11 backup create node --out node.backup --recipient age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa`,
		Args:              oneToken,
		ValidArgsFunction: completeToken,
		RunE: a.does(func(cmd *cobra.Command, args []string) error {
			to, err := c.check(cmd)
			if err != nil {
				return err
			}
			return a.createBackup(args[0], c, to)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&c.out.path, "out", "", "file to write")
	f.BoolVar(&c.out.replace, "force", false, "replace a file that is there")
	f.Var(&c.passphrase, "passphrase-source", "where the passphrase comes from that opens the backup")
	f.StringArrayVar(&c.recipients, "recipient", nil, "public key of age or ssh whose owner can open the backup; may be given several times")
	f.BoolVar(&c.armor, "armor", false, "write text (PEM)")
	completeSource(cmd, "passphrase-source")
	noCompletion(cmd, "recipient")
	c.flags(cmd, true, true, false)
	return cmd
}

// check looks at what does not need the TPM, and finds out who shall be able to
// open the backup: nil stands for who knows the passphrase.
func (c *createFlags) check(cmd *cobra.Command) (*backup.Recipients, error) {
	byPassphrase := cmd.Flags().Changed("passphrase-source")
	switch {
	case c.out.path == "":
		return nil, usage("--out is needed")
	case byPassphrase && len(c.recipients) > 0:
		return nil, usage("--passphrase-source and --recipient exclude each other, as in age")
	case !byPassphrase && len(c.recipients) == 0:
		return nil, usage("who shall be able to open the backup? Give --passphrase-source or --recipient")
	case c.out.path == "-" && c.json:
		return nil, usage("--json and --out - exclude each other")
	case c.out.path == "-" && c.out.replace:
		return nil, usage("--force goes with a file")
	}
	if c.out.path == "-" {
		if !c.dryRun && term.IsTerminal(int(os.Stdout.Fd())) {
			return nil, usage("a backup is not for the terminal: name a file, or redirect standard output")
		}
	} else if err := c.out.check(); err != nil {
		return nil, err
	}
	if byPassphrase {
		return nil, nil
	}
	to, err := backup.ParseRecipients(c.recipients)
	if err != nil {
		return nil, usage("--recipient: %w", err)
	}
	return to, nil
}

// held counts what is in a backup.
type held struct {
	Keys         int `json:"keys"`
	Certificates int `json:"certificates"`
	Data         int `json:"data"`
	OtherKeys    int `json:"other_keys"`
	TPMKeys      int `json:"tpm_keys"`
}

func heldBy(m *backup.Manifest) *held {
	return &held{len(m.Keys), m.Certificates, m.Data, m.OtherKeys, m.TPMKeys}
}

func (h *held) String() string {
	s := count(h.Keys, "key") + ", " + count(h.Certificates, "certificate") + ", " + count(h.Data, "data object")
	if h.OtherKeys > 0 {
		s += ", " + count(h.OtherKeys, "other key")
	}
	return s
}

// fixed tells of keys that nothing takes out of the TPM that has made them.
func fixed(n int) string {
	return fmt.Sprintf("%s that the TPM has made (ECDSA) cannot leave it: plan for new ones, and new certificates", count(n, "key"))
}

// createResult is what "backup create" prints.
type createResult struct {
	Serial string      `json:"serial"`
	Label  string      `json:"label"`
	Kind   backup.Kind `json:"kind"`
	DID    string      `json:"did,omitempty"`
	*held              // unknown in a dry run
	File   string      `json:"file"`
	DryRun bool        `json:"dry_run,omitempty"`
}

func (a *app) createBackup(arg string, c createFlags, to *backup.Recipients) error {
	p, t, err := a.openToken(arg)
	if err != nil {
		return err
	}
	defer p.tpm.Close()
	r := createResult{Serial: t.Serial, Label: t.Label, Kind: backup.Recoverable, File: c.out.path, DryRun: c.dryRun}
	serves := "for any TPM"
	if !t.Recoverable {
		r.Kind, serves = backup.Sealed, "which serves the same TPM only"
	}
	if c.dryRun {
		if err := p.opens(t); err != nil {
			return err
		}
	} else {
		m, err := a.takeOut(p, t, c, to)
		if err != nil {
			return err
		}
		r.DID, r.held = m.DID, heldBy(m)
	}
	if err := a.outcome(c.change, r, "Token %s is backed up to %s, %s", printable(t.Label), c.out.path, serves); err != nil {
		return err
	}
	if r.held != nil && r.TPMKeys > 0 && r.Kind == backup.Recoverable {
		a.note("Not in the backup: %s", fixed(r.TPMKeys))
	}
	if to != nil && !c.dryRun {
		a.note("Whether the private keys open it, \"icn-p11 backup verify %s --identity FILE\" tells", c.out.path)
	}
	return nil
}

// opens tells why the PINs would not open a token.
func (p *place) opens(t sealstore.TokenInfo) error {
	err := p.usable(t, sealstore.SO)
	if err == nil && (t.UserPIN || t.NoPIN) {
		err = p.usable(t, sealstore.User)
	}
	return err
}

// takeOut fills a backup, encrypts it and writes it.
func (a *app) takeOut(p *place, t sealstore.TokenInfo, c createFlags, to *backup.Recipients) (m *backup.Manifest, err error) {
	tok, err := p.store.Token(t.Serial)
	if err != nil {
		return nil, err
	}
	err = p.withBoth(t, c.change, func(user, so []byte) error {
		if to == nil {
			passphrase, err := c.passphrase.ReadNewPassphrase("passphrase")
			if err != nil {
				return err
			}
			defer passphrase.Destroy()
			to = backup.Passphrase(passphrase.Bytes())
		}
		b, err := p.export(t, tok, user, so)
		if err != nil {
			return err
		}
		defer b.Destroy()
		m = &b.Manifest
		return a.writeBackup(b, c, to)
	})
	return m, err
}

// writeBackup encrypts a backup, and writes what it has read back.
func (a *app) writeBackup(b *backup.Backup, c createFlags, to *backup.Recipients) error {
	_, end := a.progress("Encrypting")
	defer end()
	w, err := backup.Encrypt(b, to, c.armor)
	if err != nil {
		return err
	}
	defer w.Destroy()
	if c.out.path != "-" {
		return c.out.write(w.Data, w.Check)
	}
	if err := w.Check(w.Data); err != nil {
		return err
	}
	_, err = a.out.Write(w.Data)
	return err
}

// export takes out of a token what can be taken out.
func (p *place) export(t sealstore.TokenInfo, tok *sealstore.Token, user, so []byte) (*backup.Backup, error) {
	step, end := p.progress("Taking the keys out")
	defer end()
	b := &backup.Backup{Manifest: backup.Manifest{Tool: "icn-p11 " + version}}
	b.Manifest.Token = backup.Token{Serial: t.Serial, Label: t.Label, Slot: t.Slot, Created: t.Created,
		UserPIN: t.UserPIN, NoPIN: t.NoPIN, Parent: hex.EncodeToString(t.Parent)}
	if err := p.inventory(t, tok, user, &b.Manifest); err != nil {
		return nil, err
	}
	defer p.tpm.Release()
	var err error
	if t.Recoverable {
		b.Contents, err = tok.Export(user, so, step)
	} else if b.Files, err = tok.Files(user, so); err == nil {
		err = recordBinding(tok, &b.Manifest)
	}
	return b, p.bindingFailure(t, err)
}

// recordBinding tells a manifest what a token is bound to.
func recordBinding(tok *sealstore.Token, m *backup.Manifest) error {
	b, _, err := tok.Binding()
	if b != nil {
		m.Token.Binding = &backup.Binding{Bank: b.Bank, PCRs: b.PCRs}
	}
	return err
}

// inventory lists what is in a token, as applications see it.
func (p *place) inventory(t sealstore.TokenInfo, tok *sealstore.Token, user []byte, to *backup.Manifest) error {
	seals, err := tok.Seals()
	if err != nil {
		return explain(err)
	}
	for _, s := range seals {
		switch {
		case s.Device:
			to.TPMKeys++
		case s.Blob.Creation == nil:
			to.OtherKeys++
		}
	}
	return p.inModule(t, func(m *module, s p11.SessionHandle) error {
		if t.UserPIN || t.NoPIN {
			if err := m.Login(s, p11.CKU_USER, user); err != nil {
				return p.pinFailure("user", err)
			}
		}
		keys, err := m.keys(s)
		if err != nil {
			return explain(err)
		}
		for _, k := range keys {
			// A public key without its private half is no key to restore.
			if slices.ContainsFunc(seals, func(s sealstore.ObjectSeal) bool {
				return s.Blob.Creation != nil && string(s.Blob.Creation.About) == string(k.public[:])
			}) {
				to.Keys = append(to.Keys, backup.Key{Label: backup.Text(k.label), DID: k.did()})
			}
		}
		identity, err := identityOf(keys, t)
		switch {
		case err == nil && slices.ContainsFunc(to.Keys, func(k backup.Key) bool { return k.DID == identity.did() }):
			to.DID = identity.did()
		case err != nil && !errors.Is(err, errNoIdentity):
			return explain(err)
		}
		for class, n := range map[uint]*int{p11.CKO_CERTIFICATE: &to.Certificates, p11.CKO_DATA: &to.Data} {
			found, err := m.find(s, p11.Attribute{Type: p11.CKA_CLASS, Value: ulong(class)})
			if err != nil {
				return explain(err)
			}
			*n = len(found)
		}
		return nil
	})
}

// opener is what opens a backup.
type opener struct {
	passphrase pinsource.Source
	identity   string
	did        string // that has to be in it
}

func (o *opener) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Var(&o.passphrase, "passphrase-source", "where the passphrase comes from: of the backup, or of the file of --identity")
	f.StringVar(&o.identity, "identity", "", "file with a private key of age or ssh, where the backup is encrypted to one")
	f.StringVar(&o.did, "did", "", "DID that has to be in it")
	completeSource(cmd, "passphrase-source")
	noCompletion(cmd, "did")
}

// check looks at what was given before anything is read.
func (o *opener) check() error {
	if o.did == "" {
		return nil
	}
	key, err := did.Parse(o.did)
	if err != nil {
		return usage("--did: %w", err)
	}
	o.did = did.Encode(key)
	return nil
}

// open reads a backup and checks it. The caller destroys it.
func (a *app) openBackup(name string, o opener) (*backup.Backup, error) {
	data, err := readInput(name, backup.MaxFile)
	if err != nil {
		return nil, err
	}
	by, destroy, err := o.key(data)
	defer destroy()
	if err == nil {
		_, end := a.progress("Decrypting")
		var b *backup.Backup
		b, err = backup.Decrypt(data, by)
		end()
		if err == nil {
			if err = o.expected(b); err == nil {
				return b, nil
			}
			b.Destroy()
		}
	}
	if errors.As(err, new(usageError)) {
		return nil, err
	}
	return nil, fmt.Errorf("%s: %w", name, err)
}

// expected makes sure of the DID. Who has a public key can encrypt to it, so
// that nothing else tells whose backup it is.
func (o opener) expected(b *backup.Backup) error {
	if o.did == "" || slices.ContainsFunc(b.Manifest.Keys, func(k backup.Key) bool { return k.DID == o.did }) {
		return nil
	}
	return fmt.Errorf("the key of %s is not in it", o.did)
}

// key finds out what opens a backup and asks for it.
func (o opener) key(data []byte) (by *backup.Identity, destroy func(), err error) {
	var file, passphrase *secmem.Buffer
	destroy = func() { file.Destroy(); passphrase.Destroy() }
	byPassphrase, err := backup.ByPassphrase(data)
	switch {
	case err != nil:
		return nil, destroy, err
	case byPassphrase && o.identity != "":
		return nil, destroy, usage("the backup is encrypted under a passphrase: --passphrase-source, not --identity")
	case !byPassphrase && o.identity == "":
		return nil, destroy, usage("the backup is encrypted to a key: --identity names the file of the private one")
	case byPassphrase:
		if passphrase, err = o.passphrase.ReadPassword("passphrase of the backup"); err != nil {
			return nil, destroy, err
		}
		return backup.WithPassphrase(passphrase.Bytes()), destroy, nil
	}
	if file, err = readSecret(o.identity); err != nil {
		return nil, destroy, err
	}
	if backup.NeedsPassphrase(file.Bytes()) {
		if passphrase, err = o.passphrase.ReadPassword("passphrase of " + o.identity); err != nil {
			return nil, destroy, err
		}
	}
	return backup.WithFile(file.Bytes(), passphrase.Bytes()), destroy, nil
}

// verifyResult is what "backup verify" prints.
type verifyResult struct {
	backup.Manifest
	Records     *struct{} `json:"records,omitempty"` // left out
	Objects     int       `json:"objects"`
	SameTPMOnly bool      `json:"same_tpm_only"`
}

func (a *app) backupVerify() *cobra.Command {
	var o opener
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check a backup, and show what it holds",
		Long: `Decrypt a backup, check all that is in it, and show what that is. Nothing is
written, and neither a TPM nor a configuration is needed. FILE may be fd:N, or -
for standard input.`,
		Example: "  icn-p11 backup verify node.backup --identity offline.key",
		Args:    oneFile,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			b, err := a.openBackup(args[0], o)
			if err != nil {
				return err
			}
			defer b.Destroy()
			r := verifyResult{Manifest: b.Manifest, Objects: len(b.Manifest.Records), SameTPMOnly: b.Manifest.Kind == backup.Sealed}
			if b.Files != nil {
				r.Objects = len(b.Files.Objects)
			}
			if asJSON {
				return a.json(r)
			}
			return r.print(a.out)
		}),
	}
	o.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (r verifyResult) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	kind := "recoverable: restores the token onto any TPM"
	if r.SameTPMOnly {
		kind = "sealed: serves the same TPM only"
	}
	pin := "needed"
	switch {
	case r.Token.NoPIN:
		pin = "none, and none needed"
	case !r.Token.UserPIN:
		pin = "not set"
	}
	bound := "no"
	if b := r.Token.Binding; b != nil {
		bound = fmt.Sprintf("to PCRs %s of the %s bank", numbers(b.PCRs), b.Bank)
	}
	for _, line := range [][2]string{
		{"Kind", kind},
		{"Made", r.Created.Format("2006-01-02 15:04:05 MST") + " by " + printable(r.Tool)},
		{"Label", dash(printable(r.Token.Label))},
		{"Serial", r.Token.Serial},
		{"User PIN", pin},
		{"Bound", bound},
		{"DID", dash(r.DID)},
	} {
		fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
	}
	for _, k := range r.Keys {
		fmt.Fprintf(w, "Key\t%s  %s\n", k.DID, printable(k.Label))
	}
	fmt.Fprintf(w, "Certificates\t%d\n", r.Certificates)
	fmt.Fprintf(w, "Data\t%d\n", r.Data)
	if r.OtherKeys > 0 {
		fmt.Fprintf(w, "Other keys\t%d\n", r.OtherKeys)
	}
	if r.TPMKeys > 0 && !r.SameTPMOnly {
		fmt.Fprintf(w, "Not in it\t%s\n", fixed(r.TPMKeys))
	}
	return w.Flush()
}
