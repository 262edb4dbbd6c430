#!/usr/bin/env bash
# Runs test/fuzz/sequence under valgrind's memcheck: the host, the module's C
# half, and what Go writes to and reads from the host's memory.
#
# usage: test/fuzz/memcheck.sh [STEPS [SEED]]    (default 400 1)
# shellcheck source=test/lib.sh
. "$(dirname "$0")/../lib.sh"

# The runtime of Go 1.25 and later tells memcheck of its stacks and its heap
# when it is built for that (-tags valgrind). valgrind's processor claims to know
# RDTSCP also where the machine has it not; Go would use it. -w leaves out debug
# information that valgrind before 3.21 cannot read.
#
# The comparison of less than eight bytes loads eight, shifts out what it does not
# compare, and takes the flags of the shift, of which memcheck believes that they
# depend on what was shifted out. A test of the result says the same.
cpu=$(go env GOROOT)/src/internal/cpu/cpu_x86.go
equal=$(go env GOROOT)/src/internal/bytealg/equal_amd64.s
sed 's/X86\.HasRDTSCP = /&false \&\& /' "$cpu" >"$WORK/cpu_x86.go"
sed 's/^\tSHLQ\tCX, DI$/&\n\tTESTQ\tDI, DI/' "$equal" >"$WORK/equal_amd64.s"
jq -n --arg cpu "$cpu" --arg equal "$equal" --arg work "$WORK" \
    '{Replace: {($cpu): ($work + "/cpu_x86.go"), ($equal): ($work + "/equal_amd64.s")}}' >"$WORK/overlay.json"
MODULE=$ROOT/build/valgrind/icn-p11.so
make --no-print-directory -C "$ROOT" -B build/valgrind/icn-p11.so OVERLAY="$WORK/overlay.json"
export MODULE

${CC:-gcc} -O1 -g -Wall -Wextra -Wno-unused-parameter -Werror -pthread -o "$WORK/sequence" "$ROOT/test/fuzz/sequence.c" -ldl -lcrypto
start_swtpm "$WORK/tpm"
TPM2TOOLS_TCTI=swtpm:path=$WORK/tpm/s tpm2_dictionarylockout --setup-parameters --max-tries=4294967295 --recovery-time=1 --lockout-recovery-time=1
mkdir "$WORK/run"
# --fair-sched: Go's threads wait for each other. Go's garbage collector knows
# what is still in use, memcheck does not. memfd_secret(2) is a system call that
# valgrind has not; secret memory does without.
if ! valgrind -q --error-exitcode=9 --fair-sched=yes --leak-check=no --num-callers=16 --suppressions="$ROOT/test/fuzz/valgrind.supp" \
    "$WORK/sequence" -dir "$WORK/run" -device "swtpm:path=$WORK/tpm/s" -steps "${1:-400}" -seed "${2:-1}" -deadline 1200; then
    echo "memcheck: the last calls:"
    tail -n 5 "$WORK/run/calls"
    echo "memcheck: 0 passed, 1 failed"
    exit 1
fi
echo "memcheck: 1 passed, 0 failed"
