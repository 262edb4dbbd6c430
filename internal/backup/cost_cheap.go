//go:build cheappins

package backup

// workFactor is that of tests of other packages (see sealstore).
const workFactor = 10
