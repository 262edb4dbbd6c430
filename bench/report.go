package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Between these lines of the page stands what report writes.
const (
	beginMark = "<!-- bench report: begin -->\n"
	endMark   = "<!-- bench report: end -->\n"
)

// report writes the tables into the page, and the chart beside it.
func report(r *Results, page, chart string) error {
	old, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	head, rest, ok := bytes.Cut(old, []byte(beginMark))
	_, tail, ok2 := bytes.Cut(rest, []byte(endMark))
	if !ok || !ok2 {
		return fmt.Errorf("%s: the lines between which the report goes are missing", page)
	}
	text := slices.Concat(head, []byte(beginMark+r.tables()+endMark), tail)
	if err := os.WriteFile(page, text, 0o644); err != nil {
		return err
	}
	return os.WriteFile(chart, []byte(r.chart()), 0o644)
}

// names of the operations, in the order of the table.
var operations = []struct{ name, what string }{
	{"sign-32", "sign 32 bytes"},
	{"sign-1MiB", "sign 1 MiB"},
	{"verify-32", "verify 32 bytes"},
	{"digest-32", "SHA-256 of 32 bytes"},
	{"digest-1MiB", "SHA-256 of 1 MiB"},
	{"random-32", "32 random bytes"},
	{"session", "open and close a session"},
	{"attributes", "read 5 attributes"},
	{"find", "search in a small token"},
	{"login", "log in"},
	{"generate-session", "generate a session key pair"},
	{"generate-token", "generate a token key pair"},
	{"create", "create an object"},
}

var columns = []struct{ subject, head string }{
	{unlocked, "icn-p11, unlocked"},
	{sealed, "icn-p11, unsealed each time"},
	{icnP256, "icn-p11 P-256"},
	{softEd, "SoftHSM2 Ed25519"},
	{softP256, "SoftHSM2 P-256"},
	{tpm2P256, "tpm2-pkcs11 P-256"},
}

