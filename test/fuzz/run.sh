#!/usr/bin/env bash
# Fuzzes the whole module through its C functions: sequences of calls against a
# model, from one thread (sequence.c) and from several (threads.c).
#
# usage: test/fuzz/run.sh [SECONDS]            the seeds that once failed (seeds),
#                                              then new ones for so long (default 5)
#        test/fuzz/run.sh replay PROGRAM SEED  one of them again; a sequence that
#                                              fails is made shorter
#
# FUZZ_SANITIZED=1 tests a build of the module of its own whose C and Go are
# instrumented for the address sanitizer, in place of $MODULE; building it the
# first time takes some minutes. What fails is left in build/fuzz.
# shellcheck source=test/lib.sh
. "$(dirname "$0")/../lib.sh"

here=$ROOT/test/fuzz
# The compiler finds mistakes of the host; the sanitizers those of the module's
# C half as well, and of both where the module was built with them.
flags="-O1 -g -Wall -Wextra -Wno-unused-parameter -Werror -pthread -fsanitize=address,undefined -fno-sanitize-recover=all"
for program in sequence threads; do
    # shellcheck disable=SC2086 # several flags
    ${CC:-gcc} $flags -o "$WORK/$program" "$here/$program.c" -ldl -lcrypto
done

if [ "${FUZZ_SANITIZED:-}" = 1 ]; then
    MODULE=$ROOT/build/asan/icn-p11.so
    make --no-print-directory -C "$ROOT" build/asan/icn-p11.so
fi
MODULE=$(realpath "$MODULE")
export MODULE
# LeakSanitizer stops threads and walks memory; Go's are not its own.
export ASAN_OPTIONS=detect_leaks=0

start_swtpm "$WORK/tpm"
# Wrong PINs are part of the game: the TPM has to count on.
export TPM2TOOLS_TCTI=swtpm:path=$WORK/tpm/s
tpm2_dictionarylockout --setup-parameters --max-tries=4294967295 --recovery-time=1 --lockout-recovery-time=1

# once PROGRAM SEED [ARGUMENT...]: one run with a store of its own in $run.
once() {
    run=$WORK/run
    rm -rf "$run"
    mkdir "$run"
    "$WORK/$1" -dir "$run" -device "swtpm:path=$WORK/tpm/s" -seed "$2" "${@:3}" 2>"$run/why"
}

failed_at() { sed -n 's/^sequence: seed [0-9]*, step //p' "$run/why"; }

# shrink SEED: leaves steps out for as long as the same check fails, and has the
# numbers of those that are left in $WORK/steps.
shrink() {
    local check size at
    check=$(sed -n 's/^\([^ ]*:[0-9]*\): .*/\1/p' "$run/why" | head -n 1)
    seq 0 "$(failed_at)" >"$WORK/steps"
    for ((size = $(wc -l <"$WORK/steps") / 2; size >= 1; size /= 2)); do
        for ((at = 1; at <= $(wc -l <"$WORK/steps"); )); do
            sed "${at},$((at + size - 1))d" "$WORK/steps" >"$WORK/fewer"
            if ! once sequence "$1" -only "$WORK/fewer" && [ -n "$check" ] && grep -qF "$check: " "$run/why"; then
                mv "$WORK/fewer" "$WORK/steps"
            else
                at=$((at + size))
            fi
        done
    done
    once sequence "$1" -only "$WORK/steps" || true
}

# report PROGRAM SEED: what failed, and how to see it again.
report() {
    local left=$ROOT/build/fuzz/$1-$2
    rm -rf "$left"
    mkdir -p "$left"
    cp "$run/calls" "$run/why" "$left/"
    [ ! -e "$run/module.log" ] || cp "$run/module.log" "$left/"
    echo "fuzz: $1 failed with seed $2; the last of its calls:"
    tail -n 15 "$run/calls"
    echo
    cat "$run/why"
    echo "fuzz: all of it is in $left; again: test/fuzz/run.sh replay $1 $2"
}

if [ "${1:-}" = replay ]; then
    if once "$2" "$3"; then
        echo "fuzz: $2 with seed $3: nothing is wrong"
        exit 0
    fi
    [ "$2" != sequence ] || [ -z "$(failed_at)" ] || shrink "$3"
    report "$2" "$3"
    exit 1
fi

seconds=${1:-5}
while read -r program seed; do
    once "$program" "$seed" || { report "$program" "$seed"; exit 1; }
done < <(sed '/^#/d; /^$/d' "$here/seeds")
seed=${FUZZ_SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
echo "fuzz: seeds from $seed, for $seconds seconds, $MODULE"
runs=0 end=$((SECONDS + seconds))
while :; do
    program=sequence
    [ $((runs % 3)) != 2 ] || program=threads
    once "$program" "$seed" || { report "$program" "$seed"; exit 1; }
    runs=$((runs + 1)) seed=$((seed + 1))
    # Both programs in the shortest run too.
    [ "$runs" -lt 3 ] || [ "$SECONDS" -lt "$end" ] || break
done
echo "fuzz: $runs runs passed, 0 failed"
