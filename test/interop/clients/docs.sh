#!/usr/bin/env bash
# Runs the commands of the documents as they stand there: each block that is
# marked sh, in order, as a user of the installed module would on a terminal.
# Blocks marked console need hardware, and are not run. Documents that need no
# installed module run in cmd/icn-p11/docs_run_test.go instead.
# shellcheck source-path=SCRIPTDIR source=../../lib.sh
. "$(dirname "$0")/../../lib.sh"

# Types the PINs that a command asks for. A block that leaves a daemon behind
# does not close the terminal, so the end is told by a mark.
cat >"$WORK/type.exp" <<'EOF'
log_user 1
set timeout 60
spawn -noecho bash -c {bash -eu "$0"; printf '\n<<%d>>\n' $?} [lindex $argv 0]
expect {
    -re {SO PIN[^\n]*: ?$} { send "so-pin-4711\r"; exp_continue }
    -re {(PIN|pass phrase)[^\n]*: ?$} { send "user-pin-7\r"; exp_continue }
    -re {\n<<(\d+)>>} { exit $expect_out(1,string) }
    timeout { puts "no end after $timeout seconds" }
    eof { puts "no end" }
}
exit 1
EOF

# What README.md takes for granted: a TPM, and OpenSSL's configuration, which
# setup.md has.
before_README() { # HOME
    start_swtpm "$1/tpm"
    mkdir -p "$1/.config/icn"
    echo "device_path = \"swtpm:path=$1/tpm/s\"" >"$1/.config/icn/icn-p11.conf"
    sed -n '/^cat >openssl.cnf/,/^EOF/{//!p}' "$ROOT/docs/setup.md" >"$1/openssl.cnf"
    environment=(OPENSSL_CONF="$1/openssl.cnf")
}

# document FILE: all its blocks, in a home of their own.
document() {
    local home block name
    home=$WORK/home-$(basename "$1" .md)
    mkdir -p "$home" "$WORK/blocks"
    environment=()
    [ "$(type -t "before_$(basename "$1" .md)")" != function ] || "before_$(basename "$1" .md)" "$home"
    rm -f "$WORK/blocks"/*
    blocks "$1" "$WORK/blocks"
    chown -R alice "$home"
    for block in "$WORK/blocks"/*.sh; do
        name=$(basename "$block" .sh)
        check "$(basename "$1"), line $((10#$name)): $(grep -m 1 . "$block" | cut -c 1-60)" \
            setpriv --reuid alice --regid alice --clear-groups env -i -C "$home" \
            PATH="/usr/local/bin:$PATH" HOME="$home" LANG=C.UTF-8 TERM=dumb "${environment[@]}" expect "$WORK/type.exp" "$block"
    done
    if [ -e "$home/swtpm/pid" ]; then
        kill "$(cat "$home/swtpm/pid")"
    fi
}

id alice >/dev/null 2>&1 || useradd --no-create-home alice
chmod 755 "$WORK"
for doc in "$ROOT/README.md" "$ROOT/docs/setup.md" "$ROOT/docs/troubleshooting.md"; do
    document "$doc"
done
finish