// tables is the measured part of the page.
func (r *Results) tables() string {
	var w strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&w, format, args...) }
	p("\n%s, %d cores, Linux %s; the load average was %s before and %s after. %s, SoftHSM2 %s, tpm2-pkcs11 %s, swtpm %s, OpenSSL %s.\n",
		r.Machine.CPU, r.Machine.Cores, r.Machine.Kernel, r.Machine.Load[0], r.Machine.Load[1], "Go "+strings.TrimPrefix(r.Versions["Go"], "go"),
		r.Versions["softhsm2"], r.Versions["libtpm2-pkcs11-1"], r.Versions["swtpm"], r.Versions["openssl"])
	if before, err := strconv.ParseFloat(r.Machine.Load[0], 64); err == nil && before > float64(r.Machine.Cores) {
		p("\n**The machine was busy with other work**: what waits for another process, another thread or the disk says little, and so do\n" +
			"99th percentiles and the figures of several threads; ratios of what only computes can be trusted.\n")
	}
	if r.Quick {
		p("\n**A quick run: the figures mean little.**\n")
	}

	p("\n### Where it must stand\n\n| | measured | wanted | |\n|---|---|---|---|\n")
	for _, t := range r.targets() {
		p("| %s | %s | %s | %s |\n", t.What, t.Is, t.Want, t.Verdict)
	}

	if m := r.Machine.Pauses; m.Every > 0 {
		p("\nA loop in C that only reads the clock is interrupted every %s on this machine, for %s (median; interruptions of more than 5 µs).\n"+
			"So is one of %.0f bare signatures: a 99th percentile of theirs does without only where that is more than 100.\n",
			duration(m.Every), duration(m.Median), m.Every/r.get("sign-32", bare, p50))
	}

	cols := columns[:0:0]
	for _, c := range columns {
		if r.get("sign-32", c.subject, p50) > 0 {
			cols = append(cols, c)
		}
	}
	p("\n### One operation\n\nMedian, or the code with which a module refuses; a dash is where nothing was asked of it.\n\n| |")
	for _, c := range cols {
		p(" %s |", c.head)
	}
	p(" reference |\n|---|%s\n", strings.Repeat("---|", len(cols)+1))
	for _, op := range operations {
		p("| %s |", op.what)
		for _, c := range cols {
			if rv := r.refusal(op.name, c.subject); rv != 0 {
				p(" RV 0x%x |", rv)
			} else {
				p(" %s |", duration(r.get(op.name, c.subject, p50)))
			}
		}
		var beside []string
		for _, x := range references {
			if v := r.get(op.name, x.name, p50); v > 0 {
				beside = append(beside, duration(v)+" "+x.name)
			}
		}
		if op.name == "sign-32" && len(r.OpenSSL) > 0 {
			beside = append(beside, duration(median(r.OpenSSL))+" openssl speed")
		}
		p(" %s |\n", strings.Join(beside, ", "))
	}

	p("\n### Signatures of several threads and processes\n\nA second, of all together; 99th percentiles of single ones.\n\n| | 1 thread | p99 | 2 threads | p99 | 8 threads | p99 | 8 processes | 1 MiB, 1 thread | 2 | 8 |\n|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, s := range []string{unlocked, sealed, shared, icnP256, softEd, softP256, tpm2P256, bare} {
		if r.get("sign-32", s, rate) == 0 {
			continue
		}
		together := 0.0
		if v := r.Together[s]; len(v) > 0 {
			var f []float64
			for _, n := range v {
				f = append(f, float64(n))
			}
			together = median(f)
		}
		p("| %s |", s)
		for _, op := range []string{"sign-32", "sign-32-threads-2", "sign-32-threads-8"} {
			p(" %s | %s |", number(r.get(op, s, rate)), duration(r.get(op, s, p99)))
		}
		p(" %s | %s | %s | %s |\n", number(together),
			number(r.get("sign-1MiB", s, rate)), number(r.get("sign-1MiB-threads-2", s, rate)), number(r.get("sign-1MiB-threads-8", s, rate)))
	}

	r.starts(p)
	if len(r.Logins) > 0 {
		p("\n### Logging in\n\nThe first logins of a process; pages are those that the kernel had to provide.\n\n| login | time | pages |\n|---|---|---|\n")
		for i := range r.Logins[0] {
			var took, faults []float64
			for _, l := range r.Logins {
				took, faults = append(took, l[i].Took), append(faults, l[i].Faults)
			}
			p("| %d | %s | %.0f |\n", i+1, duration(median(took)), median(faults))
		}
	}

	p("\n### Processes that start at once\n\n16 load the module, log in, sign and verify.\n\n| | processes | failed | all done after at most | processor time of each |\n|---|---|---|---|---|\n")
	for _, s := range []string{unlocked, shared, softEd, softP256} {
		if x, ok := r.Starts[s]; ok {
			p("| %s | %d | %d | %s | %s |\n", s, x.Processes, x.Failed, duration(x.Took), duration(x.Processor/float64(x.Processes)))
		}
	}
	p("\nTo create an object takes icn-p11 %.1f fsyncs, SoftHSM2 %.1f.\n", r.Fsyncs[unlocked], r.Fsyncs[softEd])

	p("\n### Commands to the TPM\n\nOf the token whose key is unsealed for each signature, on a connection that is kept.\n\n| | commands |\n|---|---|\n")
	for _, s := range r.Commands {
		c := strings.Join(s.Commands, ", ")
		if c == "" {
			c = "none"
		}
		p("| %s | %s |\n", s.Name, c)
	}

	p("\n### Behind the C interface\n\n`go test -bench` of the packages.\n\n| package | | time | allocations |\n|---|---|---|---|\n")
	for _, g := range r.Inner {
		p("| %s | %s | %s | %.0f |\n", g.Package, g.Name, duration(g.Time), g.Allocs)
	}
	p("\n")
	return w.String()
}

