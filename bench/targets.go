package main

import (
	"fmt"
	"strings"
)

// Target is where a figure must stand.
type Target struct {
	What    string
	Is      string // with its unit
	Want    string
	Value   float64
	Limit   float64
	Verdict string // met, missed or not measured
}

func (t Target) String() string {
	return fmt.Sprintf("%-12s %s: %s (%s)", t.Verdict, t.What, t.Is, t.Want)
}

// most and least make targets of a value with a unit. A value of 0 was not
// measured.
func most(what string, value, limit float64, format string) Target {
	return judge(what, value, limit, format, "≤ ", value <= limit)
}

func least(what string, value, limit float64, format string) Target {
	return judge(what, value, limit, format, "≥ ", value >= limit)
}

func judge(what string, value, limit float64, format, sign string, met bool) Target {
	t := Target{what, fmt.Sprintf(format, value), sign + fmt.Sprintf(format, limit), value, limit, "missed"}
	switch {
	case value == 0:
		t.Is, t.Verdict = "–", "not measured"
	case met:
		t.Verdict = "met"
	}
	return t
}

// none makes a target of a number that must be 0.
func none(what, is string, value float64, measured bool) Target {
	t := Target{what, is, "0", value, 0, "missed"}
	switch {
	case !measured:
		t.Is, t.Verdict = "–", "not measured"
	case value == 0:
		t.Verdict = "met"
	}
	return t
}

// targets compares a run with what is asked of the module.
func (r *Results) targets() []Target {
	const times, ms, mb = "%.2f ×", "%.2f ms", "%.1f MB"
	between := func(op, a, b string) float64 { return ratio(r.rounds(op, a, p50), r.rounds(op, b, p50)) }
	rates := func(op, a, b string) float64 { return ratio(r.rounds(op, a, rate), r.rounds(op, b, rate)) }
	threads := func(s string) float64 {
		return ratio(r.rounds("sign-32-threads-2", s, rate), r.rounds("sign-32", s, rate))
	}
	tail := func(s string) float64 { return ratio(r.rounds("sign-32", s, p99), r.rounds("sign-32", s, p50)) }
	n := sizes[len(sizes)-1]
	first := func(c Cold) float64 { return c.FirstFind }
	ready := r.cold(sizes[0], unlocked, func(c Cold) float64 { return c.Ready })
	memory := r.cold(sizes[0], unlocked, func(c Cold) float64 { return c.RSSReady - c.RSSBefore })
	sooner := func(subject string) float64 {
		if t := r.cold(n, subject, first); t > 0 {
			return r.cold(n, softEd, first) / t
		}
		return 0
	}
	create, fsyncs := r.get("create", unlocked, p50), r.get("create", twoFsyncs, p50)
	if fsyncs == 0 {
		create = 0
	}
	list := []Target{
		most("signature of 32 bytes, unlocked: of a bare edwards25519 signature", between("sign-32", unlocked, bare), 1.10, times),
		least("its rate: of SoftHSM2's with Ed25519", rates("sign-32", unlocked, softEd), 4, times),
		least(fmt.Sprintf("its rate on two threads: of that on one (the bare signature: %.2f ×)", threads(bare)), threads(unlocked), 1.9, times),
		most(fmt.Sprintf("its 99th percentile: of its median (the bare signature: %.2f ×)", tail(bare)), tail(unlocked), 3, times),
		most("signature, unsealed each time: of a TPM2_Unseal and a bare signature", between("sign-32", sealed, unsealSign), 1.5, times),
		least("its rate: of tpm2-pkcs11's with P-256", rates("sign-32", sealed, tpm2P256), 15, times),
		most("verification: of crypto/ed25519.Verify", between("verify-32", unlocked, stdVerify), 1.10, times),
		most("dlopen, C_Initialize and C_GetSlotList", ready/1e6, 15, ms),
		most("memory of that", memory/1e6, 12, mb),
		most("the stripped library", float64(r.Sizes["icn-p11.so"])/1e6, 8, mb),
		least(fmt.Sprintf("start to first search among %d objects: faster than SoftHSM2 (without a snapshot: %.2f ×)", n, sooner(alone)), sooner(unlocked), 10, times),
		most(fmt.Sprintf("search by label among %d objects", n), r.cold(n, unlocked, func(c Cold) float64 { return c.WarmFind })/1e6, 1, ms),
		most("memory of an object", r.memoryOfObject(n, unlocked), 2048, "%.0f B"),
		most("fsyncs to create an object", r.Fsyncs[unlocked], 2, "%.1f"),
		most("creating an object: more than two fsyncs take", (create-fsyncs)/1e6, 1, ms),
		most("opening and closing a session: of SoftHSM2's time", between("session", unlocked, softEd), 1, times),
		most("reading attributes: of SoftHSM2's time", between("attributes", unlocked, softEd), 1, times),
		most("searching a small token: of SoftHSM2's time", between("find", unlocked, softEd), 1, times),
	}
	if g, ok := r.inner("p11", "SignUnlocked"); ok {
		list = append(list, none("heap allocations of an unlocked signature", fmt.Sprint(g.Allocs), g.Allocs, true))
	}
	all, failed := 0, 0
	for name, s := range r.Starts {
		if strings.HasPrefix(name, "icn-p11") {
			all, failed = all+s.Processes, failed+s.Failed
		}
	}
	return append(list, none("processes, 16 at once, that fail to start, log in and sign", fmt.Sprintf("%d of %d", failed, all), float64(failed), all > 0))
}
