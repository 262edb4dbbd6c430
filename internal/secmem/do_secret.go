//go:build goexperiment.runtimesecret

package secmem

import "runtime/secret"

// WipesHeap tells whether Do wipes what f allocated on the heap, too, once it
// is garbage.
const WipesHeap = true

// Do runs f; afterwards the stack and the registers that f used are wiped,
// and its heap allocations are as soon as they are garbage. In a build
// without GOEXPERIMENT=runtimesecret it wipes the stack only.
func Do(f func()) { secret.Do(f) }
