package sealstore

import "testing"

// CheapPINs has PINs cost the least that a token's file may ask for. Most of the
// time of the tests would go into Argon2, the more so under the race detector.
func CheapPINs() { pinCost.Memory, pinCost.Passes = minKDFMemory, 1 }

var writtenCost = pinCost // before CheapPINs

// What is written outside the tests is what docs/format.md says.
func TestPINCost(t *testing.T) {
	if want := (kdf{Memory: 19456, Passes: 2, Lanes: 1}); writtenCost != want {
		t.Errorf("a PIN costs %+v, not %+v", writtenCost, want)
	}
}
