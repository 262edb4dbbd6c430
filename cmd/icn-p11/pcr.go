package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/internal/bootlog"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// pcrFlags are what the verbs of pcr take.
type pcrFlags struct {
	change
	eventLog string
	spec     sealstore.BindingSpec
	predict  []string
	force    bool
}

func (a *app) pcrCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "pcr",
		Short: "Bind a token to the state of the platform, and keep it bound through updates",
		Long: `A bound token opens only while PCRs of the TPM have values that were approved:
with the firmware, boot loader and settings that they measure. The SO approves
other values.`,
	},
		a.pcrShow(),
		a.pcrBind(),
		a.pcrUnbind(),
		a.pcrRebind(),
		a.pcrConfirm(),
	)
}

// pcrVerb makes cmd a verb of pcr.
func (a *app) pcrVerb(cmd *cobra.Command, o *pcrFlags, run func(*place, sealstore.TokenInfo, pcrFlags) error) *cobra.Command {
	cmd.Use += " TOKEN"
	cmd.Args = oneToken
	cmd.ValidArgsFunction = completeToken
	cmd.RunE = a.does(func(_ *cobra.Command, args []string) error {
		p, t, err := a.openToken(args[0])
		if err != nil {
			return err
		}
		defer p.tpm.Close()
		return run(p, t, *o)
	})
	return cmd
}

func (o *pcrFlags) eventLogFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.eventLog, "event-log", bootlog.Path, "the firmware's event log")
}

