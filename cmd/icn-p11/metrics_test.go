package main

import (
	"fmt"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/InterCooperative-Network/icn-p11/internal/stats"
	"github.com/InterCooperative-Network/icn-p11/sealstore"
)

var (
	metricName = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)
	labelName  = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*`)
	// value is a number as Prometheus reads it.
	metricValue = regexp.MustCompile(`^([+-]?\d+(\.\d+)?(e[+-]?\d+)?|\+Inf|-Inf|NaN)$`)
)

// parsed is a line of metrics.
type parsed struct {
	name   string
	labels map[string]string
	value  float64
}

// series is what must not come twice.
func (p parsed) series(without string) string {
	l := map[string]string{}
	for k, v := range p.labels {
		if k != without {
			l[k] = v
		}
	}
	return fmt.Sprintf("%s%q", p.name, l)
}

// parseSample takes a line apart by the grammar of the text format
// (https://prometheus.io/docs/instrumenting/exposition_formats), without its
// optional blanks and timestamp.
func parseSample(line string) (p parsed, err error) {
	end := strings.IndexAny(line, "{ ")
	if end < 0 {
		return p, fmt.Errorf("no value: %q", line)
	}
	p.name, p.labels = line[:end], map[string]string{}
	rest := line[end:]
	if strings.HasPrefix(rest, "{") {
		for rest[0] != '}' {
			rest = rest[1:] // the brace or the comma
			name := labelName.FindString(rest)
			if rest = strings.TrimPrefix(rest, name); name == "" || !strings.HasPrefix(rest, `="`) {
				return p, fmt.Errorf("no label: %q", line)
			}
			rest = rest[2:]
			var v strings.Builder
			for {
				if rest == "" {
					return p, fmt.Errorf("no end of a label: %q", line)
				}
				c := rest[0]
				rest = rest[1:]
				if c == '"' {
					break
				}
				if c == '\\' {
					real, known := map[byte]byte{'\\': '\\', '"': '"', 'n': '\n'}[(rest + " ")[0]]
					if !known {
						return p, fmt.Errorf("bad escape: %q", line)
					}
					c, rest = real, rest[1:]
				}
				v.WriteByte(c)
			}
			if _, twice := p.labels[name]; twice {
				return p, fmt.Errorf("label %s twice: %q", name, line)
			}
			p.labels[name] = v.String()
			if rest == "" || rest[0] != ',' && rest[0] != '}' {
				return p, fmt.Errorf("no end of the labels: %q", line)
			}
		}
		rest = rest[1:]
	}
	text, ok := strings.CutPrefix(rest, " ")
	if !ok || !metricValue.MatchString(text) || !metricName.MatchString(p.name) {
		return p, fmt.Errorf("no value or name: %q", line)
	}
	p.value, err = strconv.ParseFloat(text, 64)
	return p, err
}

// checkMetrics is a strict reader: each family stands together behind its HELP
// and TYPE, no series comes twice, and histograms add up.
func checkMetrics(text string) (all []parsed, err error) {
	if !strings.HasSuffix(text, "\n") {
		return nil, fmt.Errorf("the last line has no end")
	}
	var family, kind string
	families, seen := map[string]bool{}, map[string]bool{}
	samples := 1
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		if help, ok := strings.CutPrefix(lines[i], "# HELP "); ok {
			name, what, _ := strings.Cut(help, " ")
			i++
			if i == len(lines) || families[name] || what == "" || samples == 0 {
				return nil, fmt.Errorf("family %s is empty, twice or not explained", name)
			}
			family, kind, families[name], samples = name, strings.TrimPrefix(lines[i], "# TYPE "+name+" "), true, 0
			if kind != "counter" && kind != "gauge" && kind != "histogram" {
				return nil, fmt.Errorf("no type: %q", lines[i])
			}
			if strings.HasSuffix(name, "_total") != (kind == "counter") {
				return nil, fmt.Errorf("%s is a %s", name, kind)
			}
			continue
		}
		p, err := parseSample(lines[i])
		if err != nil {
			return nil, err
		}
		base := p.name
		if kind == "histogram" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				base = strings.TrimSuffix(base, suffix)
			}
		}
		if base != family || kind == "histogram" && base == p.name || seen[p.series("")] || kind != "gauge" && p.value < 0 {
			return nil, fmt.Errorf("misplaced, twice or negative: %q", lines[i])
		}
		seen[p.series("")] = true
		samples++
		all = append(all, p)
	}
	if samples == 0 {
		return nil, fmt.Errorf("family %s is empty", family)
	}
	return all, checkHistograms(all)
}

