#!/usr/bin/env bash
# Endurance: eight processes share a software TPM, and seven of them a token.
# Three run on, two are killed again and again, two write to the store by the
# administrator's command, one starts and leaves over and over; they fork, and
# the TPM is stopped and started on its state. The third of those that run on
# never ends the module, and has a token of its own, whose objects nobody adds to.
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
# While the TPM is away there is the one; the other is touched when it is back.
export AWAY=$WORK/away BACK=$WORK/back
mkdir "$WORK/tpm" "$WORK/journal"
# Its process is noted in a file, since a check runs in a subshell.
start_tpm() {
    rm -f "$WORK/tpm/s" "$WORK/tpm/s.ctrl"
    swtpm socket --tpm2 --tpmstate "dir=$WORK/tpm" --server "type=unixio,path=$WORK/tpm/s" \
        --ctrl "type=unixio,path=$WORK/tpm/s.ctrl" --flags not-need-init,startup-clear >>"$WORK/tpm/swtpm.log" 2>&1 &
    echo "$!" >"$WORK/tpm/pid"
    wait_for test -S "$WORK/tpm/s.ctrl"
    wait_for test -S "$WORK/tpm/s"
}
stop_tpm() {
    local pid
    pid=$(cat "$WORK/tpm/pid")
    rm "$WORK/tpm/pid"
    kill "$pid"
    wait_for test ! -e "/proc/$pid/exe"
}

workers=() loops=() assassins=()
stop_all() {
    touch "$WORK/over"
    local pid
    for pid in "${workers[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    for pid in "${loops[@]}" "${assassins[@]}"; do
        wait "$pid" 2>/dev/null || true
    done
    [ ! -e "$WORK/tpm/pid" ] || stop_tpm
}
trap 'stop_all; cleanup' EXIT

start_tpm
setup_lockout
make_conf "$WORK/tpm"
printf 123456 >"$WORK/pin"
"$WORK/worker" init soak steady

complain() {
    echo "soak: $*" >&2
    touch "$WORK/bad"
}

# Three that run on.
for n in 1 2; do
    "$WORK/worker" load soak "$WORK/journal/steady$n" "$n" >"$WORK/out$n" 2>&1 &
    workers+=($!)
done
# What its login has needed of memory is to go back soon: Go collects early.
GOGC=10 "$WORK/worker" stay steady "$WORK/journal-steady" 3 >"$WORK/out3" 2>&1 &
workers+=($!)
# Two that are killed.
assassin() {
    local pid round
    for ((round = 0; ; round++)); do
        [ ! -e "$WORK/over" ] && [ ! -e "$WORK/mercy" ] || return 0
        "$WORK/worker" load soak "$WORK/journal/killed$1-$round" "$1$round" >"$WORK/killed.out$1" 2>&1 &
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
        "$WORK/worker" load soak "$WORK/journal/visit-$round" "7$round" >"$WORK/visit.out" 2>&1 &
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
    local round label before=''
    # may_fail ARGUMENT...: the command, which fails only where the TPM was away.
    may_fail() {
        touch "$WORK/writer.began$1"
        "$COMMAND" "${@:2}" >"$WORK/writer.out$1" 2>&1 && return 0
        if [ -e "$AWAY" ] || [ "$BACK" -nt "$WORK/writer.began$1" ]; then
            echo "$(date +%T) $(tail -n 2 "$WORK/writer.out$1")" >>"$WORK/writer.errors"
        else
            complain "icn-p11 ${*:2}: $(cat "$WORK/writer.out$1")"
        fi
        return 1
    }
    for ((round = 0; ; round++)); do
        [ ! -e "$WORK/over" ] || return 0
        label=writer$1-$round
        may_fail "$1" key generate soak --label "$label" --pin-source "file:$WORK/pin" || continue
        may_fail "$1" key export-public soak "$label" --format hex || continue
        echo "stored $label $(cat "$WORK/writer.out$1")" >>"$WORK/journal/writer$1"
        if [ -n "$before" ]; then
            echo "going $before " >>"$WORK/journal/writer$1"
            may_fail "$1" key delete soak "$before" --yes --pin-source "file:$WORK/pin" || true
        fi
        before=$label
    done
}
assassins=()
for n in 1 2; do
    assassin "$n" &
    assassins+=($!)
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

