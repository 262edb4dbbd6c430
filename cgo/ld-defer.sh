#!/bin/sh
# The linker program (go build -ldflags -extld=...) of the module. It moves Go's
# initialiser out of .init_array into the section go_init_array, so that loading
# the module does not start the Go runtime; module.c starts it in C_Initialize.
# go.o is the object that the Go linker writes for the external linker.
set -eu
: "${CC:=gcc}"
for arg; do
	case $arg in
	*/go.o)
		$($CC -print-prog-name=objcopy) --rename-section \
			.init_array=go_init_array,alloc,load,data,contents "$arg"
		;;
	esac
done
exec $CC "$@"