func (a *app) pcrShow() *cobra.Command {
	o := &pcrFlags{}
	cmd := a.pcrVerb(&cobra.Command{
		Use:   "show",
		Short: "Show what a token is bound to, and what has changed",
		Long: `Show the PCRs that a token is bound to, with the values that open it and those of
now. Where the firmware's event log can be read (as root), and was when the token
was bound, it tells what was measured differently. Needs no PIN.`,
		Example: "  icn-p11 pcr show node",
	}, o, a.showBinding)
	o.eventLogFlag(cmd)
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func (a *app) pcrBind() *cobra.Command {
	o := &pcrFlags{}
	cmd := a.pcrVerb(&cobra.Command{
		Use:   "bind",
		Short: "Bind a token to PCRs as they are now",
		Long: `Bind a token, and all its keys, to the values that the PCRs have now. Needs the SO
PIN, and the user PIN where one is set. An interrupted run leaves every key
usable; run it again.`,
		Example: `  icn-p11 pcr bind node
  icn-p11 pcr bind node --pcrs 0,7 --pcr-bank sha384`,
	}, o, a.bind)
	f := cmd.Flags()
	f.IntSliceVar(&o.spec.PCRs, "pcrs", nil, "numbers of the PCRs (default: pcrs of the configuration)")
	f.StringVar(&o.spec.Bank, "pcr-bank", "", "hash algorithm of the bank (default: pcr_bank of the configuration)")
	noCompletion(cmd, "pcrs")
	completeBank(cmd)
	o.eventLogFlag(cmd)
	o.flags(cmd, true, true, false)
	return cmd
}

// completeBank offers the banks that a TPM may have.
func completeBank(cmd *cobra.Command) {
	cmd.RegisterFlagCompletionFunc("pcr-bank", cobra.FixedCompletions([]cobra.Completion{"sha256", "sha384", "sha512", "sha1"}, cobra.ShellCompDirectiveNoFileComp))
}

func (a *app) pcrUnbind() *cobra.Command {
	o := &pcrFlags{}
	cmd := a.pcrVerb(&cobra.Command{
		Use:   "unbind",
		Short: "Take a token's binding away",
		Long: `Make a token, and all its keys, independent of PCRs. Needs the SO PIN, and the user
PIN where one is set, and that the token opens at present. An interrupted run
leaves every key usable; run it again.`,
		Example: "  icn-p11 pcr unbind node",
	}, o, a.unbind)
	cmd.Flags().BoolVar(&o.force, "force", false, "also where the token needs no PIN")
	o.flags(cmd, true, true, false)
	return cmd
}

func (a *app) pcrRebind() *cobra.Command {
	o := &pcrFlags{}
	cmd := a.pcrVerb(&cobra.Command{
		Use:   "rebind",
		Short: "Approve the PCR values of now, and predicted ones",
		Long: `Approve the values that the PCRs have now instead of those before: after an update
of firmware or boot loader. With --predict, before the update, approve the state
with those values as well; after it "pcr confirm" withdraws the old one.
The SO PIN is enough. One file is replaced, whatever the number of keys.`,
		Example: `  icn-p11 pcr rebind node
  icn-p11 pcr rebind node --predict 7=65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068`,
	}, o, a.rebind)
	cmd.Flags().StringArrayVar(&o.predict, "predict", nil, "a value that a PCR will have, as N=HEX; for several PCRs several times")
	noCompletion(cmd, "predict")
	o.eventLogFlag(cmd)
	o.flags(cmd, true, false, false)
	return cmd
}

func (a *app) pcrConfirm() *cobra.Command {
	o := &pcrFlags{}
	cmd := a.pcrVerb(&cobra.Command{
		Use:   "confirm",
		Short: "Withdraw every approved state but the present one",
		Long: `After an update that "pcr rebind --predict" has announced: withdraw the approval of
the state before it. The SO PIN is enough.`,
		Example: "  icn-p11 pcr confirm node",
	}, o, a.confirmBinding)
	o.flags(cmd, true, false, false)
	return cmd
}

// bindingResult is what the verbs that change a binding print.
type bindingResult struct {
	Serial    string `json:"serial"`
	Label     string `json:"label"`
	Bound     bool   `json:"bound"`
	Bank      string `json:"pcr_bank,omitempty"`
	PCRs      []int  `json:"pcrs,omitempty"`
	Approvals int    `json:"approved_states"`     // in how many the token opens
	EventLog  string `json:"event_log,omitempty"` // why it is not kept
	DryRun    bool   `json:"dry_run,omitempty"`
}

// rebinding is one change of a binding.
type rebinding struct {
	userPIN bool // is needed, where one is set
	// check tells what is wrong with the change before a PIN is asked for; b is
	// the binding that there is, nil for none, now the values of its PCRs.
	check func(b *sealstore.Binding, now [][]byte) error
	do    func(tok *sealstore.Token, user, so []byte) error
}

// changeBinding makes a change of a token's binding, or rehearses it.
func (p *place) changeBinding(t sealstore.TokenInfo, c change, r rebinding) error {
	if c.dryRun {
		if err := p.changeable(t, sealstore.SO); err != nil {
			return err
		}
	}
	tok, err := p.store.Token(t.Serial)
	if err != nil {
		return err
	}
	// Nobody should type PINs to hear that the TPM is missing, or that nothing
	// is bound.
	if err := p.checkBinding(tok, r); err != nil || c.dryRun {
		return p.bindingFailure(t, err)
	}
	return c.withPINs(t.UserPIN && r.userPIN, false, func(user, so []byte) error {
		return p.bindingFailure(t, r.do(tok, user, so))
	})
}

func (p *place) checkBinding(tok *sealstore.Token, r rebinding) error {
	_, end := p.progress(atTPM)
	defer end()
	defer p.tpm.Release()
	if _, err := p.tpm.Parent(); err != nil {
		return err
	}
	b, now, err := tok.Binding()
	if err != nil {
		return err
	}
	return r.check(b, now)
}

func isBound(b *sealstore.Binding, _ [][]byte) error {
	if b == nil {
		return sealstore.ErrUnbound
	}
	return nil
}

func isOpen(b *sealstore.Binding, now [][]byte) error {
	if err := isBound(b, now); err != nil || b.Open(now) {
		return err
	}
	return b.Mismatch(now)
}

func (a *app) bind(p *place, t sealstore.TokenInfo, o pcrFlags) error {
	if o.spec.PCRs == nil {
		o.spec.PCRs = p.cfg.PCRs
	}
	if o.spec.Bank == "" {
		o.spec.Bank = p.cfg.PCRBank
	}
	if err := o.spec.Check(); err != nil {
		return usageError{err}
	}
	r := bindingResult{Serial: t.Serial, Label: t.Label, Bound: true, Bank: o.spec.Bank,
		PCRs: slices.Sorted(slices.Values(o.spec.PCRs)), Approvals: 1, DryRun: o.dryRun}
	err := p.changeBinding(t, o.change, rebinding{
		userPIN: true,
		check: func(*sealstore.Binding, [][]byte) error {
			_, err := p.tpm.PCRs(r.Bank, r.PCRs)
			return err
		},
		do: func(tok *sealstore.Token, user, so []byte) error {
			step, end := p.progress("Binding")
			defer end()
			if err := tok.Bind(user, so, o.spec, step); err != nil {
				return err
			}
			r.EventLog = a.keepBootLog(tok, o.eventLog)
			return nil
		},
	})
	if err != nil {
		return err
	}
	return a.outcome(o.change, r, "Token %s is bound to PCRs %s of the %s bank, as they are now", printable(t.Label), numbers(r.PCRs), r.Bank)
}

func (a *app) unbind(p *place, t sealstore.TokenInfo, o pcrFlags) error {
	if t.NoPIN && !o.force {
		return fmt.Errorf("token %s needs no PIN: without its binding, whoever starts this machine with any system can sign; "+
			"give it a PIN (icn-p11 pin %s --unblock), or insist with --force", printable(t.Label), t.Serial)
	}
	err := p.changeBinding(t, o.change, rebinding{
		userPIN: true,
		check:   isOpen,
		do: func(tok *sealstore.Token, user, so []byte) error {
			step, end := p.progress("Unbinding")
			defer end()
			return tok.Unbind(user, so, step)
		},
	})
	if err != nil {
		return err
	}
	return a.outcome(o.change, bindingResult{Serial: t.Serial, Label: t.Label, DryRun: o.dryRun}, "Token %s is not bound to PCRs any more", printable(t.Label))
}

func (a *app) rebind(p *place, t sealstore.TokenInfo, o pcrFlags) error {
	predicted, err := pcrValues("--predict", o.predict)
	if err != nil {
		return err
	}
	r := bindingResult{Serial: t.Serial, Label: t.Label, Bound: true, Approvals: 1, DryRun: o.dryRun}
	err = p.changeBinding(t, o.change, rebinding{
		check: func(b *sealstore.Binding, now [][]byte) error {
			if err := isBound(b, now); err != nil {
				return err
			}
			r.Bank, r.PCRs = b.Bank, b.PCRs
			if len(predicted) == 0 {
				return nil
			}
			r.Approvals = 2
			_, err := b.Predict(now, predicted)
			return err
		},
		do: func(tok *sealstore.Token, _, so []byte) error {
			_, end := p.progress(atTPM)
			defer end()
			if err := tok.Rebind(so, predicted); err != nil {
				return err
			}
			r.EventLog = a.keepBootLog(tok, o.eventLog)
			return nil
		},
	})
	if err != nil {
		return err
	}
	if len(predicted) > 0 {
		return a.outcome(o.change, r, "Token %s opens now and in the predicted state; after the update: icn-p11 pcr confirm %s", printable(t.Label), t.Serial)
	}
	return a.outcome(o.change, r, "Token %s is bound to its PCRs as they are now", printable(t.Label))
}

func (a *app) confirmBinding(p *place, t sealstore.TokenInfo, o pcrFlags) error {
	r := bindingResult{Serial: t.Serial, Label: t.Label, Bound: true, Approvals: 1, DryRun: o.dryRun}
	err := p.changeBinding(t, o.change, rebinding{
		check: func(b *sealstore.Binding, now [][]byte) error {
			if b != nil {
				r.Bank, r.PCRs = b.Bank, b.PCRs
			}
			return isOpen(b, now)
		},
		do: func(tok *sealstore.Token, _, so []byte) error {
			_, end := p.progress(atTPM)
			defer end()
			return tok.ConfirmBinding(so)
		},
	})
	if err != nil {
		return err
	}
	return a.outcome(o.change, r, "Token %s opens in the present state alone", printable(t.Label))
}

// pcrValues reads N=HEX, as a flag is given it.
func pcrValues(flag string, args []string) (map[int][]byte, error) {
	out := map[int][]byte{}
	for _, s := range args {
		pcr, value, ok := strings.Cut(s, "=")
		n, err := strconv.Atoi(pcr)
		v, herr := hex.DecodeString(value)
		if !ok || err != nil || herr != nil || len(v) == 0 {
			return nil, usage("%s %s: N=HEX is expected, as in 7=65ca…", flag, s)
		}
		if out[n] != nil {
			return nil, usage("%s: PCR %d is given twice", flag, n)
		}
		out[n] = v
	}
	return out, nil
}

// bindingFailure explains why a binding could not be changed.
func (p *place) bindingFailure(t sealstore.TokenInfo, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sealstore.ErrAuth) && strings.Contains(err.Error(), "user PIN"):
		return p.pinFailure("user", err)
	case errors.Is(err, sealstore.ErrAuth):
		return p.pinFailure("SO", err)
	case errors.Is(err, sealstore.ErrUnbound):
		return fmt.Errorf("%w; \"icn-p11 pcr bind %s\" binds it", sealstore.ErrUnbound, t.Serial)
	}
	return explain(err)
}

