#!/usr/bin/env bash
# What pkcs11-tool does from 0.26 on: other names of the curve, and importing
# Ed25519 keys.
# shellcheck source-path=SCRIPTDIR source=../../lib.sh
. "$(dirname "$0")/../../lib.sh"
start_swtpm "$WORK/t"
make_conf "$WORK/t"
"$COMMAND" init --label t --pin-source "file:$WORK/t/pin" --so-pin-source "file:$WORK/t/so-pin" >"$WORK/did"
tool() { timeout 60 pkcs11-tool --module "$MODULE" --token-label t "$@"; }
user() { tool --login --pin "$PIN" "$@"; }

sign_and_verify() { # ID PUBLIC-KEY
    head -c 100 /dev/urandom >"$WORK/m"
    user --sign --mechanism EDDSA --id "$1" -i "$WORK/m" -o "$WORK/sig"
    openssl pkeyutl -verify -rawin -in "$WORK/m" -sigfile "$WORK/sig" -pubin -inkey "$2"
}
id=10
for curve in EC:ed25519 EC:Ed25519 EC:1.3.101.112 EC:edwards25519; do
    check "key pair $curve" user --keypairgen --key-type "$curve" --label "$curve" --id "$id"
    check "its public key" tool --read-object --type pubkey --label "$curve" -o "$WORK/key"
    check "it signs" sign_and_verify "$id" "$WORK/key"
    id=$((id + 1))
done
refuse "another curve" user --keypairgen --key-type EC:ed448 --label no

openssl genpkey -algorithm ed25519 -outform DER -out "$WORK/own.der"
openssl pkey -inform DER -in "$WORK/own.der" -pubout -outform DER -out "$WORK/own-pub.der"
check "import a private key" user --write-object "$WORK/own.der" --type privkey --label own --id 07 --usage-sign
check "import its public key" user --write-object "$WORK/own-pub.der" --type pubkey --label own --id 07
check "it signs" sign_and_verify 07 "$WORK/own-pub.der"
check "read the public key" tool --read-object --type pubkey --label own -o "$WORK/own"
same() { openssl pkey -pubin -in "$WORK/own" -outform DER | cmp - "$WORK/own-pub.der"; }
check "it is the same" same
check "delete both" user --delete-object --type privkey --label own
check "and the public one" user --delete-object --type pubkey --label own
finish
