#!/usr/bin/env bash
# make lint: formatting, vet, staticcheck, shellcheck, and govulncheck where
# its database can be reached.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

test/deps.sh lint || exit 1
tools=$PWD/build/tools
mkdir -p "$tools"
status=0
fail() {
    echo "lint: $*" >&2
    status=1
}

install_tool() { # NAME MODULE@VERSION
    [ -x "$tools/$1" ] || GOBIN=$tools go install "$2"
}

mapfile -t go_files < <(git ls-files '*.go')
mapfile -t scripts < <(git ls-files '*.sh' .ci/run)
unformatted=$(gofmt -l "${go_files[@]}")
[ -z "$unformatted" ] || fail "not formatted: $unformatted"
go vet ./... || fail "go vet"
go mod tidy -diff || fail "go.mod is not tidy"
if install_tool staticcheck honnef.co/go/tools/cmd/staticcheck@v0.8.2; then
    "$tools/staticcheck" ./... || fail "staticcheck"
else
    fail "staticcheck cannot be installed"
fi
# SC2317 takes functions that a trap calls for unreachable.
shellcheck -x -e SC2317 "${scripts[@]}" || fail "shellcheck"
if install_tool govulncheck golang.org/x/vuln/cmd/govulncheck@v1.9.0; then
    out=$("$tools/govulncheck" ./... 2>&1)
    case $? in
    0) echo "govulncheck: no known vulnerability is reached" ;;
    3) echo "$out"; fail "govulncheck" ;;
    *) echo "govulncheck could not run: $(tail -n 1 <<<"$out")" ;;
    esac
else
    echo "govulncheck cannot be installed from here; skipped"
fi
[ $status = 0 ] && echo "lint: 1 passed, 0 failed"
exit $status
