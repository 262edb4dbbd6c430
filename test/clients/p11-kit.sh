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
finish
