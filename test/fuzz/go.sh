#!/usr/bin/env bash
# Fuzzes each of the decoders that has a Go fuzz target.
#
# usage: test/fuzz/go.sh [SECONDS [PATTERN]]
#
# The time (default 300 seconds) is divided among the targets whose "package
# name" the pattern, an extended regular expression, matches: all by default.
# An input that fails is left in the package's testdata/fuzz, where go test
# finds it from then on: commit it with what mends it.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

grep -rlE '^func Fuzz' --include='*_test.go' . | sort | while read -r file; do
    sed -n "s|^func \(Fuzz[A-Za-z0-9]*\)(.*|$(dirname "$file") \1|p" "$file"
done | grep -E -- "${2:-.}" >"$work/targets"
count=$(wc -l <"$work/targets")
[ "$count" -gt 0 ] || { echo "fuzz: no target matches $2" >&2; exit 2; }
each=$((${1:-300} / count))
[ "$each" -ge 1 ] || each=1
echo "fuzz: $count targets, $each seconds each"

# Where its time is over in the midst of an input, the engine calls that a failure.
over() { grep -q '^ *context deadline exceeded$' "$work/out" && ! grep -q 'Failing input' "$work/out"; }

cache=$(go env GOCACHE)/fuzz/$(go list -m)
passed=0 failed=()
last=
while read -r dir name; do
    # -fuzz has the compiler count what is reached.
    if [ "$dir" != "$last" ]; then
        rm -f "$work/test"
        go test -c -fuzz . -o "$work/test" "$dir" || { failed+=("$dir: does not build"); break; }
        last=$dir
    fi
    if (cd "$dir" && "$work/test" -test.run '^$' -test.fuzz "^$name\$" -test.fuzztime "${each}s" -test.fuzzminimizetime 5s \
        -test.fuzzcachedir "$cache/$dir/$name" -test.parallel 2) >"$work/out" 2>&1 || over; then
        passed=$((passed + 1))
        printf 'ok   %s %s (%s)\n' "$dir" "$name" "$(sed -n 's/.*execs: \([0-9]*\).*/\1 inputs/p' "$work/out" | tail -n 1)"
    else
        failed+=("$dir $name")
        echo "FAIL $dir $name"
        sed 's/^/     /' "$work/out"
    fi
done <"$work/targets"

for f in "${failed[@]}"; do
    echo "FAILED: $f in $root"
done
echo "fuzz: $passed targets passed, ${#failed[@]} failed"
[ ${#failed[@]} = 0 ]
