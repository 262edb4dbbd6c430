package main

import (
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/internal/stats"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

// figures is what has been counted of some tokens and of the TPM.
type figures struct {
	Since   *time.Time         `json:"since"` // null: nothing was counted yet
	Tokens  []tokenFigures     `json:"tokens"`
	LeftOut int                `json:"tokens_left_out"` // that cannot be used
	TPM     []operationFigures `json:"tpm_operations"`  // of all tokens together
	Lockout *lockoutState      `json:"lockout,omitempty"`
	Error   string             `json:"error,omitempty"` // why the TPM tells no lockout

	counted *stats.File
	lockout sealstore.Lockout
}

type tokenFigures struct {
	Label  string `json:"label"`
	Serial string `json:"serial"`
	stats.Token
	LastSignature *time.Time `json:"last_signature"` // null: never
	LastLogin     *time.Time `json:"last_login"`
}

type operationFigures struct {
	Operation string  `json:"operation"`
	Count     uint64  `json:"count"` // of those that succeeded, as are the times
	Errors    uint64  `json:"errors"`
	P50       float64 `json:"p50_seconds"`
	P90       float64 `json:"p90_seconds"`
	P99       float64 `json:"p99_seconds"`
	Max       float64 `json:"max_seconds"`
}

// figures reads what was counted of tokens, and asks the TPM for its lockout
// counters; tpm tells why it gave none.
func (p *place) figures(tokens []sealstore.TokenInfo) (f figures, tpm, err error) {
	f = figures{Tokens: []tokenFigures{}, TPM: []operationFigures{}}
	data, err := p.store.Statistics()
	if err != nil {
		return f, nil, err
	}
	if f.counted, err = stats.Decode(data); err != nil {
		return f, nil, fmt.Errorf("%s: %w", p.statistics(), err)
	}
	f.Since = moment(f.counted.Since)
	for _, t := range tokens {
		n := f.counted.Tokens[t.Serial]
		f.Tokens = append(f.Tokens, tokenFigures{t.Label, t.Serial, n, moment(n.LastSignature), moment(n.LastLogin)})
	}
	for _, name := range slices.Sorted(maps.Keys(f.counted.TPM)) {
		o := f.counted.TPM[name]
		at := func(part float64) float64 { return o.Percentile(part).Seconds() }
		f.TPM = append(f.TPM, operationFigures{name, o.Count(), o.Errors, at(0.5), at(0.9), at(0.99), at(1)})
	}
	if f.lockout, tpm = p.lockout(); tpm != nil {
		f.Error = tpm.Error()
		return f, tpm, nil
	}
	state := lockoutOf(f.lockout)
	f.Lockout = &state
	return f, nil, nil
}

// statistics is where the figures are.
func (p *place) statistics() string { return filepath.Join(p.cfg.SealedBlobDir, "statistics") }

func moment(seconds int64) *time.Time {
	if seconds == 0 {
		return nil
	}
	t := time.Unix(seconds, 0).UTC()
	return &t
}

func (a *app) statusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status TOKEN",
		Short: "Show what a token was used for, and how long the TPM took",
		Long: `Show how often a token has signed, was unsealed and logged in to, how many PINs were
wrong, how long the TPM takes, and its lockout counters. No PIN is needed.`,
		Example:           "  icn-p11 status node",
		Args:              oneToken,
		ValidArgsFunction: completeToken,
		RunE: a.does(func(_ *cobra.Command, args []string) error {
			p, t, err := a.openToken(args[0])
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			f, tpm, err := p.figures([]sealstore.TokenInfo{t})
			if err != nil {
				return err
			}
			if asJSON {
				err = a.json(struct {
					tokenFigures
					Since   *time.Time         `json:"since"`
					TPM     []operationFigures `json:"tpm_operations"`
					Lockout *lockoutState      `json:"lockout,omitempty"`
					Error   string             `json:"error,omitempty"`
				}{f.Tokens[0], f.Since, f.TPM, f.Lockout, f.Error})
			} else {
				err = f.print(a.out)
			}
			if err != nil {
				return err
			}
			if !p.cfg.Statistics {
				a.note("Nothing is counted under this configuration: statistics = false in %s", p.cfg.Source)
			}
			a.note("Counted in %s by the programs that the store's owner runs; one that is killed loses at most its last %v",
				p.statistics(), stats.Interval)
			return tpm
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func when(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return t.Format(time.RFC3339)
}

// print shows the figures of one token.
func (f *figures) print(out io.Writer) error {
	t := f.Tokens[0]
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "Label\t%s\n", printable(t.Label))
	fmt.Fprintf(w, "Serial number\t%s\n", t.Serial)
	fmt.Fprintf(w, "Signatures\t%d, and %d refused or failed\n", t.Signatures, t.FailedSignatures)
	fmt.Fprintf(w, "Unseals\t%d of keys\n", t.Unseals)
	fmt.Fprintf(w, "Logins\t%d of the user, %d of the SO\n", t.Logins, t.SOLogins)
	fmt.Fprintf(w, "Wrong PINs\t%d of the user, %d of the SO; %d more while the TPM took none\n", t.WrongPINs, t.WrongSOPINs, t.LockedOut)
	fmt.Fprintf(w, "PCR mismatches\t%d\n", t.PCRMismatches)
	fmt.Fprintf(w, "Kept unlocked\t%s, %d locked again\n", count(int(t.KeysUnlocked), "key"), t.KeysLocked)
	fmt.Fprintf(w, "Last signature\t%s\n", when(t.LastSignature))
	fmt.Fprintf(w, "Last login\t%s\n", when(t.LastLogin))
	fmt.Fprintf(w, "Counted since\t%s\n", when(f.Since))
	if f.Lockout == nil {
		fmt.Fprintf(w, "TPM lockout\tunknown\n")
	} else {
		fmt.Fprintf(w, "TPM lockout\t%s; %d of %d wrong tries of all its users, %s\n", lockoutText(f.lockout), f.lockout.Counter, f.lockout.Max, forgiven(f.lockout))
	}
	if err := w.Flush(); err != nil || len(f.TPM) == 0 {
		return err
	}
	w = tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\nSUCCEEDED\tFAILED\tP50\tP90\tP99\tMAX\t  OPERATION OF THE TPM, FOR ALL TOKENS")
	for _, o := range f.TPM {
		fmt.Fprintf(w, "%d\t%d\t%s\t%s\t%s\t%s\t  %s\n", o.Count, o.Errors, short(o.P50), short(o.P90), short(o.P99), short(o.Max), o.Operation)
	}
	return w.Flush()
}

// short writes a time with three digits.
func short(seconds float64) string {
	switch {
	case seconds < 1:
		return fmt.Sprintf("%.3g ms", seconds*1000)
	default:
		return fmt.Sprintf("%.3g s", seconds)
	}
}
