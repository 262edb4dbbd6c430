package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/InterCooperative-Network/icn-p11/internal/pinsource"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
	"github.com/InterCooperative-Network/icn-p11/tpm"
)

// passwordFlag is where a password comes from that is no PIN: of a hierarchy of
// the TPM, or of an object.
type passwordFlag struct {
	name, what, of string
	source         pinsource.Source
	flag           *pflag.Flag
}

func ownerFlag() *passwordFlag {
	return &passwordFlag{name: "owner-auth-source", what: "owner password", of: "the TPM's owner password"}
}

// on adds the flag to a command.
func (f *passwordFlag) on(cmd *cobra.Command) {
	f.flag = cmd.Flags().VarPF(&f.source, f.name, "", "where "+f.of+" comes from, if it has one")
	completeSource(cmd, f.name)
}

// given tells whether a source was named.
func (f *passwordFlag) given() bool { return f.flag.Changed }

// read gets the password from where it was said to be, else by a prompt if
// the TPM wants one. A nil buffer is the empty password.
func (f *passwordFlag) read(wanted bool) (*secmem.Buffer, error) {
	if !f.given() && !wanted {
		return nil, nil
	}
	b, err := f.source.ReadPassword(f.what)
	if err != nil && !f.given() {
		err = fmt.Errorf("%w; --%s says where", err, f.name)
	}
	return b, err
}

func (a *app) srkCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "srk",
		Short: "Look at the storage root key, and make it persistent",
		Long: `Tokens are sealed under the storage root key, which the TPM can create again each
time. A persistent one at key_handle saves that time, and is needed where the
TPM's owner hierarchy has a password.`,
	},
		a.srkShow(),
		a.srkPersist(),
		a.srkEvict(),
	)
}

// srkVerb makes cmd a verb of srk.
func (a *app) srkVerb(cmd *cobra.Command, run func(*place, *passwordFlag) error) *cobra.Command {
	owner := ownerFlag()
	cmd.Args = noArgs
	cmd.RunE = a.does(func(*cobra.Command, []string) error {
		p, err := a.open()
		if err != nil {
			return err
		}
		defer p.tpm.Close()
		return explain(run(p, owner))
	})
	owner.on(cmd)
	return cmd
}

