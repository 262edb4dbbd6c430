# shellcheck shell=bash
# Sourced by the test scripts: a software TPM and a store of their own, and
# checks that count.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
MODULE=${MODULE:-$ROOT/build/icn-p11.so}
COMMAND=${COMMAND:-$ROOT/build/icn-p11}
WORK=$(mktemp -d)
PIN=user-pin-7 SO_PIN=so-pin-4711
passed=0 failed=0
pids=()

cleanup() {
    local pid
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    rm -rf "$WORK"
}
trap cleanup EXIT

# start_swtpm DIR: a TPM with its state in DIR, its socket at DIR/s and its
# control socket at DIR/s.ctrl. It ends with the script.
start_swtpm() {
    mkdir -p "$1"
    swtpm socket --tpm2 --tpmstate "dir=$1" --server "type=unixio,path=$1/s" \
        --ctrl "type=unixio,path=$1/s.ctrl" --flags not-need-init,startup-clear \
        >"$1/swtpm.log" 2>&1 &
    pids+=($!)
    wait_for test -S "$1/s"
}

# wait_for COMMAND...: until it succeeds, for at most ten seconds.
wait_for() {
    local n
    for ((n = 0; n < 1000; n++)); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.01
    done
    echo "timed out waiting for: $*" >&2
    return 1
}

# make_conf DIR: a configuration for that TPM, in force for what follows.
make_conf() {
    cat >"$1/icn-p11.conf" <<EOF
device_path = "swtpm:path=$1/s"
sealed_blob_dir = "$1/store"
log_file = "$1/log"
EOF
    export ICN_P11_CONF=$1/icn-p11.conf
    printf '%s\n' "$PIN" >"$1/pin"
    printf '%s\n' "$SO_PIN" >"$1/so-pin"
}

# attempt COMMAND...: runs it with its output in $WORK/out and sets status;
# a program has two minutes, a function bounds its own. A function fails at the
# first of its commands that fails, so attempt itself, check and refuse must not
# stand in a condition or before || or &&: there bash ignores set -e even in a
# subshell that sets it anew.
attempt() {
    set +e
    if [ "$(type -t "$1")" = function ]; then
        (set -e; "$@") >"$WORK/out" 2>&1
    else
        timeout 120 "$@" >"$WORK/out" 2>&1
    fi
    status=$?
    set -e
}

# verdict NAME OK: counts, and shows the output of what went wrong.
verdict() {
    if [ "$2" = 0 ]; then
        passed=$((passed + 1))
        echo "ok   $1"
    else
        failed=$((failed + 1))
        echo "FAIL $1"
        sed 's/^/     /' "$WORK/out"
    fi
}

# check NAME COMMAND...: the command must succeed.
check() {
    local name=$1 status=0
    shift
    attempt "$@"
    verdict "$name" "$status"
}

# refuse NAME COMMAND...: the command must fail, but not by a signal or a timeout.
refuse() {
    local name=$1 status=0
    shift
    attempt "$@"
    verdict "$name" "$((status == 0 || status >= 124))"
}

# output_has NAME PATTERN: in the output of the check before.
output_has() {
    local status=0
    grep -qE -- "$2" "$WORK/out" || status=1
    verdict "$1 (/$2/)" "$status"
}

# blocks FILE DIR: writes what a document marks as sh to DIR/LINE.sh.
blocks() {
    awk -v dir="$2" '
        /^```/ { if (out) { close(out); out = "" } else if ($0 == "```sh") { out = sprintf("%s/%05d.sh", dir, NR); printf "" >out } next }
        out { print >out }' "$1"
}

finish() {
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
}
