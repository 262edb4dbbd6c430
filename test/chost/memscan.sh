#!/bin/sh
# Searches the memory of processes that use the module at $MODULE (default: the
# built one) for the key and the PINs, with and without an unlock timeout.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
MODULE=$(realpath "${MODULE:-$here/../../build/icn-p11.so}")
export MODULE

work=$(mktemp -d "${TMPDIR:-/tmp}/icn-p11-memscan.XXXXXX")
swtpm_pid=
cleanup() {
	if [ -n "$swtpm_pid" ]; then
		kill "$swtpm_pid" 2>/dev/null || true
		wait "$swtpm_pid" 2>/dev/null || true
	fi
	rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

${CC:-gcc} -O1 -g -Wall -Wextra -Wno-unused-parameter -Werror -pthread -o "$work/memscan" "$here/memscan.c" -ldl

mkdir "$work/tpm"
swtpm socket --tpm2 --tpmstate dir="$work/tpm" --server type=unixio,path="$work/s" \
	--ctrl type=unixio,path="$work/s.ctrl" --flags not-need-init,startup-clear 2>"$work/swtpm.log" &
swtpm_pid=$!
until [ -S "$work/s" ] && [ -S "$work/s.ctrl" ]; do
	kill -0 "$swtpm_pid" 2>/dev/null || { cat "$work/swtpm.log" >&2; exit 1; }
	sleep 0.05
done

# scan MODULE SECONDS [plain]: with that auto_lock_timeout_secs, a store and a
# key of its own. It runs where core dumps may go.
scan() {
	dir=$work/$2$3
	rm -rf "$dir"
	mkdir -m 700 "$dir" "$dir/store"
	cat >"$dir/icn-p11.conf" <<CONF
device_path = "swtpm:path=$work/s"
sealed_blob_dir = "$dir/store"
auto_lock_timeout_secs = $2
log_file = "$dir/log"
CONF
	head -c 32 /dev/urandom >"$dir/seed"
	openssl dgst -sha512 -binary "$dir/seed" >"$dir/hash"
	echo "auto_lock_timeout_secs = $2${3:+, without memfd_secret}:"
	if ! (cd "$dir" && MODULE=$1 ICN_P11_CONF=$dir/icn-p11.conf "$work/memscan" "$dir/seed" "$dir/hash" "$2" ${3:+"$3"}); then
		echo "memscan: secrets were found, or the search failed" >&2
		[ ! -s "$dir/log" ] || tail -n 20 "$dir/log" >&2
		return 1
	fi
}

status=0
scan "$MODULE" 0 "" || status=1
scan "$MODULE" 300 "" || status=1
scan "$MODULE" 300 plain || status=1
# The build of a toolchain that lacks runtime/secret.
make -s -C "$here/../.." GOEXPERIMENT=noruntimesecret module="$work/icn-p11.so" "$work/icn-p11.so" >"$work/make.log" 2>&1 ||
	{ cat "$work/make.log" >&2; exit 1; }
echo "without runtime/secret:"
scan "$work/icn-p11.so" 0 "" || status=1
scan "$work/icn-p11.so" 300 "" || status=1
[ "$status" = 0 ] && echo "memscan: ok"
exit "$status"