// keepBootLog keeps the event log beside the token, to compare a later boot
// with it, or tells why not. It only informs, so that without one everything
// else works.
func (a *app) keepBootLog(tok *sealstore.Token, path string) (why string) {
	data, _, err := readBootLog(path)
	if err == nil {
		err = tok.SaveBootLog(data)
	}
	if err == nil {
		return ""
	}
	a.note("The firmware's event log is not kept, so that later changes will not be explained: %v", err)
	return err.Error()
}

// readBootLog reads an event log, as it stands in the file and taken apart.
func readBootLog(path string) (data []byte, log *bootlog.Log, err error) {
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, nil, fmt.Errorf("%s: permission denied: run this as root", path)
	case err != nil:
		return nil, nil, err
	}
	defer f.Close()
	if data, err = io.ReadAll(io.LimitReader(f, bootlog.Max+1)); err == nil {
		log, err = bootlog.Parse(data)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, log, nil
}

// bindingState is what pcr show tells.
type bindingState struct {
	Bound    bool       `json:"bound"`
	Bank     string     `json:"pcr_bank,omitempty"`
	Open     bool       `json:"open"`
	Unbound  int        `json:"unbound_keys"`
	PCRs     []pcrState `json:"pcrs,omitempty"`
	EventLog string     `json:"event_log,omitempty"` // why it does not explain a change
}

