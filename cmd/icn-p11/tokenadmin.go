package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/internal/pinsource"
	"github.com/InterCooperative-Network/icn-p11/internal/secmem"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

func (a *app) tokenCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "token",
		Short: "Rename or delete a token",
	},
		a.tokenRename(),
		a.tokenDelete(),
	)
}

// change is what every verb that changes something takes.
type change struct {
	so, user pinsource.Source
	yes      bool
	dryRun   bool
	json     bool
}

// flags declares the flags of a verb that changes something.
func (c *change) flags(cmd *cobra.Command, so, user, asks bool) {
	f := cmd.Flags()
	if so {
		f.Var(&c.so, "so-pin-source", "where the SO PIN comes from")
		completeSource(cmd, "so-pin-source")
	}
	if user {
		f.Var(&c.user, "pin-source", "where the user PIN comes from")
		completeSource(cmd, "pin-source")
	}
	if asks {
		f.BoolVar(&c.yes, "yes", false, "do not ask")
	}
	f.BoolVar(&c.dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVar(&c.json, "json", false, "print JSON")
}

// withPINs asks for the SO PIN and, with user, for the user PIN, and runs f with
// them; fresh ones are those that a token gets. Without user f is given nil.
func (c *change) withPINs(user, fresh bool, f func(user, so []byte) error) error {
	so, err := c.so.Read("SO PIN", fresh)
	if err != nil {
		return err
	}
	defer so.Destroy()
	var pin *secmem.Buffer
	if user {
		if pin, err = c.user.Read("user PIN", fresh); err != nil {
			return err
		}
		defer pin.Destroy()
	}
	return f(pin.Bytes(), so.Bytes())
}

// outcome prints what was done, or would be: as JSON, else as the note.
func (a *app) outcome(c change, result any, note string, args ...any) error {
	if c.json {
		return a.json(result)
	}
	if c.dryRun {
		note = "Would: " + note
	}
	a.note(note, args...)
	return nil
}

// confirm has a person type a word, on the terminal.
func confirm(question, word string) error {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return errors.New("there is no terminal to ask on: --yes goes without asking")
	}
	defer tty.Close()
	fmt.Fprintf(tty, "%s Type %s to go on: ", question, word)
	line, err := bufio.NewReader(tty).ReadString('\n')
	if err != nil {
		return err
	}
	if strings.TrimSpace(line) != word {
		return errors.New("nothing was done")
	}
	return nil
}

// tokenResult is what the verbs of token print.
type tokenResult struct {
	Serial string `json:"serial"`
	Label  string `json:"label"`
	DryRun bool   `json:"dry_run,omitempty"`
}

func (a *app) tokenRename() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use:               "rename TOKEN LABEL",
		Short:             "Give a token another label",
		Long:              `Give a token another label. The SO PIN is needed; serial number, keys and DID stay.`,
		Example:           "  icn-p11 token rename node gateway",
		Args:              tokenAnd("LABEL"),
		ValidArgsFunction: completeToken,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			label := args[1]
			if err := checkLabel("LABEL", label, sealstore.MaxLabel); err != nil {
				return err
			}
			p, t, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			if err := p.unused(label, t.Serial); err != nil {
				return err
			}
			if c.dryRun {
				err = p.changeable(t, sealstore.SO)
			} else {
				err = p.withSO(t, c, func(so []byte) error {
					tok, err := p.store.Token(t.Serial)
					if err != nil {
						return err
					}
					return tok.Rename(so, label)
				})
			}
			if err != nil {
				return err
			}
			return a.outcome(c, tokenResult{t.Serial, label, c.dryRun}, "Token %s is called %s", t.Serial, printable(label))
		}),
	}
	c.flags(cmd, true, false, false)
	return cmd
}