func (a *app) srkShow() *cobra.Command {
	var asJSON bool
	cmd := a.srkVerb(&cobra.Command{
		Use:   "show",
		Short: "Show the storage root key and what is sealed under it",
		Long: `Show what is at key_handle, whether it is the storage root key that this TPM
creates, and which tokens were sealed under which key. Where the owner hierarchy
has a password, that key is only known with it.`,
		Example: "  icn-p11 srk show",
	}, func(p *place, owner *passwordFlag) error {
		d, err := p.srk(owner)
		if err != nil {
			return err
		}
		if asJSON {
			return a.json(d)
		}
		return d.print(a.out)
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// States of the object at key_handle.
const (
	srkNone       = "none"
	srkOurs       = "storage root key"
	srkUnknown    = "a storage root key, perhaps another one"
	srkOther      = "another storage root key"
	srkPassword   = "storage root key with a password"
	srkForeign    = "foreign"
	underDerived  = "the key that this TPM creates"
	underHandle   = "the key at key_handle"
	underAnother  = "another key"
	underUnproven = "another key than the one at key_handle"
)

// srkDetails is what srk show prints.
type srkDetails struct {
	Handle        string     `json:"key_handle"`
	State         string     `json:"state"`
	Name          string     `json:"name,omitempty"`         // of the object at key_handle
	Derived       string     `json:"derived_name,omitempty"` // of the key that the TPM creates
	Template      bool       `json:"template"`               // the object has the template
	OwnerPassword bool       `json:"owner_password_set"`
	Tokens        []srkToken `json:"tokens"`
}

type srkToken struct {
	Label  string `json:"label"`
	Serial string `json:"serial"`
	Name   string `json:"name"` // of the key that it was sealed under
	Under  string `json:"sealed_under"`
}

func (p *place) srk(owner *passwordFlag) (*srkDetails, error) {
	s, err := p.rootState(owner)
	if err != nil {
		return nil, err
	}
	d := &srkDetails{
		Handle: fmt.Sprintf("0x%08x", p.cfg.KeyHandle), State: srkState(s), Name: hex.EncodeToString(s.Name),
		Derived: hex.EncodeToString(s.Derived), Template: s.Template, OwnerPassword: s.OwnerPassword, Tokens: []srkToken{},
	}
	tokens, err := p.store.Tokens()
	for _, t := range tokens {
		d.Tokens = append(d.Tokens, srkToken{t.Label, t.Serial, hex.EncodeToString(t.Parent), srkOf(t, s)})
	}
	return d, err
}

func srkState(s tpm.RootState) string {
	switch {
	case s.Name == nil:
		return srkNone
	case !s.Template:
		return srkForeign
	case s.Password:
		return srkPassword
	case s.Ours():
		return srkOurs
	case s.Derived == nil:
		return srkUnknown
	}
	return srkOther
}

// srkOf tells which key a token was sealed under.
func srkOf(t sealstore.TokenInfo, s tpm.RootState) string {
	switch {
	case s.Template && bytes.Equal(t.Parent, s.Name):
		return underHandle
	case bytes.Equal(t.Parent, s.Derived):
		return underDerived
	case s.Derived == nil:
		return underUnproven
	}
	return underAnother
}

func (d *srkDetails) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "Handle\t%s\n", d.Handle)
	fmt.Fprintf(w, "Object\t%s\n", d.State)
	fmt.Fprintf(w, "Name\t%s\n", dash(d.Name))
	derived := d.Derived
	if derived == "" {
		derived = "unknown without the owner password (--owner-auth-source)"
	}
	fmt.Fprintf(w, "This TPM creates\t%s\n", derived)
	for _, t := range d.Tokens {
		fmt.Fprintf(w, "Token %s\t%s, sealed under %s", printable(t.Label), t.Serial, t.Under)
		if t.Name != d.Name && t.Name != d.Derived {
			fmt.Fprintf(w, ", Name %s", t.Name)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// ownerPassword reads the owner's password, by a prompt if the TPM wants one
// and no source was named.
func (p *place) ownerPassword(owner *passwordFlag) (tpm.RootState, *secmem.Buffer, error) {
	s, err := p.rootKey(nil)
	if err != nil {
		return s, nil, err
	}
	p.tpm.Release() // somebody may have to type
	password, err := owner.read(s.OwnerPassword)
	return s, password, err
}

func (p *place) rootKey(password []byte) (tpm.RootState, error) {
	_, end := p.progress(atTPM)
	defer end()
	return p.tpm.RootKey(password)
}

// rootChange is what srk persist and srk evict print.
type rootChange struct {
	Handle   string `json:"key_handle"`
	Name     string `json:"name,omitempty"` // of the storage root key, as far as it is known
	Changed  bool   `json:"changed"`        // it was not so already
	Password bool   `json:"owner_password_set"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

func (a *app) srkPersist() *cobra.Command {
	var c change
	cmd := a.srkVerb(&cobra.Command{
		Use:   "persist",
		Short: "Make the storage root key persistent",
		Long: `Make the storage root key persistent at key_handle. It is no error if it is there
already. Another object there is never overwritten.`,
		Example: `  icn-p11 srk persist
  icn-p11 srk persist --owner-auth-source file:owner-password`,
	}, func(p *place, owner *passwordFlag) error {
		r, err := p.persist(owner, c.dryRun)
		if err != nil {
			return err
		}
		return a.outcome(c, r, "%s", r.persisted())
	})
	c.flags(cmd, false, false, false)
	return cmd
}

// persist makes the storage root key persistent, or finds out whether it could.
func (p *place) persist(owner *passwordFlag, dryRun bool) (r rootChange, err error) {
	var password *secmem.Buffer
	if dryRun {
		password, err = owner.read(false)
	} else {
		_, password, err = p.ownerPassword(owner)
	}
	if err != nil {
		return r, err
	}
	defer password.Destroy()
	return p.persistBy(password.Bytes(), dryRun)
}

func (p *place) persistBy(password []byte, dryRun bool) (r rootChange, err error) {
	r = rootChange{Handle: fmt.Sprintf("0x%08x", p.cfg.KeyHandle), DryRun: dryRun}
	if dryRun {
		s, err := p.rootKey(password)
		if err != nil {
			return r, err
		}
		r.Name, r.Changed, r.Password = hex.EncodeToString(s.Derived), s.Name == nil, s.OwnerPassword
		return r, p.tpm.Foreign(&s)
	}
	_, end := p.progress(atTPM)
	defer end()
	name, done, err := p.tpm.Persist(password)
	r.Name, r.Changed, r.Password = hex.EncodeToString(name), done, len(password) > 0
	return r, err
}

// rootState looks at the storage root key with the owner's password only where
// its source was named.
func (p *place) rootState(owner *passwordFlag) (s tpm.RootState, err error) {
	password, err := owner.read(false)
	if err != nil {
		return s, err
	}
	defer password.Destroy()
	return p.rootKey(password.Bytes())
}

func (r rootChange) persisted() string {
	name := ""
	if r.Name != "" {
		name = ", Name " + r.Name
	}
	if !r.Changed {
		return fmt.Sprintf("The storage root key is at %s already%s", r.Handle, name)
	}
	return fmt.Sprintf("The storage root key is persistent at %s now%s", r.Handle, name)
}

func (a *app) srkEvict() *cobra.Command {
	var c change
	cmd := a.srkVerb(&cobra.Command{
		Use:   "evict",
		Short: "Remove the persistent storage root key",
		Long: `Remove the storage root key from key_handle. Tokens lose nothing by it: the TPM
creates the same key again. Another object there is never removed.`,
		Example: "  icn-p11 srk evict --dry-run",
	}, func(p *place, owner *passwordFlag) error {
		r, err := p.evict(owner, c.dryRun)
		if err != nil {
			return err
		}
		return a.outcome(c, r, "%s", r.evicted())
	})
	c.flags(cmd, false, false, false)
	return cmd
}

func (p *place) evict(owner *passwordFlag, dryRun bool) (r rootChange, err error) {
	r = rootChange{Handle: fmt.Sprintf("0x%08x", p.cfg.KeyHandle), DryRun: dryRun}
	if dryRun {
		s, err := p.rootState(owner)
		if err != nil {
			return r, err
		}
		r.Name, r.Changed, r.Password = hex.EncodeToString(s.Name), s.Name != nil, s.OwnerPassword
		s.Password = false // it can go all the same
		return r, p.tpm.Foreign(&s)
	}
	s, password, err := p.ownerPassword(owner)
	if err != nil {
		return r, err
	}
	defer password.Destroy()
	_, end := p.progress(atTPM)
	defer end()
	r.Changed, err = p.tpm.Evict(password.Bytes())
	r.Name, r.Password = hex.EncodeToString(s.Name), s.OwnerPassword
	return r, err
}

func (r rootChange) evicted() string {
	switch {
	case !r.Changed:
		return "There is nothing at " + r.Handle
	case r.Password:
		return fmt.Sprintf("Nothing is at %s any more. The owner hierarchy has a password, so no token can be used until \"icn-p11 srk persist\"", r.Handle)
	}
	return fmt.Sprintf("Nothing is at %s any more; the storage root key is created when it is needed", r.Handle)
}
