#!/usr/bin/env bash
# OpenSC's pkcs11-tool, whichever version the machine has.
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"
start_swtpm "$WORK/t"
make_conf "$WORK/t"
tool() { timeout 60 pkcs11-tool --module "$MODULE" "$@"; }
user() { tool --token-label t --login --pin "$PIN" "$@"; }

check "the free slot is listed" tool --list-slots
output_has "the free slot is uninitialised" uninitialized
check "C_InitToken" tool --init-token --slot 0 --label t --so-pin "$SO_PIN"
check "C_InitPIN" tool --init-pin --token-label t --login --login-type so --so-pin "$SO_PIN" --new-pin "$PIN"
check "the token and a new free slot are listed" tool --list-slots
output_has "token" 'token label *: t$'
output_has "free slot" 'Slot 1'
check "mechanisms" tool --list-mechanisms --token-label t
output_has "EDDSA with its size" 'EDDSA, keySize=\{255,255\}'
check "key pair" user --keypairgen --key-type EC:edwards25519 --label k --id 4b
check "another key pair" user --keypairgen --key-type EC:edwards25519 --label other --id 4c
check "objects" user --list-objects
output_has "private key" 'Private Key Object; EC_EDWARDS'
check "public objects without login" tool --token-label t --list-objects
output_has "public key" 'Public Key Object'

read_key() { # LABEL FILE: a PEM public key, from the PEM or DER that the version writes
    tool --token-label t --read-object --type pubkey --label "$1" -o "$WORK/raw"
    openssl pkey -pubin -in "$WORK/raw" -out "$2"
}
# pkcs11-tool ignores --label when it signs or verifies, and takes the first key
# it finds (OpenSC issue 3635): only --id chooses.
sign_and_verify() { # ID SIZE
    head -c "$2" /dev/urandom >"$WORK/m"
    user --sign --mechanism EDDSA --id "$1" -i "$WORK/m" -o "$WORK/sig"
    openssl pkeyutl -verify -rawin -in "$WORK/m" -sigfile "$WORK/sig" -pubin -inkey "$WORK/k.pem"
}
check "public key" read_key k "$WORK/k.pem"
# From 1,025 bytes on pkcs11-tool signs in parts.
for size in 1 32 1024 1025 100000; do
    check "sign $size bytes" sign_and_verify 4b $size
done
# openssl pkeyutl 3.0 cannot verify an empty message.
empty() {
    : >"$WORK/empty"
    user --sign --mechanism EDDSA --id 4b -i "$WORK/empty" -o "$WORK/empty.sig"
    test "$(stat -c %s "$WORK/empty.sig")" = 64
    tool --token-label t --verify --mechanism EDDSA --id 4b -i "$WORK/empty" --signature-file "$WORK/empty.sig" |
        grep 'Signature is valid'
}
check "sign and verify an empty file" empty
check "verify" tool --token-label t --verify --mechanism EDDSA --id 4b -i "$WORK/m" --signature-file "$WORK/sig"
echo more >>"$WORK/m"
tool --token-label t --verify --mechanism EDDSA --id 4b -i "$WORK/m" --signature-file "$WORK/sig" >"$WORK/out" 2>&1 || true
output_has "a changed file does not verify" 'Invalid signature'

openssl req -x509 -newkey ed25519 -nodes -keyout /dev/null -subj /CN=x -outform DER -out "$WORK/c.der" 2>/dev/null
check "write a certificate" user --write-object "$WORK/c.der" --type cert --label c --id 01
check "read it" tool --token-label t --read-object --type cert --label c -o "$WORK/c2.der"
check "it is the same" cmp "$WORK/c.der" "$WORK/c2.der"
echo data >"$WORK/d"
check "write data" user --write-object "$WORK/d" --type data --label d --private
check "read data" user --read-object --type data --label d -o "$WORK/d2"
check "it is the same" cmp "$WORK/d" "$WORK/d2"
check "delete data" user --delete-object --type data --label d
refuse "it is gone" user --read-object --type data --label d -o "$WORK/d3"
check "random" tool --token-label t --generate-random 64 -o "$WORK/r"
check "random has its length" test "$(stat -c %s "$WORK/r")" = 64

