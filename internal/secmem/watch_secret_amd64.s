//go:build goexperiment.runtimesecret

#include "textflag.h"

// func threadPointer() unsafe.Pointer
TEXT ·threadPointer(SB), NOSPLIT, $0-8
	// MOVQ FS:0, AX: the word there is its own address (psABI, 3.4.2).
	BYTE $0x64; BYTE $0x48; BYTE $0x8b; BYTE $0x04; BYTE $0x25; LONG $0
	MOVQ AX, ret+0(FP)
	RET
