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
	so      bool // the SO PIN instead of the user PIN
	unblock bool // the user PIN, by the SO
	old     pinsource.Source
	new     pinsource.Source
}

// authority is whose PIN allows the change.
func (c *pinChange) authority() (name string, user p11.UserType) {
	if c.so || c.unblock {
		return "SO", p11.CKU_SO
	}
	return "user", p11.CKU_USER
}

func (a *app) pinCommand() *cobra.Command {
	var c pinChange
	var userSource, soSource pinsource.Source
	cmd := &cobra.Command{
		Use:   "pin TOKEN",
		Short: "Change a PIN, or set the user PIN by the SO PIN",
		Long: `Change the user PIN of a token; with --so its SO PIN. With --unblock, set the
user PIN by the SO PIN, whatever it was; a token that was made with "init --no-pin"
then needs it. The TPM checks the present PIN.`,
		Args:              oneToken,
		ValidArgsFunction: completeToken,
		RunE: a.does(func(cmd *cobra.Command, args []string) error {
			user, so := cmd.Flags().Changed("pin-source"), cmd.Flags().Changed("so-pin-source")
			switch {
			case c.so && c.unblock:
				return usage("--so and --unblock exclude each other")
			case c.unblock && user:
				return usage("--unblock takes the SO PIN (--so-pin-source), not the present user PIN")
			case c.so && user && so:
				return usage("the present SO PIN has one source: --so-pin-source or --pin-source")
			case !c.so && !c.unblock && so:
				return usage("--so-pin-source goes with --so or --unblock")
			}
			c.old = userSource
			if so {
				c.old = soSource
			}
			return a.pin(args[0], c)
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&c.so, "so", false, "change the SO PIN")
	f.BoolVar(&c.unblock, "unblock", false, "set the user PIN by the SO PIN")
	f.Var(&userSource, "pin-source", "where the present PIN comes from")
	f.Var(&soSource, "so-pin-source", "where the SO PIN comes from, with --so or --unblock")
	f.Var(&c.new, "new-pin-source", "where the new PIN comes from")
	completeSource(cmd, "pin-source", "so-pin-source", "new-pin-source")
	return cmd
}

func (a *app) pin(arg string, c pinChange) error {
	p, t, err := a.openToken(arg)
	if err != nil {
		return err
	}
	defer p.tpm.Close()
	who, _ := c.authority()
	if who == "user" && t.NoPIN {
		return fmt.Errorf("token %s has no user PIN, and needs none; \"icn-p11 pin %s --unblock\" gives it one", printable(t.Label), t.Serial)
	}
	if who == "user" && !t.UserPIN {
		return explain(sealstore.ErrNoPIN)
	}
	// Nobody should type PINs to hear that they cannot be stored, or that the TPM is missing.
	tok, err := p.store.Token(t.Serial)
	if err == nil {
		err = tok.Writable()
	}
	if err == nil {
		_, err = p.tpm.Parent()
	}
	if err != nil {
		return explain(err)
	}
	oldPIN, err := c.old.Read(who+" PIN", false)
	if err != nil {
		return err
	}
	defer oldPIN.Destroy()
	target := who
	if c.unblock {
		target = "user"
	}
	newPIN, err := c.new.Read(target+" PIN", true)
	if err != nil {
		return err
	}
	defer newPIN.Destroy()
	p.tpm.Release()
	if err := changePIN(t, c, oldPIN.Bytes(), newPIN.Bytes()); err != nil {
		return p.pinFailure(who, err)
	}
	if c.unblock && t.NoPIN {
		a.note("Token %s needs the user PIN from now on; a copy of its files made before still opens without one", printable(t.Label))
		return nil
	}
	a.note("The %s PIN of token %s is set; a copy of its files made before still opens with the PIN of then", target, printable(t.Label))
	return nil
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
	_, user := c.authority()
	// C_SetPIN changes the PIN of who is logged in, or the user's.
	if user == p11.CKU_SO {
		if err := m.Login(s, user, old); err != nil {
			return err
		}
	}
	if c.unblock {
		return m.InitPIN(s, new)
	}
	return m.SetPIN(s, old, new)
}