// checkHistograms: buckets rise, the last is +Inf and equals _count, and each
// has a _sum.
func checkHistograms(all []parsed) error {
	type state struct {
		bound, count float64
		counted, sum bool
	}
	histograms := map[string]*state{}
	of := func(p parsed, suffix string) *state {
		p.name = strings.TrimSuffix(p.name, suffix)
		h := histograms[p.series("le")]
		if h == nil {
			h = &state{bound: math.Inf(-1)}
			histograms[p.series("le")] = h
		}
		return h
	}
	for _, p := range all {
		switch {
		case strings.HasSuffix(p.name, "_bucket"):
			h := of(p, "_bucket")
			le, err := strconv.ParseFloat(p.labels["le"], 64)
			if err != nil || le <= h.bound || p.value < h.count {
				return fmt.Errorf("a bucket does not rise: %+v", p)
			}
			h.bound, h.count = le, p.value
		case strings.HasSuffix(p.name, "_duration_seconds_sum"):
			of(p, "_sum").sum = true
		case strings.HasSuffix(p.name, "_duration_seconds_count"):
			if h := of(p, "_count"); !math.IsInf(h.bound, 1) || h.count != p.value {
				return fmt.Errorf("the buckets do not lead to %+v", p)
			} else {
				h.counted = true
			}
		}
	}
	for name, h := range histograms {
		if !h.counted || !h.sum {
			return fmt.Errorf("%s is incomplete", name)
		}
	}
	return nil
}

// sampleFigures has something of everything, and labels that need care.
func sampleFigures() *figures {
	at := time.Unix(1700000000, 0)
	f := &figures{
		Since: &at, LeftOut: 1, Lockout: &lockoutState{}, lockout: sealstore.Lockout{Counter: 2, Max: 32, Interval: 7200 * time.Second},
		counted: &stats.File{TPM: map[string]stats.Operation{
			"unsealing": {Errors: 3, Total: 2_500_000_123, Longest: 2_000_000_000, Buckets: append(make([]uint64, 20), 5, 1)},
			"slow":      {Total: 1 << 60, Longest: 1 << 60, Buckets: append(make([]uint64, len(stats.Bounds)), 1)},
			"failing":   {Errors: 1},
		}},
	}
	for i, label := range []string{"node", "a \"quoted\\\" label\nwith }, {x=\"1\"} 7", "\xff", ""} {
		f.Tokens = append(f.Tokens, tokenFigures{Label: label, Serial: fmt.Sprintf("%016x", i), Token: stats.Token{Signatures: 1 << 60, WrongPINs: 4, WrongSOPINs: 5}})
	}
	f.Tokens[0].LastSignature, f.Tokens[1].LastLogin = &at, &at
	for name, o := range f.counted.TPM {
		f.TPM = append(f.TPM, operationFigures{Operation: name, Count: o.Count(), Errors: o.Errors})
	}
	return f
}

