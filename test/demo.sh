#!/usr/bin/env bash
# make demo: an identity whose key is sealed to a TPM, from nothing to a
# verified signature. Everything happens in a temporary directory.
set -euo pipefail
cd "$(dirname "$0")/.."

bold='' plain=''
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
run() {
    printf '  $ %s\n' "$*"
    "$@" 2>&1 | sed 's/^/    /'
}

say "1. Packages and build"
test/deps.sh demo
make --no-print-directory all
module=$PWD/build/icn-p11.so
command=$PWD/build/icn-p11

dir=$(mktemp -d)
tpm=
cleanup() {
    [ -z "$tpm" ] || { kill "$tpm" 2>/dev/null && wait "$tpm" 2>/dev/null; } || true
    rm -rf "$dir"
}
trap cleanup EXIT

say "2. A software TPM 2.0 (on hardware: /dev/tpmrm0)"
mkdir "$dir/tpm"
swtpm socket --tpm2 --tpmstate "dir=$dir/tpm" --server "type=unixio,path=$dir/tpm/s" \
    --ctrl "type=unixio,path=$dir/tpm/s.ctrl" --flags not-need-init,startup-clear >/dev/null 2>&1 &
tpm=$!
for _ in $(seq 500); do
    [ -S "$dir/tpm/s" ] && break
    sleep 0.01
done
[ -S "$dir/tpm/s" ] || { echo "swtpm did not start" >&2; exit 1; }
cat >"$dir/icn-p11.conf" <<EOF
device_path = "swtpm:path=$dir/tpm/s"
sealed_blob_dir = "$dir/store"
log_file = "$dir/log"
EOF
export ICN_P11_CONF=$dir/icn-p11.conf
echo "    swtpm listens on a socket in $dir"

say "3. An identity: token, PINs, and an Ed25519 key sealed to the TPM"
head -c 9 /dev/urandom | base64 >"$dir/pin"
head -c 9 /dev/urandom | base64 >"$dir/so-pin"
run "$command" init --label demo --pin-source "file:$dir/pin" --so-pin-source "file:$dir/so-pin"
run "$command" list

say "4. p11-kit finds the module (registered in a private directory)"
mkdir -p "$dir/config/pkcs11/modules"
as=()
if [ "$(id -u)" = 0 ]; then
    # p11-kit reads no personal configuration for root: show it as nobody.
    install -m 755 "$module" "$dir/icn-p11.so"
    module=$dir/icn-p11.so
    chown -R nobody "$dir"
    as=(setpriv --reuid nobody --clear-groups)
fi
echo "module: $module" >"$dir/config/pkcs11/modules/icn-p11.module"
chmod -R a+rX "$dir/config"
HOME=$dir XDG_CONFIG_HOME=$dir/config "${as[@]}" p11-kit list-modules >"$dir/modules"
grep -A 20 -E '^(icn-p11: |module: icn-p11)' "$dir/modules" | sed 's/^/    /'

say "5. pkcs11-tool signs a file with the sealed key"
echo "a message from $(uname -n)" >"$dir/message"
# pkcs11-tool ignores --label when it signs (OpenSC issue 3635): the ID chooses the key.
id=$("$command" show demo | sed -n 's/.*public key icn-identity, ID //p')
printf '  $ pkcs11-tool --module icn-p11.so --token-label demo --login --sign --mechanism EDDSA --id %s\n' "$id"
PIN=$(cat "$dir/pin") pkcs11-tool --module "$module" --token-label demo --login --pin env:PIN \
    --sign --mechanism EDDSA --id "$id" --input-file "$dir/message" --output-file "$dir/signature" 2>&1 | sed 's/^/    /'
printf '    signature: '
od -An -v -tx1 "$dir/signature" | tr -d ' \n' | fold -w 64 | sed '2,$s/^/               /'
echo

say "6. OpenSSL verifies it with the exported public key"
pkcs11-tool --module "$module" --token-label demo --read-object --type pubkey --label icn-identity \
    --output-file "$dir/key" >/dev/null 2>&1
run openssl pkeyutl -verify -rawin -in "$dir/message" -sigfile "$dir/signature" -pubin -inkey "$dir/key"
echo "tampered" >>"$dir/message"
if openssl pkeyutl -verify -rawin -in "$dir/message" -sigfile "$dir/signature" -pubin -inkey "$dir/key" >/dev/null 2>&1; then
    echo "a tampered file verifies: this must not happen" >&2
    exit 1
fi
echo "    and refuses a file that was changed after signing"

say "7. What is on disk opens on this TPM alone"
(cd "$dir/store" && find . -type f -printf '    %M %s bytes %P\n')
say "The identity: $("$command" did demo)"
echo "(The TPM and the key are removed again; install with 'make install' and run 'icn-p11 init' to make one that stays.)"
