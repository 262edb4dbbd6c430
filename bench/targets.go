package main

import (
	"fmt"
	"strings"
)

// target is where a figure must stand.
type target struct {
	what  string
	is    string
	want  string
	met   bool
	known bool // it was measured
}

func (t target) verdict() string {
	switch {
	case !t.known:
		return "not measured"
	case t.met:
		return "met"
	}
	return "missed"
}

func (t target) String() string {
	return fmt.Sprintf("%-12s %s: %s (%s)", t.verdict(), t.what, t.is, t.want)
}

// most and least make targets of a value with a unit.
func most(what string, value, limit float64, format string) target {
	return target{what, fmt.Sprintf(format, value), "≤ " + fmt.Sprintf(format, limit), value <= limit, value > 0}
}

func least(what string, value, limit float64, format string) target {
	return target{what, fmt.Sprintf(format, value), "≥ " + fmt.Sprintf(format, limit), value >= limit, value > 0}
}

// targets compares a run with what is asked of the module.
func (r *Results) targets() []target {
	const times, ms, mb = "%.2f ×", "%.2f ms", "%.1f MB"
	between := func(op, a, b string) float64 { return ratio(r.rounds(op, a, p50), r.rounds(op, b, p50)) }
	threads := func(s string) float64 {
		return ratio(r.rounds("sign-32-threads-2", s, rate), r.rounds("sign-32", s, rate))
	}
	tail := func(s string) float64 { return ratio(r.rounds("sign-32", s, p99), r.rounds("sign-32", s, p50)) }
	n := sizes[len(sizes)-1]
	first := func(c Cold) float64 { return c.FirstFind }
	ready := r.cold(sizes[0], unlocked, func(c Cold) float64 { return c.Ready })
	memory := r.cold(sizes[0], unlocked, func(c Cold) float64 { return c.RSSReady - c.RSSBefore })
	object := (r.cold(n, unlocked, func(c Cold) float64 { return c.RSSFound }) -
		r.cold(sizes[0], unlocked, func(c Cold) float64 { return c.RSSFound })) / float64(n-sizes[0])
	list := []target{
		most("signature of 32 bytes, unlocked: of a bare edwards25519 signature", between("sign-32", unlocked, bare), 1.10, times),
		least("its rate: of SoftHSM2's with Ed25519", between("sign-32", softEd, unlocked), 4, times),
		least(fmt.Sprintf("its rate on two threads: of that on one (the bare signature: %.2f ×)", threads(bare)), threads(unlocked), 1.9, times),
		most(fmt.Sprintf("its 99th percentile: of its median (the bare signature: %.2f ×)", tail(bare)), tail(unlocked), 3, times),
		most("signature, unsealed each time: of a TPM2_Unseal and a bare signature", between("sign-32", sealed, unsealSign), 1.5, times),
		least("its rate: of tpm2-pkcs11's with P-256", between("sign-32", tpm2P256, sealed), 15, times),
		most("verification: of crypto/ed25519.Verify", between("verify-32", unlocked, stdVerify), 1.10, times),
		most("dlopen, C_Initialize and C_GetSlotList", ready/1e6, 15, ms),
		most("memory of that", memory/1e6, 12, mb),
		most("the stripped library", float64(r.Sizes["icn-p11.so"])/1e6, 8, mb),
		least(fmt.Sprintf("start to first search among %d objects: faster than SoftHSM2", n), r.cold(n, softEd, first)/max(1, r.cold(n, unlocked, first)), 10, times),
		most(fmt.Sprintf("search by label among %d objects", n), r.cold(n, unlocked, func(c Cold) float64 { return c.WarmFind })/1e6, 1, ms),
		most("memory of an object", object, 2048, "%.0f B"),
		most("fsyncs to create an object", r.Fsyncs[unlocked], 2, "%.1f"),
		most("creating an object: more than two fsyncs take", max(0.001, (r.get("create", unlocked, p50)-r.get("create", twoFsyncs, p50))/1e6), 1, ms),
		most("opening and closing a session: of SoftHSM2's time", between("session", unlocked, softEd), 1, times),
		most("reading attributes: of SoftHSM2's time", between("attributes", unlocked, softEd), 1, times),
		most("searching a small token: of SoftHSM2's time", between("find", unlocked, softEd), 1, times),
	}
	if g, ok := r.inner("p11", "SignUnlocked"); ok {
		list = append(list, target{"heap allocations of an unlocked signature", fmt.Sprint(g.Allocs), "0", g.Allocs == 0, true})
	}
	all, failed := 0, 0
	for name, s := range r.Starts {
		if strings.HasPrefix(name, "icn-p11") {
			all, failed = all+s.Processes, failed+s.Failed
		}
	}
	return append(list, target{"processes, 16 at once, that fail to start, log in and sign", fmt.Sprintf("%d of %d", failed, all), "0", failed == 0, all > 0})
}
