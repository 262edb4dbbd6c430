#!/usr/bin/env bash
# Endurance: eight processes share a token and a software TPM. Three of them
# run on, two are killed again and again, two write to the store by the
# administrator's command, one starts and leaves over and over; they fork, and
# the TPM is stopped and started on its state.
#
# In the end every object that was reported as stored must be there and verify,
# and what the processes that ran on use of memory, descriptors and threads, and
# what is left in the TPM, must be what it was after a warm-up.
#
# usage: test/soak/run.sh [SECONDS]    (default 600, at least 30)
# shellcheck source=test/lib.sh
. "$(dirname "$0")/../lib.sh"

seconds=${1:-600}
[ "$seconds" -ge 30 ] || seconds=30
warm=$((seconds / 3))
# Killed processes leave wrong tries behind, and so does each restart of the TPM
# without an orderly shutdown (TPM 2.0 Part 1, 19.8.6).
setup_lockout() { TPM2TOOLS_TCTI=swtpm:path=$WORK/tpm/s tpm2_dictionarylockout --setup-parameters --max-tries=4294967295 --recovery-time=1 --lockout-recovery-time=1; }

${CC:-gcc} -O1 -g -Wall -Wextra -Wno-unused-parameter -Werror -pthread -o "$WORK/worker" "$ROOT/test/soak/worker.c" -ldl -lcrypto
MODULE=$(realpath "$MODULE")
export MODULE
mkdir "$WORK/tpm" "$WORK/journal"
# Its process is noted in a file, since a check runs in a subshell.
start_tpm() {
    rm -f "$WORK/tpm/s" "$WORK/tpm/s.ctrl"
    swtpm socket --tpm2 --tpmstate "dir=$WORK/tpm" --server "type=unixio,path=$WORK/tpm/s" \
        --ctrl "type=unixio,path=$WORK/tpm/s.ctrl" --flags not-need-init,startup-clear >>"$WORK/tpm/swtpm.log" 2>&1 &
    echo "$!" >"$WORK/tpm/pid"
    wait_for test -S "$WORK/tpm/s.ctrl"
}
stop_tpm() {
    local pid
    pid=$(cat "$WORK/tpm/pid")
    rm "$WORK/tpm/pid"
    kill "$pid"
    wait_for test ! -e "/proc/$pid/exe"
}

workers=() killed=() loops=()
stop_all() {
    touch "$WORK/over"
    local pid
    for pid in "${workers[@]}" "${killed[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    for pid in "${loops[@]}"; do
        wait "$pid" 2>/dev/null || true
    done
    [ ! -e "$WORK/tpm/pid" ] || stop_tpm
}
trap 'stop_all; cleanup' EXIT

start_tpm
setup_lockout
make_conf "$WORK/tpm"
printf 123456 >"$WORK/pin"
"$WORK/worker" init

complain() {
    echo "soak: $*" >&2
    touch "$WORK/bad"
}

# Three that run on.
for n in 1 2 3; do
    "$WORK/worker" load "$WORK/journal/steady$n" "$n" >"$WORK/out$n" 2>&1 &
    workers+=($!)
done
# Two that are killed.
assassin() {
    local pid round
    for ((round = 0; ; round++)); do
        [ ! -e "$WORK/over" ] || return 0
        "$WORK/worker" load "$WORK/journal/killed$1-$round" "$1$round" >"$WORK/killed.out$1" 2>&1 &
        pid=$!
        sleep "$((RANDOM % 4)).$((RANDOM % 10))"
        if ! kill -KILL "$pid" 2>/dev/null; then
            complain "a process ended before it was killed: $(cat "$WORK/killed.out$1")"
        fi
        wait "$pid" 2>/dev/null || true
        echo "$round" >"$WORK/kills$1"
    done
}
# One that starts, works for a moment, and leaves in order.
visitor() {
    local round pid status
    for ((round = 0; ; round++)); do
        [ ! -e "$WORK/over" ] || return 0
        "$WORK/worker" load "$WORK/journal/visit-$round" "7$round" >"$WORK/visit.out" 2>&1 &
        pid=$!
        sleep "1.$((RANDOM % 10))"
        kill -TERM "$pid" 2>/dev/null || true
        status=0
        wait "$pid" || status=$?
        # It may have been told to stop before it was ready to be told.
        [ "$status" = 0 ] || [ "$status" = 143 ] || complain "a visitor ended with $status: $(cat "$WORK/visit.out")"
    done
}
# Two writers with the command: they make a key, and delete the one before it.
writer() {
    local round label before='' status
    for ((round = 0; ; round++)); do
        [ ! -e "$WORK/over" ] || return 0
        label=writer$1-$round
        status=0
        "$COMMAND" key generate soak --label "$label" --pin-source "file:$WORK/pin" >"$WORK/writer.out$1" 2>&1 || status=$?
        if [ "$status" = 0 ]; then
            echo "stored $label $("$COMMAND" key export-public soak "$label" --format hex)" >>"$WORK/journal/writer$1"
            if [ -n "$before" ]; then
                echo "going $before " >>"$WORK/journal/writer$1"
                "$COMMAND" key delete soak "$before" --yes --pin-source "file:$WORK/pin" >"$WORK/writer.out$1" 2>&1 ||
                    [ -e "$WORK/away" ] || echo "$(date +%T) $(tail -n 2 "$WORK/writer.out$1")" >>"$WORK/writer.errors"
            fi
            before=$label
        else
            echo "$(date +%T) $(tail -n 2 "$WORK/writer.out$1")" >>"$WORK/writer.errors"
        fi
    done
}
for n in 1 2; do
    assassin "$n" &
    loops+=($!)
    writer "$n" &
    loops+=($!)
