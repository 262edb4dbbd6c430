//go:build !cheappins

package backup

import "testing"

// What is written outside the tests is what docs/format.md says.
func TestPassphraseCost(t *testing.T) {
	if got := Passphrase([]byte("a passphrase")).work; got != 18 {
		t.Errorf("a passphrase costs 2^%d, not 2^18", got)
	}
}
