package sealstore

// CheapPINs has PINs cost the least that a token's file may ask for. Most of the
// time of the tests would go into Argon2, the more so under the race detector.
func CheapPINs() { pinCost.Memory, pinCost.Passes = minKDFMemory, 1 }
