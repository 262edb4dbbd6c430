//go:build cheappins

package sealstore

// With the tag cheappins a PIN costs the least that a token's file may ask for.
// It is for tests of other packages, which spend most of their time in Argon2
// otherwise, and for nothing that is installed.
var pinCost = kdf{Memory: minKDFMemory, Passes: 1, Lanes: 1}
