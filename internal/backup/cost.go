//go:build !cheappins

package backup

// workFactor is that of scrypt: 2^18 takes a second or so and 256 MiB.
const workFactor = 18