type pcrState struct {
	PCR      int      `json:"pcr"`
	Now      string   `json:"now"`
	Approved []string `json:"approved"` // one for each approved state
	Changed  bool     `json:"changed"`
	Gone     []string `json:"events_gone,omitempty"`
	Added    []string `json:"events_added,omitempty"`
}

// binding finds out what a token is bound to, and what has changed.
func (p *place) binding(t sealstore.TokenInfo, eventLog string) (s bindingState, err error) {
	tok, err := p.store.Token(t.Serial)
	if err != nil {
		return s, err
	}
	b, now, err := tok.Binding()
	if err != nil || b == nil {
		return bindingState{Open: true}, err
	}
	s = bindingState{Bound: true, Bank: b.Bank, Open: b.Open(now)}
	if s.Unbound, err = tok.Unbound(); err != nil {
		return s, err
	}
	changed := map[int]sealstore.PCRChange{}
	for _, c := range b.Changes(now) {
		changed[c.PCR] = c
	}
	for i, n := range b.PCRs {
		r := pcrState{PCR: n, Now: hex.EncodeToString(now[i])}
		for _, a := range b.Approvals {
			r.Approved = append(r.Approved, hex.EncodeToString(a.Values[i]))
		}
		_, r.Changed = changed[n]
		s.PCRs = append(s.PCRs, r)
	}
	if !s.Open {
		if err := s.explain(tok, b, now, eventLog); err != nil {
			s.EventLog = err.Error()
		}
	}
	return s, nil
}

// explain compares the event log of now with that of the binding.
func (s *bindingState) explain(tok *sealstore.Token, b *sealstore.Binding, now [][]byte, eventLog string) error {
	_, new, err := readBootLog(eventLog)
	if err != nil {
		return err
	}
	if err := new.Check(b.Bank, b.PCRs, now); err != nil {
		return err
	}
	data, err := tok.BootLog()
	if errors.Is(err, sealstore.ErrNotFound) {
		return errors.New("none was kept when the token was bound")
	}
	if err != nil {
		return err
	}
	old, err := bootlog.Parse(data)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(b.Approvals, func(a sealstore.Approval) bool { return old.Check(b.Bank, b.PCRs, a.Values) == nil }) {
		return errors.New("the one that was kept does not lead to the approved values")
	}
	for i := range s.PCRs {
		if r := &s.PCRs[i]; r.Changed {
			r.Gone, r.Added = bootlog.Diff(old, new, b.Bank, r.PCR)
		}
	}
	return nil
}

func (a *app) showBinding(p *place, t sealstore.TokenInfo, o pcrFlags) error {
	_, end := p.progress(atTPM)
	s, err := p.binding(t, o.eventLog)
	end()
	if err != nil {
		return explain(err)
	}
	if o.json {
		return a.json(s)
	}
	return s.print(a.out)
}

func (s *bindingState) print(out io.Writer) error {
	if !s.Bound {
		_, err := fmt.Fprintln(out, "Not bound to PCRs")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "Bank\t%s\n", s.Bank)
	fmt.Fprintf(w, "Opens now\t%s\n", map[bool]string{true: "yes", false: "no"}[s.Open])
	if s.Unbound > 0 {
		fmt.Fprintf(w, "Keys not bound\t%d, left by an interrupted change: bind or unbind again\n", s.Unbound)
	}
	for _, r := range s.PCRs {
		mark := ""
		if r.Changed {
			mark = "  CHANGED"
		}
		fmt.Fprintf(w, "PCR %d\t%s%s\n", r.PCR, r.Now, mark)
		for _, v := range slices.Compact(slices.Clone(r.Approved)) {
			fmt.Fprintf(w, "  approved\t%s\n", v)
		}
		for _, e := range r.Gone {
			fmt.Fprintf(w, "  not measured any more\t%s\n", e)
		}
		for _, e := range r.Added {
			fmt.Fprintf(w, "  measured now\t%s\n", e)
		}
	}
	if s.EventLog != "" {
		fmt.Fprintf(w, "Event log\t%s\n", s.EventLog)
	}
	return w.Flush()
}

func numbers(n []int) string {
	s := make([]string, len(n))
	for i, k := range n {
		s[i] = strconv.Itoa(k)
	}
	return strings.Join(s, ", ")
}