done
visitor &
loops+=($!)

# use PID: the most memory that was ever resident, in KiB, descriptors and threads;
# of the latter the least of a hundred samples, as what a call holds while it
# waits for its turn at the TPM does not count. What is resident at one moment
# says little: what Argon2 has needed goes back to the kernel at some time later.
use() {
    local n i key value status now open least=()
    for ((n = 0; n < 100; n++)); do
        now=()
        status=$(<"/proc/$1/status") # in one piece: it changes while it is read
        while read -r key value _; do
            case $key in
            VmHWM:) now[0]=$value ;;
            Threads:) now[2]=$value ;;
            esac
        done <<<"$status"
        open=("/proc/$1/fd/"*)
        now[1]=${#open[@]}
        for i in 0 1 2; do
            [ -n "${least[i]:-}" ] && [ "${least[i]}" -le "${now[i]}" ] || least[i]=${now[i]}
        done
        sleep 0.05
    done
    echo "${least[*]}"
}

began=$SECONDS restarts=0
: >"$WORK/before"
: >"$WORK/writer.errors"
while [ $((SECONDS - began)) -lt "$seconds" ] && [ ! -e "$WORK/bad" ]; do
    sleep 3
    touch "$WORK/away"
    stop_tpm
    sleep "0.$((RANDOM % 10))"
    start_tpm
    rm "$WORK/away"
    restarts=$((restarts + 1))
    for pid in "${workers[@]}"; do
        [ -e "/proc/$pid/status" ] || complain "a process has ended: $(cat "$WORK"/out?)"
    done
    if [ ! -s "$WORK/before" ] && [ $((SECONDS - began)) -ge "$warm" ]; then
        for pid in "${workers[@]}"; do use "$pid"; done >"$WORK/before"
    fi
done
[ -e "$WORK/bad" ] || for pid in "${workers[@]}"; do use "$pid"; done >"$WORK/after"

touch "$WORK/over"
for pid in "${workers[@]}"; do
    kill -TERM "$pid" 2>/dev/null || true
    wait "$pid" || complain "a process ended with $?: $(cat "$WORK"/out?)"
done
workers=()
for pid in "${loops[@]}"; do wait "$pid" || complain "a loop ended with $?"; done
loops=()
cat "$WORK"/out?
echo "$restarts restarts of the TPM, $(($(cat "$WORK/kills1") + $(cat "$WORK/kills2") + 2)) processes killed, $(cat "$WORK"/journal/writer? | grep -c ^stored) keys made by the command, $(wc -l <"$WORK/writer.errors") of its calls failed"

# flat NAME COLUMN ALLOWANCE: of each process that ran on.
flat() {
    paste -d' ' "$WORK/before" "$WORK/after" | awk -v c="$2" -v a="$3" -v name="$1" \
        '{print "process " NR ": " name " " $c " after the warm-up, " $(c + 3) " at the end"} $(c + 3) > $c + a {bad = 1} END {exit NR != 3 || bad}'
}
# What is in a TPM that everybody has left in order.
handles() {
    local kind
    for kind in handles-transient handles-loaded-session handles-saved-session handles-persistent; do
        TPM2TOOLS_TCTI=swtpm:path=$WORK/tpm/s tpm2_getcap "$kind"
    done | grep -c 0x || true
}
nothing_left() {
    local before after
    stop_tpm
    start_tpm
    before=$(handles)
    "$WORK/worker" load "$WORK/journal/alone" 99 &
    local pid=$!
    sleep 3
    kill -TERM "$pid"
    wait "$pid"
    after=$(handles)
    echo "$before handles in the TPM before, $after after"
    [ "$before" = "$after" ]
}

check "nothing went wrong" test ! -e "$WORK/bad"
if [ -s "$WORK/after" ]; then
    # Noise: a tenth, four megabytes, and that two logins come so close together
    # that the garbage collector has not been there in between.
    most=$(($(cut -d' ' -f1 "$WORK/before" | sort -n | tail -n 1) / 10 + 4096 + 19456))
    check "memory is flat (KiB)" flat "peak RSS" 1 "$most"
    cat "$WORK/out"
    check "descriptors are flat" flat descriptors 2 0
    cat "$WORK/out"
    check "threads are flat" flat threads 3 2
    cat "$WORK/out"
fi
check "nothing is left in the TPM" nothing_left
tail -n 1 "$WORK/out"
check "all that was reported as stored is there and verifies" "$WORK/worker" check "$WORK"/journal/*
cat "$WORK/out"
if [ -s "$WORK/writer.errors" ]; then
    echo "what the command said when it failed:"
    cut -d' ' -f2- "$WORK/writer.errors" | sort | uniq -c | sort -rn | head -n 5
fi
finish
