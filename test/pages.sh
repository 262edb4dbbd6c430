#!/usr/bin/env bash
# make clients: the pages of docs/clients. Each runs in one shell, as a user
# would type it, with what the README there begins with before it, and with a
# TPM, a home and a network of its own.
# usage: test/pages.sh [PAGE...]
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
if [ "$(id -u)" != 0 ]; then
    echo "make clients needs root, for a network of each page's own" >&2
    exit 1
fi

# before_PAGE prints what a page takes for granted besides the README, more_PAGE
# what is run behind it; after_PAGE checks what all that has printed.

before_openssh() {
    cat <<'EOF'
mkdir -p /run/sshd
ssh-keygen -q -t ed25519 -N '' -f hostkey
cat >sshd_config <<CONFIG
ListenAddress 127.0.0.1:2222
HostKey $HOME/hostkey
PidFile none
UsePAM no
AuthenticationMethods publickey
AuthorizedKeysFile $HOME/.ssh/authorized_keys
StrictModes no
PermitRootLogin prohibit-password
CONFIG
/usr/sbin/sshd -D -e -f sshd_config 2>sshd.log &
echo "server $(cat hostkey.pub)" >known_hosts
cat >ssh_config <<CONFIG
Host server
    HostName 127.0.0.1
    Port 2222
    HostKeyAlias server
    UserKnownHostsFile $HOME/known_hosts
    IdentityFile none
CONFIG
until ssh-keyscan -p 2222 127.0.0.1 >/dev/null 2>&1; do sleep 0.05; done
# The configuration of the user is in the home that the password database names.
ssh() { command ssh -F ssh_config "$@"; }
EOF
}

# X25519 takes a later pkcs11-provider than that of the trixie release.
before_openssl-provider() { echo "export OPENSSL_MODULES=$(echo /opt/backports/usr/lib/*/ossl-modules)"; }

# The engine's configuration, its variable and its certificate are used on.
before_curl() { cat "$WORK"/openssl-engine.md/*.sh; }

# All that Java finds in the token has to work.
more_java() { echo "java '$ROOT/test/java/Services.java' java.cfg \"\$PIN\""; }

before_go() { echo "ln -s '$ROOT' ~/icn-p11"; }

after_pkcs11-tool() {
    output_has "no errors" '^No errors'
    # It asks for the value of each secret key, whatever the key's attributes say.
    sed -i '/^warning: .*(VALUE) failed: rv = CKR_ATTRIBUTE_SENSITIVE/d' "$WORK/out"
    lacks "no other warning" '^warning:|CKR_'
}
after_openssl-engine() { output_has "OpenSSL verifies" '^Verified OK'; }
after_openssl-provider() {
    output_has "Ed25519" 'Signature Verified Successfully'
    output_has "P-256" '^Verified OK'
    output_has "TLS" 'TLSv1.3'
}
after_openssh() {
    output_has "ssh logs in" '^logged in$'
    output_has "with the P-256 key" 'ECDSA'
}
after_java() {
    output_has "the key store has the key" '^web, PrivateKeyEntry'
    output_has "OpenSSL verifies" '^Verified OK'
    output_has "all that Java is offered works" 'algorithms used, 0 failed'
}
after_nss() {
    output_has "NSS has loaded the module" 'Library file: '
    output_has "the key of pkcs11-tool" '> ec .* tls$'
    output_has "the identity" '> null .* icn-identity$'
    output_has "the certificate with its key" 'services:web .* u,u,u'
    lacks "no errors" 'SEC_ERROR|SSL_ERROR|PR_.*ERROR'
}
after_gnutls() {
    output_has "ECDSA" 'Signing using ECDSA-SHA256... ok'
    output_has "EdDSA" 'Signing using EdDSA-Ed25519... ok'
    output_has "TLS with the identity" 'TLS1.3.*EdDSA-Ed25519'
    output_has "TLS with the P-256 key" 'TLS1.3.*ECDSA-SECP256R1'
}
after_curl() { output_has "the server has seen the certificate" 'Subject: CN=client'; }
after_p11-kit() { output_has "OpenSSL verifies" '^Verified OK'; }
after_go() {
    output_has "Ed25519" '^served with a ed25519.PublicKey$'
    output_has "P-256" '^served with a \*ecdsa.PublicKey$'
}

# lacks NAME PATTERN: the opposite of output_has.
lacks() {
    local status=0
    ! grep -E -- "$2" "$WORK/out" || status=1
    verdict "$1" "$status"
}

# run SCRIPT HOME: in a network with nothing but lo; whatever it starts ends with it.
# shellcheck disable=SC2016 # the shell inside expands its own arguments
run() {
    timeout 180 unshare --net --pid --fork --kill-child /usr/bin/env -i -C "$2" \
        PATH="$(dirname "$COMMAND"):$PATH" HOME="$2" XDG_RUNTIME_DIR="$2" LANG=C.UTF-8 TERM=dumb "${go[@]}" \
        bash -c 'ip link set lo up && bash -eu "$0"' "$1" </dev/null
}

page() { # NAME
    local home=$WORK/$1 script=$WORK/$1.sh file block n status
    start_swtpm "$home/tpm"
    mkdir -p "$home/.config/icn"
    cat >"$home/.config/icn/icn-p11.conf" <<EOF
device_path = "swtpm:path=$home/tpm/s"
sealed_blob_dir = "$home/store"
log_file = "$home/log"
log_level = "debug"
EOF
    for file in README.md "$1.md"; do
        [ "$file" = README.md ] || [ "$(type -t "before_$1")" != function ] || "before_$1" >>"$script"
        for block in "$WORK/$file"/*.sh; do
            n=$(basename "$block" .sh)
            echo "echo '$file, line $((10#$n))' >'$home/at'" >>"$script"
            sed "s:/usr/local/lib/pkcs11/icn-p11.so:$MODULE:" "$block" >>"$script"
        done
    done
    [ "$(type -t "more_$1")" != function ] || "more_$1" >>"$script"
    echo "echo the end >'$home/at'" >>"$script"
    status=0
    run "$script" "$home" >"$WORK/out" 2>&1 || status=$?
    [ "$(cat "$home/at")" = "the end" ] || status=1
    verdict "$1.md ($(cat "$home/at"))" "$status"
    [ "$status" != 0 ] || "after_$1"
    if grep -E 'level=ERROR|msg=panic' "$home/log" >"$WORK/out"; then
        verdict "the module's log of $1.md" 1
    fi
}

pages=("$@")
[ $# != 0 ] || pages=(pkcs11-tool openssl-engine openssh java nss gnutls curl p11-kit go)
for file in "$ROOT"/docs/clients/*.md; do
    mkdir "$WORK/$(basename "$file")"
    blocks "$file" "$WORK/$(basename "$file")"
done
go=()
if command -v go >/dev/null; then
    # The pages have no network: what the build needs is fetched before.
    (cd "$ROOT" && go mod download github.com/miekg/pkcs11)
    go=(GOMODCACHE="$(go env GOMODCACHE)" GOCACHE="$(go env GOCACHE)")
fi
for p in "${pages[@]}"; do
    page "$p"
done
finish
