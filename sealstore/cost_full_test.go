//go:build !cheappins

package sealstore

import "testing"

var writtenCost = pinCost // before CheapPINs

// What is written outside the tests is what docs/format.md says.
func TestPINCost(t *testing.T) {
	if want := (kdf{Memory: 19456, Passes: 2, Lanes: 1}); writtenCost != want {
		t.Errorf("a PIN costs %+v, not %+v", writtenCost, want)
	}
}
