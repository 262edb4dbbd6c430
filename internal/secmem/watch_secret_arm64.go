//go:build goexperiment.runtimesecret

package secmem

// signature is RSEQ_SIG of the C library (bits/rseq.h).
const signature = 0xd428bc00
