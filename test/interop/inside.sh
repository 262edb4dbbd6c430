#!/usr/bin/env bash
# Runs in the trixie root, with the repository at /srv and a network of its own.
set -uo pipefail
ip link set lo up

passed=0 failed=()
for script in /srv/test/clients/*.sh /srv/test/interop/clients/*.sh; do
    echo "== $(basename "$script") ($(. /etc/os-release; echo "$VERSION_CODENAME"))"
    if bash "$script"; then
        passed=$((passed + 1))
    else
        failed+=("$script")
    fi
done
# The pages of clients that are here in another version than on the host, or only here.
echo "== pages.sh"
if bash /srv/test/pages.sh pkcs11-tool openssl-provider gnutls p11-kit; then
    passed=$((passed + 1))
else
    failed+=(/srv/test/pages.sh)
fi
for f in "${failed[@]}"; do
    echo "FAILED: $f"
done
echo "$passed passed, ${#failed[@]} failed"
[ ${#failed[@]} = 0 ]
