package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/internal/pinsource"
	"github.com/InterCooperative-Network/icn-p11/p11"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// pinChange says which PIN is replaced, and by whom.
type pinChange struct {
	change
	ofSO    bool // the SO PIN instead of the user PIN
	unblock bool // the user PIN, by the SO
	old     pinsource.Source
	new     pinsource.Source
}

// authority is whose PIN allows the change.
func (c *pinChange) authority() sealstore.Role {
	if c.ofSO || c.unblock {
		return sealstore.SO
	}
	return sealstore.User
}

// target is whose PIN is replaced.
func (c *pinChange) target() sealstore.Role {
	if c.ofSO {
		return sealstore.SO
	}
	return sealstore.User
}

// pinResult is what pin prints.
type pinResult struct {
	Serial string `json:"serial"`
	Label  string `json:"label"`
	PIN    string `json:"pin"` // which: "user" or "SO"
	DryRun bool   `json:"dry_run,omitempty"`
}

func (a *app) pinCommand() *cobra.Command {
	var c pinChange
	cmd := &cobra.Command{
		Use:   "pin TOKEN",
		Short: "Change a PIN, or set the user PIN by the SO PIN",
		Long: `Change the user PIN of a token; with --so its SO PIN. With --unblock, set the
user PIN by the SO PIN, whatever it was; a token that was made with "init --no-pin"
then needs it. The TPM checks the present PIN.`,
		Example: `  icn-p11 pin node
  icn-p11 pin node --unblock --so-pin-source file:so-pin`,
		Args:              oneToken,
		ValidArgsFunction: completeToken,
		RunE: a.does(func(cmd *cobra.Command, args []string) error {
			user, so := cmd.Flags().Changed("pin-source"), cmd.Flags().Changed("so-pin-source")
			switch {
			case c.ofSO && c.unblock:
				return usage("--so and --unblock exclude each other")
			case c.unblock && user:
				return usage("--unblock takes the SO PIN (--so-pin-source), not the present user PIN")
			case c.ofSO && user && so:
				return usage("the present SO PIN has one source: --so-pin-source or --pin-source")
			case !c.ofSO && !c.unblock && so:
				return usage("--so-pin-source goes with --so or --unblock")
			}
			c.old = c.user
			if so {
				c.old = c.so
			}
			return a.pin(args[0], c)
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&c.ofSO, "so", false, "change the SO PIN")
	f.BoolVar(&c.unblock, "unblock", false, "set the user PIN by the SO PIN")
	f.Var(&c.new, "new-pin-source", "where the new PIN comes from")
	completeSource(cmd, "new-pin-source")
	c.flags(cmd, true, true, false)
	f.Lookup("pin-source").Usage = "where the present PIN comes from"
	f.Lookup("so-pin-source").Usage += ", with --so or --unblock"
	return cmd
}

func (a *app) pin(arg string, c pinChange) error {
	p, t, err := a.openToken(arg)
	if err != nil {
		return err
	}
	defer p.tpm.Close()
	who := c.authority()
	if who == sealstore.User && t.NoPIN {
		return fmt.Errorf("token %s has no user PIN, and needs none; \"icn-p11 pin %s --unblock\" gives it one", printable(t.Label), t.Serial)
	}
	if who == sealstore.User && !t.UserPIN {
		return explain(sealstore.ErrNoPIN)
	}
	r := pinResult{t.Serial, t.Label, c.target().String(), c.dryRun}
	if c.dryRun {
		if err := p.changeable(t, who); err != nil {
			return err
		}
		return a.outcome(c.change, r, "The %s PIN of token %s is set", r.PIN, printable(t.Label))
	}
	// Nobody should type PINs to hear that they cannot be stored, or that the TPM is missing.
	tok, err := p.store.Token(t.Serial)
	if err == nil {
		err = tok.Writable()
	}
	if err != nil {
		return explain(err)
	}
	if err := p.reachable(); err != nil {
		return err
	}
	oldPIN, err := c.old.Read(who.String()+" PIN", false)
	if err != nil {
		return err
	}
	defer oldPIN.Destroy()
	newPIN, err := c.new.Read(r.PIN+" PIN", true)
	if err != nil {
		return err
	}
	defer newPIN.Destroy()
	p.tpm.Release()
	_, end := p.progress(atTPM)
	err = changePIN(t, c, oldPIN.Bytes(), newPIN.Bytes())
	end()
	if err != nil {
		return p.pinFailure(who.String(), err)
	}
	if c.unblock && t.NoPIN {
		return a.outcome(c.change, r, "Token %s needs the user PIN from now on; a copy of its files made before still opens without one", printable(t.Label))
	}
	return a.outcome(c.change, r, "The %s PIN of token %s is set; a copy of its files made before still opens with the PIN of then", r.PIN, printable(t.Label))
}

// changePIN does it in a module of its own, which is gone when it returns.
func changePIN(t sealstore.TokenInfo, c pinChange, old, new []byte) error {
	m, err := startModule()
	if err != nil {
		return err
	}
	defer m.stop()
	s, err := m.session(t)
	if err != nil {
		return err
	}
	// C_SetPIN changes the PIN of who is logged in, or the user's.
	if c.authority() == sealstore.SO {
		if err := m.Login(s, p11.CKU_SO, old); err != nil {
			return err
		}
	}
	if c.unblock {
		return m.InitPIN(s, new)
	}
	return m.SetPIN(s, old, new)
}
