package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/InterCooperative-Network/icn-p11/internal/stats"
)

func (a *app) metricsCommand() *cobra.Command {
	var asJSON bool
	var out string
	cmd := &cobra.Command{
		Use:   "metrics",
		Short: "Print what was counted of all tokens, for Prometheus",
		Long: `Print what was counted of all tokens, and the TPM's lockout counters, in the text
format of Prometheus. With --out the file is replaced in one step, as the textfile
collector of node_exporter wants it. No PIN is needed.`,
		Example: "  icn-p11 metrics\n  icn-p11 metrics --out /var/lib/prometheus/node-exporter/icn_p11.prom",
		Args:    noArgs,
		RunE: a.does(func(*cobra.Command, []string) error {
			if asJSON && out != "" {
				return usage("--out is for the format of Prometheus: it excludes --json")
			}
			p, err := a.open()
			if err != nil {
				return err
			}
			defer p.tpm.Close()
			census, err := p.store.Scan()
			if err != nil {
				return err
			}
			f, tpm, err := p.figures(census.Tokens)
			if err != nil {
				return err
			}
			f.LeftOut = len(census.LeftOut)
			if tpm != nil {
				a.note("The TPM does not tell its lockout counters: %v", tpm)
			}
			switch {
			case asJSON:
				return a.json(f)
			case out != "":
				return replaceFile(out, f.prometheus())
			}
			_, err = a.out.Write(f.prometheus())
			return err
		}),
	}
	cmd.Flags().StringVar(&out, "out", "", "file to replace, instead of standard output")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// replaceFile writes a file that all may read, so that at any moment the old
// one is there or the new.
func replaceFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	// The textfile collector reads names that end with .prom.
	f, err := os.CreateTemp(dir, ".icn-p11-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// exposition writes the text format of Prometheus, version 0.0.4.
type exposition struct {
	bytes.Buffer
	head string // of the family that has no sample yet
}

// family begins the samples of a metric. One without a sample is left out.
func (e *exposition) family(name, kind, help string) {
	e.head = fmt.Sprintf("# HELP %s %s\n# TYPE %s %s\n", name, escapeHelp.Replace(help), name, kind)
}

var (
	escapeHelp  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	escapeLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

// sample writes one value; labels are names and values in turn.
func (e *exposition) sample(name string, value float64, labels ...string) {
	e.WriteString(e.head + name)
	e.head = ""
	for i := 0; i < len(labels); i += 2 {
		between := ","
		if i == 0 {
			between = "{"
		}
		fmt.Fprintf(e, `%s%s="%s"`, between, labels[i], escapeLabel.Replace(strings.ToValidUTF8(labels[i+1], "\uFFFD")))
	}
	if len(labels) > 0 {
		e.WriteString("}")
	}
	fmt.Fprintf(e, " %s\n", number(value))
}

// number writes whole numbers without an exponent.
func number(v float64) string {
	if v == float64(int64(v)) && v < 1<<53 {
		return strconv.FormatInt(int64(v), 10)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// tokenMetrics are the counters of a token: each a value, or one for each role.
var tokenMetrics = []struct {
	name, help string
	value      func(t *stats.Token) uint64
	so         func(t *stats.Token) uint64 // with the label role
}{
	{"icn_p11_signatures_total", "Signatures made.", func(t *stats.Token) uint64 { return t.Signatures }, nil},
	{"icn_p11_signature_failures_total", "Signatures refused or failed.", func(t *stats.Token) uint64 { return t.FailedSignatures }, nil},
	{"icn_p11_unseals_total", "Keys unsealed by the TPM.", func(t *stats.Token) uint64 { return t.Unseals }, nil},
	{"icn_p11_logins_total", "Logins.", func(t *stats.Token) uint64 { return t.Logins }, func(t *stats.Token) uint64 { return t.SOLogins }},
	{"icn_p11_wrong_pins_total", "Wrong PINs.", func(t *stats.Token) uint64 { return t.WrongPINs }, func(t *stats.Token) uint64 { return t.WrongSOPINs }},
	{"icn_p11_locked_out_pins_total", "PINs that the TPM did not try, being in lockout.", func(t *stats.Token) uint64 { return t.LockedOut }, nil},
	{"icn_p11_pcr_mismatches_total", "Logins and signatures that failed since the platform was in no approved state.", func(t *stats.Token) uint64 { return t.PCRMismatches }, nil},
	{"icn_p11_keys_unlocked_total", "Keys that stayed unlocked after a signature.", func(t *stats.Token) uint64 { return t.KeysUnlocked }, nil},
	{"icn_p11_keys_locked_total", "Keys that were locked after they had stayed unlocked.", func(t *stats.Token) uint64 { return t.KeysLocked }, nil},
}

// prometheus writes all figures down.
func (f *figures) prometheus() []byte {
	e := &exposition{}
	e.family("icn_p11_build_info", "gauge", "The version of icn-p11 that wrote this.")
	e.sample("icn_p11_build_info", 1, "version", version)
	e.family("icn_p11_tokens", "gauge", "Tokens that can be used.")
	e.sample("icn_p11_tokens", float64(len(f.Tokens)))
	e.family("icn_p11_tokens_left_out", "gauge", "Tokens that are damaged or cannot be read.")
	e.sample("icn_p11_tokens_left_out", float64(f.LeftOut))
	for _, m := range tokenMetrics {
		e.family(m.name, "counter", m.help)
		for i := range f.Tokens {
			t := &f.Tokens[i]
			labels := []string{"token", t.Serial, "label", t.Label}
			if m.so != nil {
				e.sample(m.name, float64(m.so(&t.Token)), append(labels, "role", "so")...)
				labels = append(labels, "role", "user")
			}
			e.sample(m.name, float64(m.value(&t.Token)), labels...)
		}
	}
	f.times(e)
	f.operations(e)
	f.dictionaryAttack(e)
	return e.Bytes()
}

// times are the moments of the last uses, missing where there was none.
func (f *figures) times(e *exposition) {
	last := func(name, help string, of func(t *tokenFigures) *time.Time) {
		e.family(name, "gauge", help)
		for i := range f.Tokens {
			if at := of(&f.Tokens[i]); at != nil {
				e.sample(name, float64(at.Unix()), "token", f.Tokens[i].Serial, "label", f.Tokens[i].Label)
			}
		}
	}
	last("icn_p11_last_signature_timestamp_seconds", "When the token signed last.", func(t *tokenFigures) *time.Time { return t.LastSignature })
	last("icn_p11_last_login_timestamp_seconds", "When somebody logged in last.", func(t *tokenFigures) *time.Time { return t.LastLogin })
	e.family("icn_p11_statistics_start_timestamp_seconds", "gauge", "When counting began.")
	if f.Since != nil {
		e.sample("icn_p11_statistics_start_timestamp_seconds", float64(f.Since.Unix()))
	}
}

// operations are the times of the TPM.
func (f *figures) operations(e *exposition) {
	const times, failures = "icn_p11_tpm_operation_duration_seconds", "icn_p11_tpm_operation_errors_total"
	e.family(times, "histogram", "Time of TPM operations that succeeded.")
	for _, o := range f.TPM {
		counted := f.counted.TPM[o.Operation]
		var n uint64
		for i, bound := range stats.Bounds {
			if i < len(counted.Buckets) {
				n += counted.Buckets[i]
			}
			// 1, 2.5 and 5 of each power of ten.
			if i%10 == 0 || i%10 == 4 || i%10 == 7 {
				e.sample(times+"_bucket", float64(n), "operation", o.Operation, "le", number(bound.Seconds()))
			}
		}
		e.sample(times+"_bucket", float64(o.Count), "operation", o.Operation, "le", "+Inf")
		e.sample(times+"_sum", float64(counted.Total)/1e9, "operation", o.Operation)
		e.sample(times+"_count", float64(o.Count), "operation", o.Operation)
	}
	e.family(failures, "counter", "TPM operations that failed, a wrong PIN among the causes.")
	for _, o := range f.TPM {
		e.sample(failures, float64(o.Errors), "operation", o.Operation)
	}
}

// dictionaryAttack is what the TPM says at this moment.
func (f *figures) dictionaryAttack(e *exposition) {
	truth := map[bool]float64{true: 1}
	e.family("icn_p11_tpm_up", "gauge", "Whether the TPM answers.")
	e.sample("icn_p11_tpm_up", truth[f.Lockout != nil])
	if f.Lockout == nil {
		return
	}
	for _, m := range []struct {
		name, help string
		value      float64
	}{
		{"icn_p11_tpm_lockout_counter", "Wrong tries that the TPM remembers, of all its users.", float64(f.lockout.Counter)},
		{"icn_p11_tpm_lockout_max", "Wrong tries at which the TPM takes no PIN any more.", float64(f.lockout.Max)},
		{"icn_p11_tpm_lockout_interval_seconds", "Time after which the TPM forgives one wrong try.", f.lockout.Interval.Seconds()},
		{"icn_p11_tpm_locked_out", "Whether the TPM refuses every PIN.", truth[f.lockout.InLockout]},
	} {
		e.family(m.name, "gauge", m.help)
		e.sample(m.name, m.value)
	}
}