func TestMetrics(t *testing.T) {
	for name, f := range map[string]*figures{"all": sampleFigures(), "nothing": {counted: &stats.File{}}} {
		text := string(f.prometheus())
		all, err := checkMetrics(text)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, text)
		}
		values := map[string]float64{}
		for _, p := range all {
			values[p.series("")] = p.value
		}
		want := map[string]float64{`icn_p11_tokens map[]`: 0, `icn_p11_tpm_up map[]`: 0}
		if name == "all" {
			const h, failures = "icn_p11_tpm_operation_duration_seconds", "icn_p11_tpm_operation_errors_total"
			want = map[string]float64{
				`icn_p11_tokens map[]`: 4, `icn_p11_tokens_left_out map[]`: 1, `icn_p11_tpm_up map[]`: 1,
				`icn_p11_tpm_lockout_counter map[]`: 2, `icn_p11_tpm_lockout_interval_seconds map[]`: 7200,
				h + `_bucket map["le":"0.0005" "operation":"unsealing"]`: 0, h + `_bucket map["le":"0.001" "operation":"unsealing"]`: 5,
				h + `_bucket map["le":"0.0025" "operation":"unsealing"]`: 6, h + `_bucket map["le":"+Inf" "operation":"unsealing"]`: 6,
				h + `_sum map["operation":"unsealing"]`: 2.500000123, h + `_count map["operation":"unsealing"]`: 6,
				h + `_bucket map["le":"100" "operation":"slow"]`: 0, h + `_count map["operation":"slow"]`: 1,
				failures + ` map["operation":"failing"]`:                                                  1,
				`icn_p11_last_signature_timestamp_seconds map["label":"node" "token":"0000000000000000"]`: 1700000000,
			}
			for i, label := range []string{"node", "a \"quoted\\\" label\nwith }, {x=\"1\"} 7", "\uFFFD", ""} {
				want[fmt.Sprintf(`icn_p11_signatures_total map["label":%q "token":"%016x"]`, label, i)] = 1 << 60
				want[fmt.Sprintf(`icn_p11_wrong_pins_total map["label":%q "role":"user" "token":"%016x"]`, label, i)] = 4
				want[fmt.Sprintf(`icn_p11_wrong_pins_total map["label":%q "role":"so" "token":"%016x"]`, label, i)] = 5
			}
		}
		for series, v := range want {
			series = strings.Replace(series, " map", "map", 1)
			if got, there := values[series]; !there || got != v {
				t.Errorf("%s: %s is %v (%v), not %v\n%s", name, series, got, there, v, text)
			}
		}
	}
}

// TestMetricsAreChecked: the reader that the tests trust refuses what is wrong.
func TestMetricsAreChecked(t *testing.T) {
	const head = "# HELP a_total x\n# TYPE a_total counter\n"
	const hist = "# HELP a x\n# TYPE a histogram\n"
	for _, bad := range []string{
		"a_total 1\n", head, head + "a_total 1", head + "b_total 1\n", head + "a_total x\n", head + "a_total 0x1\n", head + "a_total  1\n",
		head + "a_total 1\na_total 1\n", head + "a_total -1\n", head + "a_total{} 1 \n", head + `a_total{l="x} 1` + "\n", head + `a_total{l="\x"} 1` + "\n",
		head + `a_total{l="x"l="y"} 1` + "\n", head + `a_total{l="x",l="y"} 1` + "\n", head + `a_total{1="x"} 1` + "\n", head + "a_total 1\n" + head + "a_total 2\n",
		"# HELP a_total x\na_total 1\n", "# HELP a_total x\n# TYPE a_total gauge\na_total 1\n", "# HELP a x\n# TYPE a counter\na 1\n", head + "\na_total 1\n",
		hist + "a 1\n", hist + `a_bucket{le="1"} 1` + "\na_sum 1\na_count 1\n",
	} {
		if _, err := checkMetrics(bad); err == nil {
			t.Errorf("accepted:\n%s", bad)
		}
	}
	good := string(sampleFigures().prometheus())
	for _, change := range [][2]string{
		{`le="0.001"} 5`, `le="0.001"} 7`}, {`le="+Inf"} 6`, `le="200"} 6`}, {"_count{operation=\"unsealing\"} 6", "_count{operation=\"unsealing\"} 5"},
		{"_sum{operation=\"unsealing\"}", "_sum{operation=\"other\"}"}, {`le="0.001"`, `le="0.0005"`},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if _, err := checkMetrics(bad); err == nil || bad == good {
			t.Errorf("accepted: %s for %s", change[1], change[0])
		}
	}
}

// TestReplaceFile: the old file is there, or the new one, whole.
func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/x.prom"
	for _, text := range []string{"one\n", "two\n"} {
		if err := replaceFile(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != text {
			t.Errorf("%q, %v", b, err)
		}
	}
	if err := replaceFile(dir, nil); err == nil {
		t.Error("a directory is replaced")
	}
	if err := os.Mkdir(dir+"/taken", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := replaceFile(dir+"/taken", nil); err == nil {
		t.Error("a directory is replaced")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("%v is left, %v", left, err)
	}
}