# An ECDSA key that the TPM itself signs with, for clients that know no Ed25519.
ecdsa() {
    user --sign --mechanism ECDSA-SHA256 --signature-format openssl --id 50 -i "$WORK/m" -o "$WORK/ecsig"
    tool --token-label t --read-object --type pubkey --id 50 -o "$WORK/ec.der"
    openssl pkey -pubin -inform DER -in "$WORK/ec.der" -out "$WORK/ec.pem" 2>/dev/null || cp "$WORK/ec.der" "$WORK/ec.pem"
    openssl dgst -sha256 -verify "$WORK/ec.pem" -signature "$WORK/ecsig" "$WORK/m"
}
check "P-256 key pair in the TPM" user --keypairgen --key-type EC:prime256v1 --label p256 --id 50
check "ECDSA signature, verified by OpenSSL" ecdsa
check "P-384 key pair in the TPM" user --keypairgen --key-type EC:secp384r1 --label p384 --id 51
check "AES key" user --keygen --key-type AES:32 --label aes --id 52
aes() {
    user --encrypt --mechanism AES-CBC-PAD --iv 000102030405060708090a0b0c0d0e0f --id 52 -i "$WORK/m" -o "$WORK/aes"
    user --decrypt --mechanism AES-CBC-PAD --iv 000102030405060708090a0b0c0d0e0f --id 52 -i "$WORK/aes" -o "$WORK/m2"
    cmp "$WORK/m" "$WORK/m2"
}
check "encryption and decryption" aes

check "--test" user --test
output_has "--test finds no errors" '^No errors'
check "--test-fork" user --test-fork
# pkcs11-tool ends well whatever its threads were answered, so read what they say.
threads() {
    user --test-threads ILGISLT0 --test-threads ILGISLT0 --test-threads ILGISLT0 >"$WORK/threads" 2>&1
    cat "$WORK/threads"
    for n in 0 1 2; do
        # 0.26 says rv:CKR_OK.
        grep -qE "Test thread $n returning rv( = 0|:CKR_OK)" "$WORK/threads"
    done
    ! grep -oE 'CKR_[A-Z_]+' "$WORK/threads" | grep -vxE 'CKR_OK|CKR_CRYPTOKI_ALREADY_INITIALIZED'
}
check "--test-threads" threads
check "change PIN" user --change-pin --new-pin new-pin-1
refuse "the old PIN is refused" user --list-objects
PIN=new-pin-1
check "sign with the new PIN" sign_and_verify 4b 10
check "unblock" tool --token-label t --init-pin --login --login-type so --so-pin "$SO_PIN" --new-pin third-pin
PIN=third-pin
check "sign after unblocking" sign_and_verify 4b 10

"$COMMAND" init --label unattended --no-pin --force --so-pin-source "file:$WORK/t/so-pin" >"$WORK/did"
unattended() { tool --token-label unattended "$@" </dev/null; }
no_pin() {
    unattended --sign --mechanism EDDSA -i "$WORK/m" -o "$WORK/sig"
    unattended --read-object --type pubkey --label icn-identity -o "$WORK/raw"
    openssl pkey -pubin -in "$WORK/raw" -out "$WORK/k.pem"
    openssl pkeyutl -verify -rawin -in "$WORK/m" -sigfile "$WORK/sig" -pubin -inkey "$WORK/k.pem"
}
check "sign with a token that needs no PIN" no_pin
check "key pair in it" unattended --keypairgen --key-type EC:edwards25519 --label k --id 4b
# The user PIN that was set last, from a file, for a program that has none.
printf '%s' "$PIN" >"$WORK/t/pin"
printf '[token.t]\npin_source = "file:%s"\n' "$WORK/t/pin" >>"$WORK/t/icn-p11.conf"
by_itself() { tool --token-label t --sign --mechanism EDDSA --id 4b -i "$WORK/m" -o "$WORK/sig" </dev/null; }
check "sign with pin_source" by_itself
echo 'read_only = true' >>"$WORK/t/icn-p11.conf"
check "sign with a read-only token" by_itself
refuse "no key pair in it" tool --token-label t --keypairgen --key-type EC:edwards25519 --label k --id 4d
output_has "the reason" CKR_TOKEN_WRITE_PROTECTED
check "log in all the same" user --sign --mechanism EDDSA --id 4b -i "$WORK/m" -o "$WORK/sig"
check "the PINs are in no log" bash -c "! grep -qE 'user-pin-7|so-pin-4711|new-pin-1|third-pin' '$WORK/t/log' 2>/dev/null"
finish
