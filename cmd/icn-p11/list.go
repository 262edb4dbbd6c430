package main

import (
	"cmp"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// States of a token.
const (
	stateReady   = "ready"
	stateNoPIN   = "user PIN not set"
	stateNoTPM   = "TPM unavailable"
	stateNoRoot  = "no storage root key"
	stateLockout = "PIN locked"
	stateForeign = "sealed to another TPM"
	stateDamaged = "damaged"
	stateNoSlot  = "slot taken"
	stateNoRead  = "cannot be read"
)

// row is one token as list and show print it.
type row struct {
	Slot   *p11.SlotID `json:"slot"` // null: hidden, or see doctor
	Label  string      `json:"label"`
	Serial string      `json:"serial"`
	DID    string      `json:"did,omitempty"`
	State  string      `json:"state"`
	// Recoverable: the keys can be taken out with both PINs.
	Recoverable bool `json:"recoverable"`
}

func (a *app) listCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the tokens",
		Example: "  icn-p11 list",
		Args:    noArgs,
		RunE: a.does(func(*cobra.Command, []string) error {
			p, err := a.open()
			if err != nil {
				return err
			}
			census, err := p.store.Scan()
			if err != nil {
				return err
			}
			_, end := p.progress(atTPM)
			rows := p.rows(census.Tokens)
			end()
			for _, l := range census.LeftOut {
				rows = append(rows, row{Serial: l.Serial, State: leftOutState(l.Err)})
			}
			if asJSON {
				return a.json(rows)
			}
			if len(rows) == 0 {
				a.note("No tokens in %s; \"icn-p11 init\" makes one", p.cfg.SealedBlobDir)
				return nil
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "SLOT\tLABEL\tSERIAL\tDID\tSTATE")
			for _, r := range rows {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", slotOf(r.Slot), dash(printable(r.Label)), r.Serial, dash(r.DID), r.State)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			if slices.ContainsFunc(rows, func(r row) bool { return r.State == stateDamaged || r.State == stateNoSlot || r.State == stateNoRead }) {
				a.note("\"icn-p11 doctor\" tells what is wrong")
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (a *app) json(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// leftOutState names why the store leaves a token out.
func leftOutState(err error) string {
	switch {
	case errors.Is(err, sealstore.ErrSlotTaken):
		return stateNoSlot
	case errors.Is(err, sealstore.ErrIntegrity), errors.Is(err, sealstore.ErrNotFound):
		return stateDamaged
	}
	return stateNoRead
}

// rows finds out the state of tokens. A TPM that does not answer is asked once.
func (p *place) rows(tokens []sealstore.TokenInfo) []row {
	rows := make([]row, 0, len(tokens))
	if len(tokens) == 0 {
		return rows
	}
	slots, _ := p.slots()
	lockout, tpmErr := p.tpm.Lockout()
	p.tpm.Release()
	var m *module
	if tpmErr == nil {
		m, tpmErr = startModule()
	}
	for _, t := range tokens {
		r := row{Slot: slotIn(slots, t.Serial), Label: t.Label, Serial: t.Serial, Recoverable: t.Recoverable}
		err := tpmErr
		if err == nil {
			var k tokenKey
			if k, err = m.identity(t); err == nil {
				r.DID = k.did()
			}
		}
		r.State = state(t, lockout, err)
		if r.State == stateNoTPM {
			tpmErr = err
		}
		rows = append(rows, r)
	}
	if m != nil {
		m.stop()
	}
	for i, t := range tokens {
		if s := rows[i].State; s != stateReady && s != stateNoPIN && s != stateLockout {
			continue
		}
		if damage, err := p.damage(t); err != nil || len(damage) > 0 {
			rows[i].State = stateDamaged
			if err != nil {
				rows[i].State = state(t, lockout, err)
			}
		}
	}
	p.tpm.Release()
	return rows
}

// damage lists the objects of a token that cannot be used.
func (p *place) damage(t sealstore.TokenInfo) ([]sealstore.Damage, error) {
	tok, err := p.store.Token(t.Serial)
	if err != nil {
		return nil, err
	}
	return tok.LeftOut()
}

// state names the first thing that keeps a token from signing. err is what
// reading its public key gave.
func state(t sealstore.TokenInfo, l sealstore.Lockout, err error) string {
	switch {
	case errors.Is(err, sealstore.ErrParent), errors.Is(err, sealstore.ErrBlob):
		return stateForeign
	case errors.Is(err, sealstore.ErrOwner):
		return stateNoRoot
	case errors.Is(err, sealstore.ErrIntegrity):
		return stateDamaged
	case err != nil && !errors.Is(err, errNoIdentity):
		return stateNoTPM
	case l.InLockout:
		return stateLockout
	case !t.UserPIN && !t.NoPIN:
		return stateNoPIN
	}
	return stateReady
}

// tokenDID is what did prints.
type tokenDID struct {
	Serial string `json:"serial"`
	Label  string `json:"label"`
	DID    string `json:"did"`
	Key    string `json:"key"` // label of the key that it is made of
}

func (a *app) didCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "did TOKEN",
		Short:             "Print the DID of a token",
		Long:              `Print the DID of a token. "did resolve DID" prints the public key of a DID.`,
		Example:           "  icn-p11 did node",
		Args:              oneToken,
		ValidArgsFunction: completeToken,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			p, t, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			_, end := p.progress(atTPM)
			k, err := p.identity(t)
			end()
			if err != nil {
				return explain(err)
			}
			if asJSON {
				return a.json(tokenDID{t.Serial, t.Label, k.did(), k.label})
			}
			_, err = fmt.Fprintln(a.out, k.did())
			return err
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(a.didResolve())
	return cmd
}

// identity finds a token's key, and does not take another one for it because
// the right one is damaged.
func (p *place) identity(t sealstore.TokenInfo) (tokenKey, error) {
	m, err := startModule()
	if err != nil {
		return tokenKey{}, err
	}
	k, err := m.identity(t)
	m.stop()
	if err == nil && k.label == identityLabel || err != nil && !errors.Is(err, errNoIdentity) {
		return k, err
	}
	damage, derr := p.damage(t)
	p.tpm.Release()
	if derr != nil {
		return tokenKey{}, derr
	}
	if len(damage) > 0 {
		return tokenKey{}, fmt.Errorf("the identity key cannot be told: %w", damage[0].Err)
	}
	return k, err
}

// details is what show prints.
type details struct {
	row
	Created time.Time     `json:"created"`
	UserPIN bool          `json:"user_pin_set"`
	NoPIN   bool          `json:"no_pin"`
	Moving  *moveRow      `json:"moving,omitempty"`
	Objects []objectRow   `json:"public_objects"`
	Lockout *lockoutState `json:"lockout,omitempty"`
	Damaged []string      `json:"damaged,omitempty"`
	Error   string        `json:"error,omitempty"` // why this is not all
}

type objectRow struct {
	Class   string `json:"class"`
	Label   string `json:"label"`
	ID      string `json:"id,omitempty"`
	DID     string `json:"did,omitempty"`
	Subject string `json:"subject,omitempty"`
}

type lockoutState struct {
	Counter  uint32 `json:"counter"`
	Max      uint32 `json:"max"`
	Interval uint64 `json:"interval_secs"`
	Recovery uint64 `json:"recovery_secs"`
	Locked   bool   `json:"locked"`
	Password bool   `json:"lockout_password_set"`
}

func (a *app) showCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show TOKEN",
		Short: "Show a token, its public objects and the TPM's lockout counter",
		Example: `  icn-p11 show node
  icn-p11 show node --json`,
		Args:              oneToken,
		ValidArgsFunction: completeToken,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			p, t, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			_, end := p.progress(atTPM)
			d, why := p.details(t)
			end()
			why = explain(why)
			if asJSON {
				if why != nil {
					d.Error = why.Error()
				}
				err = a.json(d)
			} else {
				err = d.print(a.out)
			}
			if err != nil {
				return err
			}
			return why
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// details collects what can be known of a token without a PIN; why tells what
// kept it from being all.
func (p *place) details(t sealstore.TokenInfo) (d details, why error) {
	d = details{row: p.rows([]sealstore.TokenInfo{t})[0], Created: t.Created, UserPIN: t.UserPIN, NoPIN: t.NoPIN, Objects: []objectRow{}}
	var err error
	if d.Moving, err = p.moving(t); err != nil {
		return d, err
	}
	l, err := p.tpm.Lockout()
	if err != nil {
		p.tpm.Release()
		return d, err
	}
	damage, err := p.damage(t)
	p.tpm.Release()
	for _, x := range damage {
		d.Damaged = append(d.Damaged, x.Err.Error())
	}
	state := lockoutOf(l)
	d.Lockout = &state
	if err != nil {
		return d, err
	}
	m, err := startModule()
	if err != nil {
		return d, err
	}
	defer m.stop()
	s, err := m.session(t)
	if err != nil {
		return d, err
	}
	found, err := m.find(s)
	if err != nil {
		return d, err
	}
	for _, o := range found {
		r, err := m.row(s, o)
		if err != nil {
			return d, err
		}
		d.Objects = append(d.Objects, r)
	}
	slices.SortStableFunc(d.Objects, func(a, b objectRow) int {
		return cmp.Or(-strings.Compare(a.Class, b.Class), strings.Compare(a.Label, b.Label), strings.Compare(a.ID, b.ID))
	})
	return d, nil
}

var classes = map[uint]string{
	p11.CKO_DATA: "data", p11.CKO_CERTIFICATE: "certificate",
	p11.CKO_PUBLIC_KEY: "public key", p11.CKO_PRIVATE_KEY: "private key", p11.CKO_SECRET_KEY: "secret key",
}

func (m *module) row(s p11.SessionHandle, o p11.ObjectHandle) (r objectRow, err error) {
	get := func(t p11.AttributeType) []byte {
		v, e := m.attribute(s, o, t)
		if e != nil && err == nil {
			err = e
		}
		return v
	}
	class, _ := ulongOf(get(p11.CKA_CLASS))
	r = objectRow{Class: classes[class], Label: string(get(p11.CKA_LABEL))}
	switch class {
	case p11.CKO_PUBLIC_KEY:
		// Only an Ed25519 key has a DID.
		if kind, _ := ulongOf(get(p11.CKA_KEY_TYPE)); kind != p11.CKK_EC_EDWARDS {
			break
		}
		k, e := m.publicKeyOf(s, o)
		if e != nil {
			return r, e
		}
		r.DID = k.did()
	case p11.CKO_CERTIFICATE:
		if c, e := x509.ParseCertificate(get(p11.CKA_VALUE)); e == nil {
			r.Subject = c.Subject.String()
		}
	}
	if class != p11.CKO_DATA {
		r.ID = hex.EncodeToString(get(p11.CKA_ID))
	}
	return r, err
}

func (d *details) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "Label\t%s\n", printable(d.Label))
	fmt.Fprintf(w, "Serial number\t%s\n", d.Serial)
	fmt.Fprintf(w, "Slot\t%s\n", slotOf(d.Slot))
	fmt.Fprintf(w, "DID\t%s\n", dash(d.DID))
	fmt.Fprintf(w, "State\t%s\n", d.State)
	fmt.Fprintf(w, "Created\t%s\n", d.Created.Format(time.RFC3339))
	userPIN := "not set"
	switch {
	case d.UserPIN:
		userPIN = "set"
	case d.NoPIN:
		userPIN = "none, and none needed"
	}
	fmt.Fprintf(w, "User PIN\t%s\n", userPIN)
	recoverable := "no: its keys never leave this TPM"
	if d.Recoverable {
		recoverable = "yes: both PINs together can take its keys out"
	}
	fmt.Fprintf(w, "Recoverable\t%s\n", recoverable)
	if m := d.Moving; m != nil {
		fmt.Fprintf(w, "Moving\tsince %s, to the TPM whose storage root key has the Name %s (\"icn-p11 migrate finish\" or \"cancel\")\n", m.Started.Format(time.RFC3339), m.Root)
	}
	if l := d.Lockout; l != nil {
		fmt.Fprintf(w, "Wrong PINs\t%d of %d, counted by the TPM for all its users; %s\n", l.Counter, l.Max,
			forgiven(sealstore.Lockout{Interval: time.Duration(l.Interval) * time.Second}))
	}
	for i, o := range d.Objects {
		head := ""
		if i == 0 {
			head = "Public objects"
		}
		text := o.Class + " " + printable(o.Label)
		if o.ID != "" {
			text += ", ID " + o.ID
		}
		if o.Subject != "" {
			text += ", " + printable(o.Subject)
		}
		if o.DID != "" && o.DID != d.DID {
			text += ", " + o.DID
		}
		fmt.Fprintf(w, "%s\t%s\n", head, text)
	}
	for i, x := range d.Damaged {
		head := ""
		if i == 0 {
			head = "Damaged"
		}
		fmt.Fprintf(w, "%s\t%s\n", head, x)
	}
	return w.Flush()
}
