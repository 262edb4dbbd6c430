package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

func (a *app) lockoutCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "lockout",
		Short: "Show the TPM's counter of wrong PINs, and reset it",
		Long: `The TPM counts wrong PINs, of all tokens and of all other users together, and
refuses every PIN for some time when there are too many.`,
	},
		a.lockoutShow(),
		a.lockoutReset(),
	)
}

func (a *app) lockoutShow() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show the counter of wrong PINs, and how long it lasts",
		Example: "  icn-p11 lockout show",
		Args:    noArgs,
		RunE: a.does(func(*cobra.Command, []string) error {
			p, err := a.open()
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			l, err := p.lockout()
			if err != nil {
				return err
			}
			if asJSON {
				return a.json(lockoutOf(l))
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintf(w, "Wrong PINs\t%d of %d\n", l.Counter, l.Max)
			fmt.Fprintf(w, "State\t%s\n", lockoutText(l))
			fmt.Fprintf(w, "Forgiven\t%s\n", forgiven(l))
			if l.Counter > 0 && l.Interval > 0 {
				fmt.Fprintf(w, "Next\tin at most %s; all in at most %s\n", span(l.Interval), span(time.Duration(l.Counter)*l.Interval))
			}
			fmt.Fprintf(w, "Reset\t%s\n", map[bool]string{
				true:  "needs the lockout password; a wrong one keeps it from that for " + span(l.Recovery),
				false: "needs no password: none is set",
			}[l.Password])
			return w.Flush()
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// lockout reads the TPM's counter, and leaves the TPM.
func (p *place) lockout() (sealstore.Lockout, error) {
	_, end := p.progress(atTPM)
	defer end()
	defer p.tpm.Release()
	l, err := p.tpm.Lockout()
	return l, explain(err)
}

// resetResult is what lockout reset prints.
type resetResult struct {
	Forgotten uint32 `json:"forgotten"`
	Password  bool   `json:"lockout_password_set"`
	DryRun    bool   `json:"dry_run,omitempty"`
}

func (a *app) lockoutReset() *cobra.Command {
	var c change
	password := &passwordFlag{name: "lockout-auth-source", what: "lockout password", of: "the TPM's lockout password"}
	cmd := &cobra.Command{
		Use:   "reset",
		Short: "Have the TPM forget the wrong PINs",
		Example: `  icn-p11 lockout reset
  icn-p11 lockout reset --lockout-auth-source file:lockout-password`,
		Args: noArgs,
		RunE: a.does(func(*cobra.Command, []string) error {
			p, err := a.open()
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			l, err := p.lockout()
			if err != nil {
				return err
			}
			if !c.dryRun {
				if err := p.resetLockout(password, l.Password); err != nil {
					return err
				}
			}
			return a.outcome(c, resetResult{l.Counter, l.Password, c.dryRun}, "The TPM has forgotten %s", count(int(l.Counter), "wrong PIN"))
		}),
	}
	password.on(cmd)
	c.flags(cmd, false, false, false)
	return cmd
}

// lockoutText tells whether the TPM takes PINs.
func lockoutText(l sealstore.Lockout) string {
	if l.InLockout {
		return "locked: every PIN is refused"
	}
	return "open"
}

func (p *place) resetLockout(password *passwordFlag, wanted bool) error {
	b, err := password.read(wanted)
	if err != nil {
		return err
	}
	defer b.Destroy()
	_, end := p.progress(atTPM)
	defer end()
	return p.tpm.ResetLockout(b.Bytes())
}

func lockoutOf(l sealstore.Lockout) lockoutState {
	return lockoutState{l.Counter, l.Max, uint64(l.Interval.Seconds()), uint64(l.Recovery.Seconds()), l.InLockout, l.Password}
}
