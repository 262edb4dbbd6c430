#!/usr/bin/env bash
# OpenSSL with pkcs11-provider, and nginx on top of it. Every openssl command
# must also end well: other modules crash it at exit.
# shellcheck source-path=SCRIPTDIR source=../../lib.sh
. "$(dirname "$0")/../../lib.sh"
start_swtpm "$WORK/t"
make_conf "$WORK/t"
"$COMMAND" init --label t --pin-source "file:$WORK/t/pin" --so-pin-source "file:$WORK/t/so-pin" >"$WORK/did"

cat >"$WORK/openssl.cnf" <<EOF
openssl_conf = init
[init]
providers = providers
[providers]
default = default_sect
pkcs11 = pkcs11_sect
[default_sect]
activate = 1
[pkcs11_sect]
pkcs11-module-path = $MODULE
pkcs11-module-token-pin = file:$WORK/t/pin
activate = 1
[req]
distinguished_name = dn
x509_extensions = ca
[dn]
[ca]
basicConstraints = critical, CA:true
subjectAltName = DNS:localhost
EOF
key='pkcs11:token=t;object=icn-identity;type=private'
p11() { OPENSSL_CONF=$WORK/openssl.cnf timeout 60 openssl "$@"; }

check "storeutl" p11 storeutl -text 'pkcs11:token=t'
output_has "public and private key" 'Total found: 2'
check "public key" p11 pkey -in "$key" -pubout -out "$WORK/key.pem"
echo message >"$WORK/m"
check "pkeyutl -sign" p11 pkeyutl -sign -rawin -in "$WORK/m" -inkey "$key" -out "$WORK/sig"
check "plain OpenSSL verifies it" openssl pkeyutl -verify -rawin -in "$WORK/m" -sigfile "$WORK/sig" -pubin -inkey "$WORK/key.pem"
check "pkeyutl -verify with the token" p11 pkeyutl -verify -rawin -in "$WORK/m" -sigfile "$WORK/sig" \
    -pubin -inkey 'pkcs11:token=t;object=icn-identity;type=public'
check "req -x509" p11 req -x509 -new -key "$key" -subj /CN=localhost -days 10 -out "$WORK/crt.pem"
check "plain OpenSSL verifies the certificate" openssl verify -CAfile "$WORK/crt.pem" "$WORK/crt.pem"
check "certificate request" p11 req -new -key "$key" -subj /CN=x -out "$WORK/csr.pem"
check "plain OpenSSL verifies the request" openssl req -in "$WORK/csr.pem" -verify -noout
check "cms -sign" p11 cms -sign -md sha512 -binary -nodetach -in "$WORK/m" -signer "$WORK/crt.pem" -inkey "$key" -outform PEM -out "$WORK/cms"
check "plain OpenSSL verifies the CMS" openssl cms -verify -inform PEM -in "$WORK/cms" -CAfile "$WORK/crt.pem" -purpose any -out "$WORK/m2"
check "its content is the message" cmp "$WORK/m" "$WORK/m2"

# An ECDSA key of the TPM.
p256='pkcs11:token=t;object=p256;type=private'
check "P-256 key pair" timeout 60 pkcs11-tool --module "$MODULE" --token-label t --login --pin "$PIN" \
    --keypairgen --key-type EC:prime256v1 --label p256 --id 50
ecdsa() {
    p11 pkey -in "$p256" -pubout -out "$WORK/p256.pem"
    p11 dgst -sha256 -sign "$p256" -out "$WORK/sig" "$WORK/m"
    openssl dgst -sha256 -verify "$WORK/p256.pem" -signature "$WORK/sig" "$WORK/m"
    p11 req -x509 -new -key "$p256" -subj /CN=p256 -out "$WORK/p256.crt"
    openssl verify -CAfile "$WORK/p256.crt" "$WORK/p256.crt"
}
check "P-256 signature and certificate, verified by plain OpenSSL" ecdsa

