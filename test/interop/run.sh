#!/usr/bin/env bash
# make interop: the clients of Debian trixie (OpenSSL 3.5 with pkcs11-provider,
# nginx, OpenSC 0.26, p11-kit 0.25, GnuTLS 3.8) in a root of their own, which is
# made with debootstrap once and kept in the user's cache directory.
set -euo pipefail
cd "$(dirname "$0")/../.."

suite=trixie
packages=openssl,pkcs11-provider,opensc,p11-kit,p11-kit-modules,gnutls-bin,nginx-light,swtpm,iproute2,util-linux,procps,ca-certificates,expect,tpm2-tools,tpm2-abrmd,dbus,openssh-client,openssh-server,git
# Beside Debian's release of pkcs11-provider there is a later one, which knows X25519.
backport=pkcs11-provider
stamp="$packages $backport/$suite-backports"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/icn-p11
root=$cache/$suite

test/deps.sh interop
make --no-print-directory all

# The mirror of this machine, so that a proxy or a local one is used here too.
mapfile -t mirror < <(
    grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d/ 2>/dev/null |
        grep -vE 'security|snapshot' | head -n 1 | tr -d ' '
)

if [ "$(id -u)" != 0 ]; then
    echo "make interop needs root, for debootstrap and chroot" >&2
    exit 1
fi
# The stamp names what the root was made of, so that a change makes it anew, and
# so does a root in which a program that the tests run no longer starts.
# shellcheck disable=SC2016 # the shell inside expands its own arguments
usable() {
    [ "$(cat "$root/etc/icn-p11-root" 2>/dev/null)" = "$stamp" ] &&
        chroot "$root" /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin bash -c '
            openssl version && nginx -v && swtpm --version && ip -V && p11tool --version &&
            test -e /usr/lib/*/ossl-modules/pkcs11.so && test -e /opt/backports/usr/lib/*/ossl-modules/pkcs11.so &&
            command -v pkcs11-tool p11-kit certtool gnutls-serv gnutls-cli expect tpm2 tpm2-abrmd dbus-daemon ssh sshd git' >/dev/null 2>&1
}
if ! usable; then
    echo "making a Debian $suite root in $root"
    mkdir -p "$cache"
    new=$(mktemp -d "$cache/new-XXXXXX")
    trap 'rm -rf --one-file-system "$new"' EXIT
    debootstrap --variant=minbase --include="$packages" "$suite" "$new" "${mirror[@]}" >"$cache/debootstrap.log" 2>&1 ||
        { tail -n 20 "$cache/debootstrap.log" >&2; exit 1; }
    # shellcheck disable=SC2016 # the shell inside expands its own arguments
    chroot "$new" /bin/bash -euc '
        cd /tmp
        sed "s/ $1 / $1-backports /" /etc/apt/sources.list >/etc/apt/sources.list.d/backports.list
        apt-get update
        apt-get download "$2/$1-backports"
        dpkg-deb -x "$2"_*.deb /opt/backports' bash "$suite" "$backport" >>"$cache/debootstrap.log" 2>&1 ||
        { tail -n 20 "$cache/debootstrap.log" >&2; exit 1; }
    chmod 755 "$new"
    echo "$stamp" >"$new/etc/icn-p11-root"
    rm -rf --one-file-system "$root"
    mv "$new" "$root"
    trap - EXIT
fi

# All mounts, processes and the network live in namespaces that end with the
# shell inside.
# shellcheck disable=SC2016 # the shell inside expands its own arguments
exec unshare --mount --pid --net --fork --kill-child bash -euc '
    root=$1
    mount --make-rprivate /
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/tmp"
    mount -t tmpfs tmpfs "$root/run"
    mount --bind -o ro . "$root/srv"
    # What make install writes is gone with the namespace.
    mkdir -p "$root/etc/pkcs11/modules"
    mount -t tmpfs tmpfs "$root/usr/local"
    mount -t tmpfs tmpfs "$root/etc/pkcs11/modules"
    make --no-print-directory install DESTDIR="$root" >/dev/null
    chmod 1777 "$root/tmp"
    exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
        bash /srv/test/interop/inside.sh
' bash "$root"
