//go:build !cheappins

package sealstore

// pinCost is what one try of a PIN costs: OWASP's minimum, since the TPM limits
// guessing. It is a variable for the tests of this package, whose PINs are cheap.
var pinCost = kdf{Memory: 19 << 10, Passes: 2, Lanes: 1}