# A token that needs no PIN, and one whose PIN the module has, for a provider
# that has none.
"$COMMAND" init --label unattended --no-pin --force --so-pin-source "file:$WORK/t/so-pin" >"$WORK/did"
sed '/^pkcs11-module-token-pin/d' "$WORK/openssl.cnf" >"$WORK/no-pin.cnf"
sed '$a[token.t]\npin_source = "file:'"$WORK"'/t/pin"\nread_only = true' "$WORK/t/icn-p11.conf" >"$WORK/t/by-itself.conf"
no_pin() { # TOKEN
    local key="pkcs11:token=$1;object=icn-identity;type=private"
    OPENSSL_CONF=$WORK/no-pin.cnf timeout 60 openssl pkeyutl -sign -rawin -in "$WORK/m" -inkey "$key" -out "$WORK/sig2" </dev/null
    OPENSSL_CONF=$WORK/no-pin.cnf timeout 60 openssl pkey -in "$key" -pubout -out "$WORK/key2.pem" </dev/null
    openssl pkeyutl -verify -rawin -in "$WORK/m" -sigfile "$WORK/sig2" -pubin -inkey "$WORK/key2.pem"
}
check "sign with a token that needs no PIN" no_pin unattended
by_itself() { ICN_P11_CONF=$WORK/t/by-itself.conf no_pin t; }
check "sign with pin_source, read-only" by_itself

tls() { # PORT: the page of a server, over TLS 1.3 and a verified certificate
    printf 'GET / HTTP/1.0\r\n\r\n' | timeout 20 openssl s_client -connect "127.0.0.1:$1" -servername localhost \
        -tls1_3 -CAfile "$WORK/crt.pem" -verify_return_error -verify_hostname localhost -quiet -ign_eof 2>/dev/null
}
s_server() {
    p11 s_server -accept 127.0.0.1:4433 -naccept 1 -www -tls1_3 -cert "$WORK/crt.pem" -key "$key" >"$WORK/server" 2>&1 &
    local server=$!
    wait_for grep -q ACCEPT "$WORK/server"
    tls 4433 >"$WORK/page"
    cat "$WORK/page" "$WORK/server"
    grep -q 'TLSv1.3' "$WORK/page"
    wait $server
}
check "s_server and s_client over TLS 1.3" s_server

# nginx wants the URI in a PEM file.
cat >"$WORK/uri.cnf" <<EOF
asn1 = SEQUENCE:pair
[pair]
description = "VISIBLESTRING:PKCS#11 Provider URI v1.0"
uri = "UTF8:$key"
EOF
openssl asn1parse -genconf "$WORK/uri.cnf" -noout -out "$WORK/uri.der"
{
    echo '-----BEGIN PKCS#11 PROVIDER URI-----'
    base64 "$WORK/uri.der"
    echo '-----END PKCS#11 PROVIDER URI-----'
} >"$WORK/uri.pem"
cat >"$WORK/nginx.conf" <<EOF
user root;
daemon off;
worker_processes 2;
env ICN_P11_CONF;
env OPENSSL_CONF;
pid $WORK/nginx.pid;
error_log $WORK/nginx.log info;
events {}
http {
    access_log off;
    server {
        listen 127.0.0.1:4434 ssl reuseport;
        ssl_protocols TLSv1.3;
        ssl_certificate $WORK/crt.pem;
        ssl_certificate_key $WORK/uri.pem;
        location / { return 200 "\$pid\n"; }
    }
}
EOF
both_workers() { # the process ids of two workers that answered, none of them in $1
    local pid seen=" " n=0
    for _ in $(seq 100); do
        pid=$(tls 4434 | tail -n 1 | tr -dc 0-9)
        [ -n "$pid" ] || continue
        case "$1 $seen" in *" $pid "*) continue ;; esac
        seen="$seen$pid "
        n=$((n + 1))
        if [ $n = 2 ]; then
            echo "$seen"
            return 0
        fi
    done
    echo "workers that answered:$seen" >&2
    cat "$WORK/nginx.log" >&2
    return 1
}
OPENSSL_CONF=$WORK/openssl.cnf nginx -c "$WORK/nginx.conf" -p "$WORK" >"$WORK/nginx.out" 2>&1 &
nginx=$!
pids+=("$nginx")
check "nginx starts" wait_for test -s "$WORK/nginx.pid"
first=$(both_workers "" 2>"$WORK/err") || true
cp "$WORK/err" "$WORK/out" 2>/dev/null || true
check "both workers of nginx serve TLS with the key" test -n "$first"
kill -HUP "$nginx"
again=$(both_workers "$first" 2>"$WORK/err") || true
check "and the new workers after a reload" test -n "$again"
kill -QUIT "$nginx"
status=0
wait "$nginx" || status=$?
verdict "nginx ends well" $status
check "no worker was ended by a signal" bash -c "! grep 'exited on signal' '$WORK/nginx.log'"
check "the PIN is in no log" bash -c "! grep -q '$PIN' '$WORK/t/log' '$WORK/nginx.log' 2>/dev/null"
finish
