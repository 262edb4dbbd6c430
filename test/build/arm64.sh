#!/usr/bin/env bash
# Builds the module and the command for arm64 with Debian's cross compiler.
#
# usage: test/build/arm64.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/src"
git ls-files -z | grep -zv '^test/' | tar -cf - --null -T - | tar -xf - -C "$work/src"
export GOOS=linux GOARCH=arm64 CC=aarch64-linux-gnu-gcc
make --no-print-directory -C "$work/src" VERSION="$(git describe --tags --always 2>/dev/null || echo unknown)" \
    OBJDUMP=aarch64-linux-gnu-objdump all

status=0
for file in icn-p11.so icn-p11; do
    what=$(file -b "$work/src/build/$file")
    case $what in
    *"ARM aarch64"*) echo "ok   $file: $what" ;;
    *)
        echo "FAIL $file: $what"
        status=1
        ;;
    esac
done
# The table of functions is complete there, and Go waits for C_Initialize.
count=$(aarch64-linux-gnu-nm -D --defined-only "$work/src/build/icn-p11.so" | grep -c ' C_')
[ "$count" = 104 ] || { echo "FAIL icn-p11.so: $count functions, not 104"; status=1; }
[ $status = 0 ] && echo "arm64: 2 passed, 0 failed"
exit $status
