// Package rseq finds the restartable sequences (rseq(2)) that the C library has
// registered for its threads, for [secmem.Compute]. It is for programs that are
// linked with the C library, as a shared library is.
package rseq

// #cgo CFLAGS: -O2 -Wall -Wextra
// #define _GNU_SOURCE
// #include <dlfcn.h>
// #include <stddef.h>
//
// /* As of glibc 2.35; other C libraries have not got them. */
// static unsigned int size(void)
// {
// 	const unsigned int *p = dlsym(RTLD_DEFAULT, "__rseq_size");
// 	return p != NULL ? *p : 0;
// }
//
// static ptrdiff_t offset(void)
// {
// 	const ptrdiff_t *p = dlsym(RTLD_DEFAULT, "__rseq_offset");
// 	return p != NULL ? *p : 0;
// }
import "C"

import "github.com/InterCooperative-Network/icn-p11/internal/secmem"

// Watch has secmem.Compute look for signals instead of holding them back. An
// error says why it goes on to hold them back, which is as safe.
func Watch() error { return secmem.WatchSignals(int(C.offset()), uint(C.size())) }
