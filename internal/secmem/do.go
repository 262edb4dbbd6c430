//go:build !goexperiment.runtimesecret

package secmem

// Do runs f. In a build with GOEXPERIMENT=runtimesecret it also wipes the
// stack, the registers and the heap allocations that f used.
func Do(f func()) { f() }