func (a *app) tokenDelete() *cobra.Command {
	var c change
	cmd := &cobra.Command{
		Use:   "delete TOKEN",
		Short: "Delete a token with all its keys",
		Long: `Delete a token with all its keys, certificates and data, for good: its identity is
lost unless a backup holds it. The SO PIN is needed.`,
		Example: `  icn-p11 token delete node --dry-run
  icn-p11 token delete node --yes --so-pin-source file:so-pin`,
		Args:              oneToken,
		ValidArgsFunction: completeToken,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			p, t, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			if c.dryRun {
				err = p.changeable(t, sealstore.SO)
			} else {
				if !c.yes {
					if err := confirm(fmt.Sprintf("Token %s with all its keys will be gone for good.", printable(t.Label)), t.Serial); err != nil {
						return err
					}
				}
				err = p.withSO(t, c, func(so []byte) error { return p.store.Delete(t.Serial, so) })
			}
			if err != nil {
				return err
			}
			return a.outcome(c, tokenResult{t.Serial, t.Label, c.dryRun}, "Token %s, serial number %s, is deleted", printable(t.Label), t.Serial)
		}),
	}
	c.flags(cmd, true, false, true)
	return cmd
}

// unused makes sure that a label would name one token.
func (p *place) unused(label, except string) error {
	tokens, err := p.store.Tokens()
	if err != nil {
		return err
	}
	for _, t := range tokens {
		if t.Serial != except && (t.Label == label || t.Serial == label) {
			return fmt.Errorf("there is a token %s already, serial number %s: choose another label", printable(label), t.Serial)
		}
	}
	return nil
}

// openToken opens the place, and finds a token in it.
func (a *app) openToken(arg string) (*place, sealstore.TokenInfo, error) {
	p, err := a.open()
	if err != nil {
		return nil, sealstore.TokenInfo{}, err
	}
	t, err := p.find(arg)
	if err != nil {
		p.tpm.Release()
		return nil, sealstore.TokenInfo{}, err
	}
	return p, t, nil
}

// usable tells why a PIN would not open a token, as far as that shows without
// one: for dry runs.
func (p *place) usable(t sealstore.TokenInfo, by sealstore.Role) error {
	_, end := p.progress(atTPM)
	defer end()
	defer p.tpm.Release()
	return explain(p.closed(t, by))
}

// changeable is usable for what changes a token, which must be possible too.
func (p *place) changeable(t sealstore.TokenInfo, by sealstore.Role) error {
	tok, err := p.store.Token(t.Serial)
	if err == nil {
		err = tok.Writable()
	}
	if err != nil {
		return explain(err)
	}
	return p.usable(t, by)
}

func (p *place) closed(t sealstore.TokenInfo, by sealstore.Role) error {
	if by == sealstore.User && !t.UserPIN && !t.NoPIN {
		return sealstore.ErrNoPIN
	}
	parent, err := p.tpm.Parent()
	if err != nil {
		return err
	}
	if !bytes.Equal(parent, t.Parent) {
		return sealstore.ErrParent
	}
	l, err := p.tpm.Lockout()
	switch {
	case err != nil:
		return err
	case l.InLockout && (by == sealstore.SO || t.UserPIN):
		return sealstore.ErrLockout
	case by == sealstore.SO:
		return nil // that seal is not bound to PCRs
	}
	tok, err := p.store.Token(t.Serial)
	if err != nil {
		return err
	}
	b, now, err := tok.Binding()
	if err == nil && b != nil && !b.Open(now) {
		err = b.Mismatch(now)
	}
	return err
}

// withSO runs what needs the SO PIN, and asks nothing else.
func (p *place) withSO(t sealstore.TokenInfo, c change, f func(so []byte) error) error {
	// Nobody should type a PIN to hear that the TPM is missing.
	if err := p.reachable(); err != nil {
		return err
	}
	so, err := c.so.Read("SO PIN", false)
	if err != nil {
		return err
	}
	defer so.Destroy()
	_, end := p.progress(atTPM)
	defer end()
	if err := f(so.Bytes()); err != nil {
		return p.pinFailure("SO", err)
	}
	return nil
}

// tokenAnd checks the arguments of a command that takes TOKEN and others.
func tokenAnd(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1+len(names) {
			return usage("TOKEN %s is expected, and nothing behind it (a PIN is never an argument)", strings.Join(names, " "))
		}
		if err := oneToken(cmd, args[:min(1, len(args))]); err != nil {
			return err
		}
		if len(args) < 1+len(names) {
			return usage("%s is missing", names[len(args)-1])
		}
		return nil
	}
}
