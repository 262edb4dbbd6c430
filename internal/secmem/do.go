//go:build !goexperiment.runtimesecret

package secmem

import "runtime"

// stackReach is more stack than the computations on secrets here use.
const stackReach = 16 << 10

// WipesHeap tells whether Do wipes what f allocated on the heap, too, once it
// is garbage.
const WipesHeap = false

// Do runs f; afterwards the stack that f used is wiped. In a build with
// GOEXPERIMENT=runtimesecret it also wipes the registers and the heap
// allocations that f used.
//
// It is not inlined, so that the variables of f lie below its own.
//
//go:noinline
func Do(f func()) {
	// When a stack grows, the runtime moves it and leaves the old copy behind;
	// it is made large enough before there is a secret on it.
	burn()
	// So does a stack that the garbage collector shrinks, which it only does
	// while less than a quarter is used: with this much it is not.
	var held [stackReach]byte
	f()
	runtime.KeepAlive(&held)
	burn()
}

// burn overwrites the stack below its caller.
//
//go:noinline
func burn() {
	var b [stackReach]byte
	Wipe(b[:])
	scrub(b[:registers], b[registers:2*registers])
}

// registers is a size that the runtime copies through all 16 vector registers
// of amd64 at once.
const registers = 256

// scrub overwrites the vector registers, through which secrets were copied:
// the next signal would save them on a stack of its own.
//
//go:noinline
func scrub(dst, zeros []byte) { copy(dst, zeros) }
