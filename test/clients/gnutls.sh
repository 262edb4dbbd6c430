#!/usr/bin/env bash
# GnuTLS: p11tool and certtool.
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"
start_swtpm "$WORK/t"
make_conf "$WORK/t"
"$COMMAND" init --label t --pin-source "file:$WORK/t/pin" --so-pin-source "file:$WORK/t/so-pin" >"$WORK/did"
export GNUTLS_PIN=$PIN GNUTLS_SO_PIN=$SO_PIN
p11() { timeout 60 p11tool --provider "$MODULE" --batch "$@"; }

check "list tokens" p11 --list-tokens
output_has "the token" 'Label: t$'
check "list all" p11 --login --list-all 'pkcs11:token=t'
output_has "the key" 'EdDSA|Ed25519'
check "generate" p11 --login --generate-privkey=ed25519 --label g 'pkcs11:token=t'
# p11tool's default, SHA256, is no hash for EdDSA.
check "p11tool --test-sign" p11 --login --test-sign --hash SHA512 'pkcs11:token=t;object=g;type=private'
check "public key" p11 --login --export-pubkey --outfile "$WORK/g.pem" 'pkcs11:token=t;object=g;type=private'
check "OpenSSL reads it" openssl pkey -pubin -in "$WORK/g.pem" -noout
printf 'cn = "t"\nexpiration_days = 10\nsigning_key\n' >"$WORK/template"
check "self-signed certificate" timeout 60 certtool --provider "$MODULE" --generate-self-signed --template "$WORK/template" \
    --load-privkey 'pkcs11:token=t;object=g;type=private' --load-pubkey "$WORK/g.pem" --outfile "$WORK/c.pem"
check "OpenSSL verifies it" openssl verify -CAfile "$WORK/c.pem" "$WORK/c.pem"
check "write it" p11 --login --write --load-certificate "$WORK/c.pem" --label g 'pkcs11:token=t'
check "read it" p11 --export --outfile "$WORK/c2.pem" 'pkcs11:token=t;object=g;type=cert'
# Each tool writes a text of its own before the certificate.
for c in c c2; do
    openssl x509 -in "$WORK/$c.pem" -outform DER -out "$WORK/$c.der"
done
check "it is the same" cmp "$WORK/c.der" "$WORK/c2.der"

"$COMMAND" init --label unattended --no-pin --force --so-pin-source "file:$WORK/t/so-pin" >"$WORK/did"
unset GNUTLS_PIN GNUTLS_SO_PIN
check "p11tool --test-sign with a token that needs no PIN" p11 --test-sign --hash SHA512 'pkcs11:token=unattended;object=icn-identity;type=private'
check "and with --login" p11 --login --test-sign --hash SHA512 'pkcs11:token=unattended;object=icn-identity;type=private'
printf '[token.t]\npin_source = "file:%s"\nread_only = true\n' "$WORK/t/pin" >>"$WORK/t/icn-p11.conf"
check "and with pin_source, read-only" p11 --test-sign --hash SHA512 'pkcs11:token=t;object=g;type=private'
finish