# resident: what of the process that never ends the module is resident, in KiB,
# five times a second, with the time.
resident() {
    local key value status
    while [ ! -e "$WORK/over" ] && status=$(<"/proc/${workers[2]}/status"); do
        while read -r key value _; do
            [ "$key" != VmRSS: ] || echo "$((SECONDS - began)) $value"
        done <<<"$status"
        sleep 0.2
    done 2>/dev/null >"$WORK/resident"
}
# median FROM: of what was resident in a sixth of the time.
median() {
    awk -v from="$1" -v to="$(($1 + seconds / 6))" '$1 >= from && $1 < to {print $2}' "$WORK/resident" | sort -n | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'
}

# handles KIND...: how many the TPM has.
handles() {
    local kind
    for kind in "$@"; do
        TPM2TOOLS_TCTI=swtpm:path=$WORK/tpm/s tpm2_getcap "handles-$kind"
    done | grep -c 0x || true
}

began=$SECONDS restarts=0
restart_tpm() {
    touch "$AWAY"
    stop_tpm
    sleep "0.$((RANDOM % 10))"
    start_tpm
    touch "$BACK"
    rm "$AWAY"
    restarts=$((restarts + 1))
}
: >"$WORK/before"
: >"$WORK/writer.errors"
resident &
loops+=($!)
while [ $((SECONDS - began)) -lt "$seconds" ] && [ ! -e "$WORK/bad" ]; do
    sleep 3
    restart_tpm
    for pid in "${workers[@]}"; do
        [ -e "/proc/$pid/status" ] || complain "a process has ended: $(cat "$WORK"/out?)"
    done
    if [ ! -s "$WORK/before" ] && [ $((SECONDS - began)) -ge "$warm" ]; then
        for pid in "${workers[@]}"; do use "$pid"; done >"$WORK/before"
    fi
done
touch "$WORK/mercy"
for pid in "${assassins[@]}"; do wait "$pid" || complain "a loop ended with $?"; done
assassins=()
if [ ! -e "$WORK/bad" ]; then
    for pid in "${workers[@]}"; do use "$pid"; done >"$WORK/after"
    # What killed processes have left in the TPM goes; what then is there between
    # two transactions, of which the TPM does one at a time, is of the others.
    restart_tpm
    for ((n = 0; n < 10; n++)); do
        sleep 0.5
        handles transient loaded-session saved-session
    done >"$WORK/held"
fi
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
# few_missed: of the calls of those that ran on.
few_missed() {
    awk '{print "process " NR ": " $0} $1 < 4 * $3 {bad = 1} END {exit NR != 3 || bad}' "$WORK"/out?
}
resident_flat() {
    local early late
    early=$(median "$warm") late=$(median $((seconds - seconds / 6)))
    echo "$early KiB after the warm-up, $late at the end"
    [ "$late" -le $((early + 1024)) ]
}
none_held() {
    echo "handles in the TPM: $(tr '\n' ' ' <"$WORK/held")"
    [ "$(sort -u "$WORK/held")" = 0 ]
}
# What is in a TPM that everybody has left in order.
all_kinds=(transient loaded-session saved-session persistent)
nothing_left() {
    local before after
    stop_tpm
    start_tpm
    before=$(handles "${all_kinds[@]}")
    "$WORK/worker" load soak "$WORK/journal/alone" 99 &
    local pid=$!
    sleep 3
    kill -TERM "$pid"
    wait "$pid"
    after=$(handles "${all_kinds[@]}")
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
    # It takes a minute until what a login needed is back with the kernel.
    if [ "$warm" -ge 60 ]; then
        check "what is resident of the process that never ended the module is flat" resident_flat
        cat "$WORK/out"
    else
        echo "     what is resident is looked at in a run of 180 seconds or more"
    fi
    check "most calls found the TPM" few_missed
    cat "$WORK/out"
    check "no handle is left between transactions" none_held
    cat "$WORK/out"
    check "descriptors are flat" flat descriptors 2 0
    cat "$WORK/out"
    check "threads are flat" flat threads 3 2
    cat "$WORK/out"
fi
check "nothing is left in the TPM" nothing_left
tail -n 1 "$WORK/out"
check "all that was reported as stored is there and verifies" "$WORK/worker" check soak "$WORK"/journal/*
cat "$WORK/out"
check "the same of the process that never ended the module" "$WORK/worker" check steady "$WORK/journal-steady"
cat "$WORK/out"
if [ -s "$WORK/writer.errors" ]; then
    echo "what the command said when it failed:"
    cut -d' ' -f2- "$WORK/writer.errors" | sort | uniq -c | sort -rn | head -n 5
fi
finish
