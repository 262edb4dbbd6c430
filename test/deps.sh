#!/usr/bin/env bash
# Installs the Debian packages that a task needs and this machine lacks.
# usage: test/deps.sh build|demo|test|fuzz|arm64|lint|clients|interop|bench
set -euo pipefail

need=(gcc make binutils libc6-dev)
case ${1:-} in
build) ;;
demo) need+=(swtpm opensc p11-kit openssl) ;;
test) need+=(age gdb swtpm swtpm-tools tpm2-tools tpm2-abrmd libtss2-tcti-tabrmd0 dbus opensc p11-kit p11-kit-modules gnutls-bin openssl openssh-client openssh-server systemd git util-linux strace jq libssl-dev) ;;
fuzz) need+=(libssl-dev swtpm tpm2-tools valgrind jq openssl) ;;
arm64) need+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross file) ;;
lint) need+=(shellcheck git) ;;
clients) need+=(swtpm opensc p11-kit p11-kit-modules gnutls-bin openssl libengine-pkcs11-openssl openssh-client openssh-server openjdk-17-jdk-headless libnss3-tools curl iproute2 util-linux) ;;
interop) need+=(swtpm debootstrap util-linux openssl) ;;
bench) need+=(swtpm softhsm2 libtpm2-pkcs11-1 libtpm2-pkcs11-tools libtss2-tcti-swtpm0 tpm2-tools openssl strace) ;;
*)
    echo "usage: $0 build|demo|test|fuzz|arm64|lint|clients|interop|bench" >&2
    exit 2
    ;;
esac

missing=()
for p in "${need[@]}"; do
    # "Status: install ok installed"
    if ! dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed$'; then
        missing+=("$p")
    fi
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing: ${missing[*]}"
    sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    "${sudo[@]}" apt-get update -qq
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
if ! command -v go >/dev/null; then
    echo "Go 1.26 or later must be on PATH (https://go.dev/dl)" >&2
    exit 1
fi
