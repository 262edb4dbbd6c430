#!/usr/bin/env bash
# A GnuTLS server whose key is in the token.
# shellcheck source-path=SCRIPTDIR source=../../lib.sh
. "$(dirname "$0")/../../lib.sh"
start_swtpm "$WORK/t"
make_conf "$WORK/t"
"$COMMAND" init --label t --pin-source "file:$WORK/t/pin" --so-pin-source "file:$WORK/t/so-pin" >"$WORK/did"
export GNUTLS_PIN=$PIN
key='pkcs11:token=t;object=icn-identity;type=private'
printf 'cn = "localhost"\ndns_name = "localhost"\nexpiration_days = 10\nca\nsigning_key\ntls_www_server\n' >"$WORK/template"
check "public key" timeout 60 p11tool --provider "$MODULE" --batch --login --export-pubkey --outfile "$WORK/key.pem" "$key"
check "certificate" timeout 60 certtool --provider "$MODULE" --generate-self-signed --template "$WORK/template" \
    --load-privkey "$key" --load-pubkey "$WORK/key.pem" --outfile "$WORK/crt.pem"
timeout 100 gnutls-serv --provider "$MODULE" --port 4435 --x509keyfile "$key" --x509certfile "$WORK/crt.pem" --http >"$WORK/server" 2>&1 &
server=$!
pids+=("$server")
check "gnutls-serv listens" wait_for bash -c 'exec 3<>/dev/tcp/127.0.0.1/4435'
client() {
    printf 'GET / HTTP/1.0\r\n\r\n' | timeout 30 gnutls-cli --x509cafile "$WORK/crt.pem" --port 4435 127.0.0.1 \
        --verify-hostname localhost --priority 'NORMAL:-VERS-ALL:+VERS-TLS1.3'
}
check "gnutls-cli connects" client
output_has "with a verified certificate" 'certificate is trusted'
output_has "over TLS 1.3 with EdDSA" 'TLS1.3.*EdDSA-Ed25519'
finish
