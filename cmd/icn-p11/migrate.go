package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/internal/advice"
	"github.com/InterCooperative-Network/icn-p11/internal/endorsement"
	"github.com/InterCooperative-Network/icn-p11/internal/migration"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

func (a *app) migrateCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "migrate",
		Short: "Bring a token to the TPM of another machine",
		Long: `A recoverable token ("init --recoverable") goes from one TPM to another in three
steps: the target offers to take it, the source sends it, the target accepts. What
is sent opens on the target's TPM alone, once. With "send --move", a fourth step
deletes it at the source, when the target has proved that it has the keys.`,
	},
		a.migrateOffer(),
		a.migrateSend(),
		a.migrateAccept(),
		a.migrateFinish(),
		a.migrateCancel(),
		a.migrateWithdraw(),
		a.migrateList(),
	)
}

// offerResult is what the verbs about an offer print.
type offerResult struct {
	Offer       string `json:"offer,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
	Root        string `json:"srk_name,omitempty"`
	// Certified: the TPM's maker has certified its endorsement key.
	Certified *bool  `json:"ek_certified,omitempty"`
	File      string `json:"file,omitempty"`
	DryRun    bool   `json:"dry_run,omitempty"`
}

func (a *app) migrateOffer() *cobra.Command {
	var c change
	var out target
	cmd := &cobra.Command{
		Use:   "offer --out OFFER",
		Short: "Offer to take a token from another machine",
		Long: `On the machine that a token shall come to: write an offer, which names its TPM.
Nothing in it is confidential, but whoever exchanges it receives the token. So its
fingerprint is printed, which is compared on the other machine. An offer serves
for one token, once; what the store keeps of it goes with that.`,
		Example: "  icn-p11 migrate offer --out offer.json",
		Args:    noArgs,
		RunE: a.does(func(*cobra.Command, []string) error {
			if out.path == "" {
				return usage("--out is needed")
			}
			if err := out.check(); err != nil {
				return err
			}
			return a.offer(c, out)
		}),
	}
	cmd.Flags().StringVar(&out.path, "out", "", "file to write")
	cmd.Flags().BoolVar(&out.replace, "force", false, "replace a file that is there")
	c.flags(cmd, false, false, false)
	return cmd
}

func (a *app) offer(c change, out target) error {
	p, err := a.open()
	if err != nil {
		return err
	}
	defer p.tpm.Close()
	if err := p.store.Writable(); err != nil {
		return explain(err)
	}
	secret, err := secmem.New(migration.KeySize)
	if err != nil {
		return err
	}
	defer secret.Destroy()
	o, err := migration.NewOffer(secret.Bytes())
	if err != nil {
		return err
	}
	_, end := a.progress("Asking the TPM")
	defer end()
	if o.RootPublic, o.RootName, err = p.tpm.Root(); err != nil {
		return explain(err)
	}
	if o.Endorsement, err = p.tpm.Endorsement(); err != nil {
		return explain(err)
	}
	certified := len(o.Endorsement.Certificates) > 0
	r := offerResult{Offer: o.ID.String(), Fingerprint: o.Fingerprint(), Root: hex.EncodeToString(o.RootName),
		Certified: &certified, File: out.path, DryRun: c.dryRun}
	if c.dryRun {
		// Another one is made when it is meant.
		r.Offer, r.Fingerprint = "", ""
		return a.outcome(c, r, "An offer for the TPM at %s is written to %s", p.tpm, out.path)
	}
	id := sealstore.OfferID(o.ID)
	if err := p.store.KeepOffer(id, secret.Bytes()); err != nil {
		return explain(err)
	}
	if err := out.write(o.Encode(), func([]byte) error { return nil }); err != nil {
		return errors.Join(err, p.store.DropOffer(id))
	}
	end()
	if c.json {
		return a.json(r)
	}
	a.note("Offer %s of the TPM at %s is in %s", r.Offer, p.tpm, out.path)
	if !certified {
		a.note("The TPM holds no certificate of its maker: --ek-ca is of no use to the sender")
	}
	a.note("Its fingerprint, to be compared where the token is sent:")
	_, err = fmt.Fprintln(a.out, r.Fingerprint)
	return err
}

// trust is how the sender knows that an offer is the target's.
type trust struct {
	fingerprint string
	ca          string
}

func (t *trust) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.fingerprint, "fingerprint", "", "the offer's fingerprint, as the target has printed it")
	cmd.Flags().StringVar(&t.ca, "ek-ca", "", "file with the certificates of who certifies the target's TPM")
	noCompletion(cmd, "fingerprint")
}

// check makes sure of an offer. A certificate proves that a TPM is one of its
// maker's, not that it is the target's, so that it alone is enough only for who
// says so (--yes).
func (t *trust) check(a *app, o *migration.Offer, yes bool) error {
	if t.ca != "" {
		trusted, err := readCertificates(t.ca)
		if err != nil {
			return err
		}
		if err := endorsement.Certified(o.Endorsement, trusted); err != nil {
			return fmt.Errorf("the offer is not trusted: %w", err)
		}
	}
	switch {
	case t.fingerprint != "":
		given := strings.ToLower(strings.Join(strings.FieldsFunc(t.fingerprint, func(r rune) bool { return r == ' ' || r == ':' }), ""))
		if b, err := hex.DecodeString(given); err != nil || len(b) != 32 {
			return usage("--fingerprint is not 64 hexadecimal digits")
		}
		if given != o.Fingerprint() {
			return fmt.Errorf("the offer is not the one that was meant: its fingerprint is %s", o.Fingerprint())
		}
		return nil
	case yes && t.ca != "":
		return nil
	case yes:
		return usage("--yes goes with --ek-ca: an offer that nobody has looked at may be anybody's")
	}
	return confirm(fmt.Sprintf("The offer's fingerprint is\n  %s\nIs that what \"icn-p11 migrate offer\" has printed on the target, and nobody else?", o.Fingerprint()), "yes")
}

// migrationResult is what the other verbs print.
type migrationResult struct {
	Serial string `json:"serial"`
	Label  string `json:"label"`
	DID    string `json:"did,omitempty"`
	Offer  string `json:"offer"`
	Root   string `json:"srk_name"` // of the target
	Move   bool   `json:"move"`
	File   string `json:"file,omitempty"`
	Proof  string `json:"proof,omitempty"`
	// TPMKeys are keys that the TPM of the source has made, and that stay there.
	TPMKeys *int `json:"tpm_keys,omitempty"`
	DryRun  bool `json:"dry_run,omitempty"`
}

func (a *app) migrateSend() *cobra.Command {
	var c sendFlags
	cmd := &cobra.Command{
		Use:   "send TOKEN --to OFFER --out FILE",
		Short: "Send a token to another machine",
		Long: `On the machine that has the token: write it to a file that the TPM of the offer
opens, and no other. Both PINs are needed. The offer's fingerprint is compared with
--fingerprint, or by the person at the terminal; --ek-ca checks besides that the
TPM is one of its maker's. With --move, "migrate finish" deletes the token when the
target has proved that it has the keys; until then it can be used.`,
		Example:           "  icn-p11 migrate send node --to offer.json --out node.parcel --move",
		Args:              oneToken,
		ValidArgsFunction: completeToken,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			switch {
			case c.to == "":
				return usage("--to is needed")
			case c.out.path == "":
				return usage("--out is needed")
			}
			if err := c.out.check(); err != nil {
				return err
			}
			return a.send(args[0], c)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&c.to, "to", "", "file with the offer")
	f.StringVar(&c.out.path, "out", "", "file to write")
	f.BoolVar(&c.move, "move", false, "delete the token here when it has arrived")
	c.trust.flags(cmd)
	c.flags(cmd, true, true, true)
	return cmd
}

type sendFlags struct {
	change
	trust trust
	to    string
	out   target
	move  bool
}

func (a *app) send(arg string, c sendFlags) error {
	o, err := readOffer(c.to)
	if err != nil {
		return err
	}
	p, t, err := a.openToken(arg)
	if err != nil {
		return err
	}
	defer p.tpm.Close()
	tok, err := p.store.Token(t.Serial)
	if err != nil {
		return explain(err)
	}
	if err := p.maySend(t, tok, o, c); err != nil {
		return err
	}
	// Nobody is asked about what is not done.
	if !c.dryRun || c.trust != (trust{}) {
		if err := c.trust.check(a, o, c.yes || c.dryRun); err != nil {
			return err
		}
	}
	r := migrationResult{Serial: t.Serial, Label: t.Label, Offer: o.ID.String(), Root: hex.EncodeToString(o.RootName), Move: c.move, File: c.out.path, DryRun: c.dryRun}
	if r.TPMKeys, err = tpmKeys(tok); err != nil {
		return explain(err)
	}
	if c.dryRun {
		err = p.opens(t)
	} else {
		err = p.withBoth(t, c.change, func(user, so []byte) error {
			return a.pack(p, t, tok, o, c, user, so)
		})
	}
	if err != nil {
		return err
	}
	if err := a.outcome(c.change, r, "Token %s is in %s, for offer %s alone; on the target: icn-p11 migrate accept", printable(r.Label), r.File, r.Offer); err != nil || c.json || c.dryRun {
		return err
	}
	if *r.TPMKeys > 0 {
		a.note("Not sent: %s", fixed(*r.TPMKeys))
	}
	if r.Move {
		a.note("It stays here, too, until its arrival is proved: icn-p11 migrate finish %s PROOF", r.Serial)
	}
	return nil
}

// tpmKeys counts the keys of a token that the TPM has made and never gives out.
func tpmKeys(tok *sealstore.Token) (*int, error) {
	n := 0
	seals, err := tok.Seals()
	for _, s := range seals {
		if s.Device {
			n++
		}
	}
	return &n, err
}

// withBoth runs what needs the SO PIN, and the user PIN where one is set.
func (p *place) withBoth(t sealstore.TokenInfo, c change, f func(user, so []byte) error) error {
	// Nobody should type PINs to hear that the TPM is missing.
	if err := p.reachable(); err != nil {
		return err
	}
	return c.withPINs(t.UserPIN, false, f)
}

func readOffer(name string) (*migration.Offer, error) {
	return parseFile(name, migration.MaxOffer, migration.ParseOffer)
}

// maySend tells why a token cannot be sent, as far as that can be known without
// PINs.
func (p *place) maySend(t sealstore.TokenInfo, tok *sealstore.Token, o *migration.Offer, c sendFlags) error {
	if !t.Recoverable {
		return notRecoverable(t)
	}
	switch err := p.store.HasOffer(sealstore.OfferID(o.ID)); {
	case err == nil:
		return errors.New("the offer is this store's own: a token goes to another one")
	case !errors.Is(err, sealstore.ErrNotFound):
		return explain(err)
	}
	if !c.move {
		return nil
	}
	if err := tok.Writable(); err != nil {
		return explain(fmt.Errorf("it could not be deleted afterwards: %w", err))
	}
	return nil
}

func notRecoverable(t sealstore.TokenInfo) error {
	return advice.With(fmt.Errorf("token %s: %w", printable(t.Label), sealstore.ErrNotRecoverable),
		`make a new identity on the other machine ("icn-p11 init"), and have it take the place of this one where this one is known`)
}

// pack takes a token out and writes it for an offer.
func (a *app) pack(p *place, t sealstore.TokenInfo, tok *sealstore.Token, o *migration.Offer, c sendFlags, user, so []byte) error {
	before, err := tok.Move()
	if err != nil {
		return explain(err)
	}
	// What changes from here on is not sent, and will be noticed.
	state, err := tok.State()
	if err != nil {
		return explain(err)
	}
	step, end := a.progress("Taking the keys out")
	contents, err := tok.Export(user, so, step)
	end()
	p.tpm.Release()
	if err != nil {
		return p.bindingFailure(t, err)
	}
	defer contents.Destroy()
	step, end = a.progress("Wrapping the keys")
	defer end()
	parcel, expected, err := migration.Pack(o, contents, c.move, step)
	if err != nil {
		return err
	}
	err = c.out.write(parcel.Encode(), func([]byte) error {
		if !c.move {
			return nil
		}
		// Before the file has its name, so that there is none without this.
		return explain(tok.StartMove(&sealstore.Move{
			Offer: sealstore.OfferID(expected.Offer), Target: expected.RootName, Nonce: expected.Nonce,
			Keys: expected.Keys, State: state, Started: time.Now(),
		}))
	})
	if err == nil && c.move && before != nil {
		end()
		a.note("The move to offer %x, which was pending, is not any more", before.Offer)
	}
	return err
}

// expected is what the proof of a move has to be of.
func expected(t sealstore.TokenInfo, m *sealstore.Move) migration.Expected {
	e := migration.Expected{Offer: migration.ID(m.Offer), RootName: m.Target, Nonce: m.Nonce, Keys: m.Keys}
	hex.Decode(e.Serial[:], []byte(t.Serial))
	return e
}

func (a *app) migrateFinish() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use:   "finish TOKEN PROOF",
		Short: "Delete a token that has arrived on another machine",
		Long: `On the machine that has sent a token with --move: check the proof that the target
has made, with every key of the token, and delete the token here. The SO PIN is
needed. If the token was changed since it was sent, it stays.`,
		Example:           "  icn-p11 migrate finish node node.parcel.proof",
		Args:              tokenAnd("PROOF"),
		ValidArgsFunction: tokenThenFile,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			proof, err := parseFile(args[1], migration.MaxProof, migration.ParseProof)
			if err != nil {
				return err
			}
			p, t, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			m, err := p.arrived(t, proof)
			if err != nil {
				return err
			}
			r := moveResult(t, m)
			r.DryRun = c.dryRun
			tok, err := p.store.Token(t.Serial)
			if err == nil {
				r.TPMKeys, err = tpmKeys(tok)
			}
			if err != nil {
				return explain(err)
			}
			if c.dryRun {
				err = p.changeable(t, sealstore.SO)
			} else {
				if !c.yes {
					question := fmt.Sprintf("Token %s has arrived on the TPM whose storage root key has the Name %s. Here it will be gone for good.", printable(t.Label), r.Root)
					if *r.TPMKeys > 0 {
						question += fmt.Sprintf(" With it goes what has not arrived there: %s.", fixed(*r.TPMKeys))
					}
					if err := confirm(question, t.Serial); err != nil {
						return err
					}
				}
				err = p.withSO(t, c, func(so []byte) error { return p.store.FinishMove(t.Serial, so, m) })
			}
			if err != nil {
				return err
			}
			return a.outcome(c, r, "Token %s, serial number %s, has arrived, and is deleted here", printable(t.Label), t.Serial)
		}),
	}
	c.flags(cmd, true, false, true)
	return cmd
}

// arrived checks the proof of a pending move.
func (p *place) arrived(t sealstore.TokenInfo, proof *migration.Proof) (*sealstore.Move, error) {
	tok, m, err := p.pendingMove(t)
	if err != nil {
		return nil, err
	}
	if err := proof.Check(expected(t, m)); err != nil {
		return nil, err
	}
	state, err := tok.State()
	if err != nil {
		return nil, explain(err)
	}
	if state != m.State {
		return nil, advice.With(fmt.Errorf("token %s: %w", printable(t.Label), sealstore.ErrStale),
			`send it again ("icn-p11 migrate send"), to a new offer, and accept it there with --replace`)
	}
	return m, nil
}

func (p *place) pendingMove(t sealstore.TokenInfo) (*sealstore.Token, *sealstore.Move, error) {
	tok, err := p.store.Token(t.Serial)
	if err != nil {
		return nil, nil, explain(err)
	}
	m, err := tok.Move()
	if err == nil && m == nil {
		err = fmt.Errorf("token %s is not on its way to another machine: no \"icn-p11 migrate send --move\" is pending", printable(t.Label))
	}
	return tok, m, explain(err)
}

func moveResult(t sealstore.TokenInfo, m *sealstore.Move) migrationResult {
	return migrationResult{Serial: t.Serial, Label: t.Label, Offer: hex.EncodeToString(m.Offer[:]), Root: hex.EncodeToString(m.Target), Move: true}
}

func (a *app) migrateCancel() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use:   "cancel TOKEN",
		Short: "Keep a token that was sent with --move",
		Long: `Forget that a token was to be deleted here when it has arrived elsewhere. What was
sent stays good: if the target accepts it, both machines have the keys. Withdraw
the offer there ("migrate withdraw"), and nobody opens it any more.`,
		Example:           "  icn-p11 migrate cancel node",
		Args:              oneToken,
		ValidArgsFunction: completeToken,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			p, t, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			tok, m, err := p.pendingMove(t)
			if err != nil {
				return err
			}
			if c.dryRun {
				err = tok.Writable()
			} else {
				err = tok.CancelMove()
			}
			if err != nil {
				return explain(err)
			}
			r := moveResult(t, m)
			r.DryRun = c.dryRun
			return a.outcome(c, r, "Token %s stays here; what was sent is opened by the target all the same, unless offer %s is withdrawn there", printable(t.Label), r.Offer)
		}),
	}
	c.flags(cmd, false, false, false)
	return cmd
}

func (a *app) migrateWithdraw() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use:   "withdraw OFFER",
		Short: "Withdraw an offer",
		Long: `On the machine that has made an offer: destroy what the store keeps of it, so that
nothing that was sent to it is opened any more. OFFER is the file or the
identifier.`,
		Example: "  icn-p11 migrate withdraw offer.json",
		Args:    exactlyOne("OFFER"),
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			id, err := offerID(args[0])
			if err != nil {
				return err
			}
			p, err := a.open()
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			if err := p.hasOffer(id); err != nil {
				return err
			}
			if c.dryRun {
				err = p.store.Writable()
			} else {
				err = p.store.DropOffer(id)
			}
			if err != nil {
				return explain(err)
			}
			r := offerResult{Offer: hex.EncodeToString(id[:]), DryRun: c.dryRun}
			return a.outcome(c, r, "Offer %s is withdrawn", r.Offer)
		}),
	}
	c.flags(cmd, false, false, false)
	return cmd
}

// offerID finds the offer that an argument means.
func offerID(arg string) (id sealstore.OfferID, err error) {
	if b, err := hex.DecodeString(arg); err == nil && len(b) == len(id) {
		return sealstore.OfferID(b), nil
	}
	o, err := readOffer(arg)
	if err != nil {
		return id, err
	}
	return sealstore.OfferID(o.ID), nil
}

// hasOffer makes sure that an offer can still be used.
func (p *place) hasOffer(id sealstore.OfferID) error {
	err := p.store.HasOffer(id)
	if errors.Is(err, sealstore.ErrNotFound) {
		return advice.With(fmt.Errorf("offer %x is none of this store's: it was used, or withdrawn, or made for another store", id),
			`make a new one ("icn-p11 migrate offer") and have the token sent to that`)
	}
	return explain(err)
}

// pendingResult is what list prints.
type pendingResult struct {
	Offers []offerRow `json:"offers"`
	Moves  []moveRow  `json:"moves"`
}

type offerRow struct {
	Offer   string    `json:"offer"`
	Created time.Time `json:"created"`
}

type moveRow struct {
	Serial  string    `json:"serial"`
	Label   string    `json:"label"`
	Offer   string    `json:"offer"`
	Root    string    `json:"srk_name"` // of the target
	Started time.Time `json:"started"`
}

func (a *app) migrateList() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List offers that are open, and moves that are pending",
		Example: "  icn-p11 migrate list",
		Args:    noArgs,
		RunE: a.does(func(*cobra.Command, []string) error {
			p, err := a.open()
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			r, err := p.pending()
			if err != nil {
				return explain(err)
			}
			if asJSON {
				return a.json(r)
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			for _, o := range r.Offers {
				fmt.Fprintf(w, "Offer\t%s\tof %s\n", o.Offer, o.Created.Format(time.RFC3339))
			}
			for _, m := range r.Moves {
				fmt.Fprintf(w, "Move\t%s\tof token %s, sent %s\n", m.Offer, printable(m.Label), m.Started.Format(time.RFC3339))
			}
			return w.Flush()
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (p *place) pending() (r pendingResult, err error) {
	r = pendingResult{[]offerRow{}, []moveRow{}}
	offers, err := p.store.Offers()
	if err != nil {
		return r, err
	}
	for _, o := range offers {
		r.Offers = append(r.Offers, offerRow{hex.EncodeToString(o.ID[:]), o.Created})
	}
	tokens, err := p.store.Tokens()
	if err != nil {
		return r, err
	}
	for _, t := range tokens {
		m, err := p.moving(t)
		if err != nil {
			return r, err
		}
		if m != nil {
			r.Moves = append(r.Moves, *m)
		}
	}
	return r, nil
}

// moving tells of a pending move; nil: there is none.
func (p *place) moving(t sealstore.TokenInfo) (*moveRow, error) {
	tok, err := p.store.Token(t.Serial)
	if err != nil {
		return nil, err
	}
	m, err := tok.Move()
	if err != nil || m == nil {
		return nil, err
	}
	return &moveRow{t.Serial, t.Label, hex.EncodeToString(m.Offer[:]), hex.EncodeToString(m.Target), m.Started}, nil
}
