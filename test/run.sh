#!/usr/bin/env bash
# make test: the tests of the packages, of the command and of the built module,
# clients of this distribution, the demo, and a few seconds of fuzzing. Commands of
# their own have what needs another system (make interop), root (make clients), much
# time (make fuzz, soak, memcheck) or an idle machine (make bench, which test/bench.sh
# tries), and what checks builds (make reproducible, arm64).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

test/deps.sh test || exit 1
make --no-print-directory all || exit 1

export ICN_P11_MODULE=$PWD/build/icn-p11.so ICN_P11_COMMAND=$PWD/build/icn-p11
export MODULE=$ICN_P11_MODULE COMMAND=$ICN_P11_COMMAND
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
# What a shell runs in the background ignores the terminal's interrupt.
trap 'trap - TERM; kill 0' INT
touch "$results/ok" "$results/FAILED"

step() {
    echo "== $*"
    local outcome
    time {
        if "$@"; then outcome=ok; else outcome=FAILED; fi
        echo "$*" >>"$results/$outcome"
        TIMEFORMAT="== $outcome in %0R s (CPU: user %0U s, system %0S s): $*"
    }
}

# PINs and passphrases are made slow to try. Tests that are about something else
# would spend most of their time in that, so they run with the least cost; what
# is built for use has the full one, as have the searches of memory.
cheap='-tags=cheappins'
step go vet ./...
step go vet $cheap ./sealstore ./internal/backup

# The tests that search memory do it in both builds that there are, and without
# the race detector, which has a memory of its own.
memory='CommandMemory|MigrationMemory|NotInMemory|UnderSignals'
full='PINCost|PassphraseCost'
# The race detector costs several times the work. It is where goroutines meet in
# what is tested: in the packages, but not in tests that try very many cases in
# one goroutine, nor in TestTPM, whose suite TestMemory runs, nor in a command
# beyond its bar and its agent.
cases='^TestTPM$|^TestTampered|^TestHostile|^TestDamage'
mapfile -t packages < <(go list ./... | grep -vE "/(cmd/icn-p11|test/build|test/p11tool|test/conformance)$")

of_packages() {
    step go test $cheap -race -timeout 30m -skip "$memory|$cases" "${packages[@]}"
    step go test $cheap -timeout 30m -run "Faults|$cases" "${packages[@]}"
    step go test $cheap -race -timeout 20m -skip "$memory" -run 'Agent|Bar|Progress|SlowTPM' ./cmd/icn-p11
    step go test $cheap -timeout 30m -skip "$memory" ./cmd/icn-p11
    for experiment in noruntimesecret runtimesecret; do
        step env GOEXPERIMENT=$experiment go test -count=1 -timeout 10m -run "$memory|$full" ./internal/secmem/... ./internal/pinsource ./internal/backup ./sealstore
    done
}

of_builds() {
    # The clients of the built module run anew each time, since go test does not
    # see that the module has changed, and without the race detector, which sees
    # nothing of the module either. They wait more than they compute.
    step go test -count=1 -timeout 30m -parallel 4 ./test/build ./test/conformance ./test/p11tool
    for script in test/chost/*.sh test/clients/*.sh; do
        step "$script"
    done
    step test/demo.sh
    # A look, for some seconds, at what make fuzz does for longer.
    step test/fuzz/run.sh 5
    step go test -count=1 -timeout 20m -run "$memory" ./cmd/icn-p11
}

# Either waits for a TPM, a disk or a clock while the other computes.
of_builds >"$results/out" 2>&1 &
of_packages
wait
cat "$results/out"

sed 's/^/FAILED: /' "$results/FAILED"
echo "$(wc -l <"$results/ok") passed, $(wc -l <"$results/FAILED") failed"
[ ! -s "$results/FAILED" ]
