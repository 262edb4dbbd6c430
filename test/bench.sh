#!/usr/bin/env bash
# The benchmarks run, with every module, and a report comes of their figures. It
# says nothing about speed.
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
cd "$ROOT" || exit
test/deps.sh bench
export MODULE

quick() { timeout 400 go run ./bench run -quick -o "$WORK/bench.json"; }
check "a short run" quick
# jq -e fails where the answer is false.
has() { jq -e "$1" "$WORK/bench.json"; }
for subject in "icn-p11 Ed25519, unlocked" "icn-p11 Ed25519, unsealed each time" "SoftHSM2 Ed25519" "SoftHSM2 P-256" "tpm2-pkcs11 P-256" \
    "bare edwards25519 signature" "TPM2_Unseal and bare signature"; do
    check "signatures of $subject" has "[.Batches[] | select(.Subject == \"$subject\" and .Operation == \"sign-32\" and .P50 > 0)] | length == 1"
done
check "icn-p11 has every operation" has '[.Batches[] | select(.Subject | startswith("icn-p11 Ed25519")) | select(.RV != 0)] | length == 0'
check "no process that starts with others fails" has '[.Starts | to_entries[] | select(.key | startswith("icn-p11")) | .value.Failed] | add == 0'
check "what processes on one TPM do is stored under that name" has '[.Together, .Starts | has("icn-p11 Ed25519, unsealed each time, shared TPM") and (has("icn-p11 Ed25519, unsealed each time") | not)] | all'
check "later logins of a process need less memory from the kernel than its first" has '[.Logins[] | .[-1].Faults < .[0].Faults / 10] | length > 0 and all'
check "memory grows in the order in which it is measured" has '[.Cold[][] | .rss_before < .rss_loaded and .rss_loaded <= .rss_ready and (.rss_found == 0 or .rss_ready <= .rss_found)] | all'
# Those of 10,000 objects are left out of a short run.
check "the targets are judged" has '[.Targets[] | select(.Verdict == "met" or .Verdict == "missed")] | length == 17'
check "how often the machine interrupts" has '.Machine.Pauses | .Every == 0 or .Every > .Median'
check "a warm signature is one TPM command" has '[.Commands[] | select(.Name == "C_Sign") | .Commands] == [["Unseal"]]'
# shellcheck disable=SC2016
check "a bare signature takes no longer than what has more to do" has '
    ([.Batches[] | select(.Operation == "sign-32") | {(.Subject): .P50}] | add) as $t
    | $t["bare edwards25519 signature"] < $t["icn-p11 Ed25519, unsealed each time"]'

cp docs/performance.md "$WORK/performance.md"
check "a report" go run ./bench report "$WORK/bench.json" "$WORK"
check "says that it was a quick run" grep -q 'A quick run' "$WORK/performance.md"
check "has a chart" grep -q '</svg>' "$WORK/performance.svg"
refuse "no report of something else" go run ./bench report Makefile "$WORK"

finish