// starts writes what a new process takes, in time and in memory.
func (r *Results) starts(p func(string, ...any)) {
	type figures struct {
		head  string // of a column
		of    func(Cold) float64
		write func(float64) string
	}
	times := []figures{
		{"dlopen", func(c Cold) float64 { return c.Dlopen }, duration},
		{"to C_GetSlotList", func(c Cold) float64 { return c.Ready }, duration},
		{"to the first search", func(c Cold) float64 { return c.FirstFind }, duration},
		{"search again", func(c Cold) float64 { return c.WarmFind }, duration},
		{"list all", func(c Cold) float64 { return c.FindAll }, duration},
	}
	memory := []figures{
		{"before dlopen", func(c Cold) float64 { return c.RSSBefore }, size},
		{"after dlopen", func(c Cold) float64 { return c.RSSLoaded }, size},
		{"after C_GetSlotList", func(c Cold) float64 { return c.RSSReady }, size},
		{"after the first search", func(c Cold) float64 { return c.RSSFound }, size},
	}
	table := func(columns []figures, more string, last func(n int, subject string) string) {
		p("| | objects |")
		for _, f := range columns {
			p(" %s |", f.head)
		}
		p("%s\n|---|---|%s\n", more, strings.Repeat("---|", len(columns)+strings.Count(more, "|")))
		for _, s := range []string{unlocked, alone, softEd, tpm2P256} {
			for _, n := range sizes {
				// One alone: there are too few objects for a snapshot.
				if c := len(r.Cold[coldKey(n, s)]); c == 0 || s == alone && c == 1 {
					continue
				}
				objects := "–" // which tpm2-pkcs11 is not asked for
				if s != tpm2P256 {
					objects = strconv.Itoa(n)
				}
				p("| %s | %s |", strings.TrimSuffix(s, ", unlocked"), objects)
				for _, f := range columns {
					p(" %s |", f.write(r.cold(n, s, f.of)))
				}
				p("%s\n", last(n, s))
			}
		}
	}
	p("\n### Starts and searches\n\nEach in a new process. The first search is counted from before dlopen; where there is no snapshot of many objects, the process\nwrites one meanwhile.\n\n")
	table(times, "", func(int, string) string { return "" })
	p("\nThe resident memory of these processes, and how much more it is for each 1,000 objects than with %d:\n\n", sizes[0])
	table(memory, " 1,000 objects |", func(n int, s string) string { return " " + size(1000*r.memoryOfObject(n, s)) + " |" })
}

// duration writes nanoseconds with three digits; a dash for nothing.
func duration(ns float64) string {
	switch {
	case ns <= 0:
		return "–"
	case ns < 1e3:
		return fmt.Sprintf("%.0f ns", ns)
	case ns < 1e6:
		return digits(ns/1e3) + " µs"
	case ns < 1e9:
		return digits(ns/1e6) + " ms"
	}
	return digits(ns/1e9) + " s"
}

func digits(v float64) string {
	switch {
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func number(v float64) string {
	if v <= 0 {
		return "–"
	}
	if v < 100 {
		return fmt.Sprintf("%.1f", v)
	}
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}

func size(bytes float64) string {
	if bytes <= 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f MB", bytes/1e6)
}

// chart draws the rates of signatures of 32 bytes on one thread, as bars on a
// logarithmic scale.
func (r *Results) chart() string {
	type bar struct {
		name  string
		rate  float64
		color string
	}
	var bars []bar
	for _, s := range []struct{ name, color string }{
		{bare, "#9a9a9a"}, {stdSign, "#9a9a9a"}, {unlocked, "#1b6ca8"}, {sealed, "#1b6ca8"}, {shared, "#1b6ca8"}, {icnP256, "#1b6ca8"},
		{softEd, "#c06c2b"}, {softP256, "#c06c2b"}, {tpm2P256, "#7a4a9c"},
	} {
		if t := r.get("sign-32", s.name, p50); t > 0 {
			bars = append(bars, bar{s.name, 1e9 / t, s.color})
		}
	}
	if len(r.OpenSSL) > 0 {
		bars = slices.Insert(bars, min(2, len(bars)), bar{"openssl speed ed25519", 1e9 / median(r.OpenSSL), "#9a9a9a"})
	}
	const left, width, row = 330, 420, 26
	const lowest, decades = 100.0, 3.0 // to 100,000
	x := func(v float64) float64 { return left + width*max(0, min(1, math.Log10(v/lowest)/decades)) }
	var w strings.Builder
	height := 60 + row*len(bars)
	fmt.Fprintf(&w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 %d" font-family="sans-serif" font-size="13">`+"\n", height)
	fmt.Fprintf(&w, `<rect width="860" height="%d" fill="#fff"/>`+"\n", height)
	fmt.Fprintf(&w, `<text x="10" y="20" font-weight="bold">Signatures of 32 bytes a second, one thread</text>`+"\n")
	for v := lowest; v <= lowest*1000; v *= 10 {
		fmt.Fprintf(&w, `<line x1="%.0f" y1="32" x2="%.0f" y2="%d" stroke="#ddd"/><text x="%.0f" y="%d" text-anchor="middle" fill="#555">%s</text>`+"\n",
			x(v), x(v), height-22, x(v), height-8, number(v))
	}
	for i, b := range bars {
		y := 36 + row*i
		fmt.Fprintf(&w, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.1f" height="18" fill="%s"/><text x="%.1f" y="%d">%s</text>`+"\n",
			left-8, y+14, html.EscapeString(b.name), left, y, x(b.rate)-left, b.color, x(b.rate)+6, y+14, number(b.rate))
	}
	w.WriteString("</svg>\n")
	return w.String()
}
