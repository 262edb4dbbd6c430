#!/bin/sh
# Runs the C host programs against the module at $MODULE (default: the built
# one) with an swtpm and a store of their own.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
MODULE=${MODULE:-$here/../../build/icn-p11.so}
MODULE=$(realpath "$MODULE")
export MODULE
CC=${CC:-gcc}

work=$(mktemp -d "${TMPDIR:-/tmp}/icn-p11-chost.XXXXXX")
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

# Only C_ symbols leave the module, and all 104 of them.
others=$(nm -D --defined-only "$MODULE" | awk '$3 !~ /^C_/')
if [ -n "$others" ]; then
	echo "chost: the module exports more than C_ symbols:" >&2
	echo "$others" >&2
	exit 1
fi
count=$(nm -D --defined-only "$MODULE" | wc -l)
[ "$count" -eq 104 ] || { echo "chost: the module exports $count functions, not 104" >&2; exit 1; }
dynamic=$(readelf -dW "$MODULE")
for want in BIND_NOW SYMBOLIC 'Library soname: \[icn-p11.so\]'; do
	echo "$dynamic" | grep -q "$want" || { echo "chost: the module lacks $want" >&2; exit 1; }
done
! echo "$dynamic" | grep -q TEXTREL || { echo "chost: the module has text relocations" >&2; exit 1; }

flags="-O1 -g -Wall -Wextra -Wno-unused-parameter -Werror -pthread"
# shellcheck disable=SC2086 # several flags
build() { $CC $flags "$@" -ldl; }
for program in interfaces dlopen fork setuid; do
	build -o "$work/$program" "$here/$program.c"
done
build -fsanitize=address,undefined -fno-sanitize-recover=all -o "$work/hostile" "$here/hostile.c"

mkdir "$work/tpm" "$work/store"
chmod 700 "$work/store"
swtpm socket --tpm2 --tpmstate dir="$work/tpm" --server type=unixio,path="$work/s" \
	--ctrl type=unixio,path="$work/s.ctrl" --flags not-need-init,startup-clear 2>"$work/swtpm.log" &
swtpm_pid=$!
# Two sockets appear when it is ready; it ends at once when it cannot start.
until [ -S "$work/s" ] && [ -S "$work/s.ctrl" ]; do
	kill -0 "$swtpm_pid" 2>/dev/null || { cat "$work/swtpm.log" >&2; exit 1; }
done

cat >"$work/icn-p11.conf" <<CONF
device_path = "swtpm:path=$work/s"
sealed_blob_dir = "$work/store"
log_file = "$work/log"
CONF
ICN_P11_CONF=$work/icn-p11.conf
export ICN_P11_CONF

# A setuid program, started by somebody whose configuration names a log file, a
# store and a program in place of the TPM. The same program without the rights
# shows that the configuration does what it is not to do.
sudo='' nobody=''
if [ "$(id -u)" = 0 ]; then
	nobody="setpriv --reuid=65534 --regid=65534 --clear-groups"
else
	sudo=sudo
fi
"$work/setuid" make "$MODULE"
mkdir "$work/theirs"
chmod 711 "$work"
chmod 777 "$work/theirs"
cp -R "$work/store" "$work/theirs/store"
cat >"$work/theirs/conf" <<CONF
device_path = "cmd:touch $work/theirs/ran"
sealed_blob_dir = "$work/theirs/store"
log_file = "$work/theirs/log"
log_level = "debug"
CONF
ICN_P11_CONF=$work/theirs/conf "$work/setuid" chosen "$MODULE" "$work/theirs/log" "$work/theirs/ran" || {
	echo "chost: the configuration of the test does nothing" >&2
	exit 1
}
rm "$work/theirs/log" "$work/theirs/ran"
$sudo chown 0:0 "$work/setuid"
$sudo chmod 4755 "$work/setuid"
ICN_P11_CONF=$work/theirs/conf $nobody "$work/setuid" refused "$MODULE" "$work/theirs/log" "$work/theirs/ran" || {
	echo "chost: setuid failed" >&2
	exit 1
}

[ $# -gt 0 ] || set -- interfaces dlopen fork hostile
for program; do
	# LeakSanitizer stops threads and walks memory; Go's are not its own.
	if ! ASAN_OPTIONS=detect_leaks=0 "$work/$program"; then
		echo "chost: $program failed" >&2
		[ ! -s "$work/log" ] || tail -n 20 "$work/log" >&2
		exit 1
	fi
done
