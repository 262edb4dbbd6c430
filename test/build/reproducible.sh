#!/usr/bin/env bash
# Builds the module and the command twice and compares: from two directories,
# at two times, with caches and home directories of two users, and another
# umask and language.
#
# usage: test/build/reproducible.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
commit=$(git describe --tags --always 2>/dev/null || echo unknown)

# build NAME DIRECTORY TIME UMASK LANGUAGE TIMEZONE: in a copy of what is
# tracked, with a cache of its own.
build() {
    mkdir -p "$work/$1/home" "$work/$2"
    git ls-files -z | grep -zv '^test/' | tar -cf - --null -T - | tar -xf - -C "$work/$2"
    find "$work/$2" -exec touch -d "$3" {} +
    (
        umask "$4"
        export HOME=$work/$1/home GOCACHE=$work/$1/cache LC_ALL=$5 TZ=$6
        make --no-print-directory -C "$work/$2" VERSION="$commit" all >"$work/$1/log" 2>&1 || { cat "$work/$1/log" >&2; exit 1; }
    )
}
# Downloaded modules are the same for everybody (go.sum), so they are not
# downloaded twice.
GOMODCACHE=$(go env GOMODCACHE)
export GOMODCACHE

build one "first/icn-p11" "2020-01-02 03:04:05" 022 C UTC
build two "second with a longer name/src" "2031-02-03 04:05:06" 077 C.UTF-8 Asia/Tokyo
status=0
for file in icn-p11.so icn-p11; do
    a=$work/first/icn-p11/build/$file b="$work/second with a longer name/src/build/$file"
    if cmp "$a" "$b"; then
        echo "ok   $file: $(sha256sum "$a" | cut -d' ' -f1)"
    else
        status=1
        echo "FAIL $file: two builds differ"
    fi
    # Nothing of the place where it was built.
    if grep -qF "$work" "$a"; then
        status=1
        echo "FAIL $file: names the directory that it was built in"
    fi
done
[ $status = 0 ] && echo "reproducible: 2 passed, 0 failed"
exit $status
