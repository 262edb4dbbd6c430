#!/usr/bin/env bash
# p11-kit: the registration file, and the proxy module.
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"
start_swtpm "$WORK/t"
make_conf "$WORK/t"
"$COMMAND" init --label t --pin-source "file:$WORK/t/pin" --so-pin-source "file:$WORK/t/so-pin" >"$WORK/did"

# p11-kit reads a user's modules from here; root has none, unless it is told.
export XDG_CONFIG_HOME=$WORK/config HOME=$WORK
mkdir -p "$WORK/config/pkcs11/modules"
echo "module: $MODULE" >"$WORK/config/pkcs11/modules/icn-p11.module"
user=()
if [ "$(id -u)" = 0 ]; then
    # p11-kit ignores the user's configuration for root: be another user.
    chmod -R a+rwX "$WORK"
    chown -R nobody "$WORK"
    cp "$MODULE" "$WORK/icn-p11.so"
    chmod 755 "$WORK/icn-p11.so"
    echo "module: $WORK/icn-p11.so" >"$WORK/config/pkcs11/modules/icn-p11.module"
    user=(setpriv --reuid nobody --clear-groups)
fi
check "list-modules" "${user[@]}" p11-kit list-modules
output_has "the module" '^(icn-p11: |module: icn-p11)'
output_has "its token" 'token: t'
proxy=$(find /usr/lib -name p11-kit-proxy.so -print -quit)
echo message >"$WORK/m"
chmod a+r "$WORK/m"
check "sign through the proxy" "${user[@]}" pkcs11-tool --module "$proxy" --token-label t --login --pin "$PIN" \
    --sign --mechanism EDDSA --label icn-identity -i "$WORK/m" -o "$WORK/sig"
pkcs11-tool --module "$MODULE" --token-label t --read-object --type pubkey --label icn-identity -o "$WORK/k" >/dev/null 2>&1
check "verify" openssl pkeyutl -verify -rawin -in "$WORK/m" -sigfile "$WORK/sig" -pubin -inkey "$WORK/k"

# The remote protocol lists Ed25519 keys, and carries no mechanism for them:
# docs/fleet.md says so, and has to change when that does.
client=$(find /usr/lib -name p11-kit-client.so -print -quit)
mkdir -m 755 "$WORK/run"
[ ${#user[@]} = 0 ] || chown nobody "$WORK/run"
cp "$MODULE" "$WORK/served.so"
chmod 755 "$WORK/served.so"
"${user[@]}" p11-kit server --foreground --name "$WORK/run/p11" --provider "$WORK/served.so" 'pkcs11:token=t' >"$WORK/server" 2>&1 &
pids+=($!)
wait_for test -S "$WORK/run/p11"
export P11_KIT_SERVER_ADDRESS=unix:path=$WORK/run/p11
check "remote: list" "${user[@]}" pkcs11-tool --module "$client" --token-label t --list-objects --type pubkey
output_has "remote: the key" 'icn-identity'
check "remote: mechanisms" "${user[@]}" pkcs11-tool --module "$client" --token-label t --list-mechanisms
output_has "remote: digests are carried" 'SHA256'
lacks() { ! grep -E -- "$1" "$WORK/mechanisms"; }
cp "$WORK/out" "$WORK/mechanisms"
check "remote: EdDSA is not" lacks 'EDDSA|1057|EDWARDS|1055'
remote_sign() {
    "${user[@]}" pkcs11-tool --module "$client" --token-label t --login --pin "$PIN" \
        --sign --mechanism EDDSA --label icn-identity -i "$WORK/m" -o "$WORK/remote" || return 1
}
refuse "remote: sign" remote_sign
output_has "remote: for want of the mechanism" CKR_MECHANISM_INVALID
remote_digest() {
    "${user[@]}" pkcs11-tool --module "$client" --token-label t --hash --mechanism SHA256 -i "$WORK/m" -o "$WORK/remote"
    sha256sum "$WORK/m" | grep -q "^$(od -An -v -tx1 "$WORK/remote" | tr -d ' \n') "
}
check "remote: a digest" remote_digest
finish
