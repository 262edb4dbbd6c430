#!/usr/bin/env bash
# The agent with OpenSSH, git, a container's namespaces and other users.
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"
start_swtpm "$WORK/t"
make_conf "$WORK/t"
echo 'log_level = "info"' >>"$ICN_P11_CONF"
"$COMMAND" init --label t --pin-source "file:$WORK/t/pin" --so-pin-source "file:$WORK/t/so-pin" >"$WORK/did"
export HOME=$WORK/home SSH_ASKPASS=$WORK/askpass SSH_ASKPASS_REQUIRE=force
mkdir "$HOME"
unset DISPLAY

# askpass ANSWER: what programs get that ask.
askpass() {
    printf '#!/bin/sh\necho "%s"\n' "$1" >"$SSH_ASKPASS.new"
    chmod 755 "$SSH_ASKPASS.new"
    mv "$SSH_ASKPASS.new" "$SSH_ASKPASS"
}
askpass no

# serve NAME ARGUMENT...: an agent at $WORK/NAME/s, started by the command in
# as; it is the last of pids.
as=()
serve() {
    local name=$1
    shift
    "${as[@]}" "$COMMAND" agent t --socket "$WORK/$name/s" "$@" >"$WORK/$name.env" 2>"$WORK/$name.err" &
    pids+=($!)
    wait_for test -s "$WORK/$name.env"
    # shellcheck source=/dev/null
    . "$WORK/$name.env"
}

# end NAME PID SOCKET SIGNAL: it must end the agent well, and remove the socket.
end() {
    local status=0
    kill "-$4" "$2"
    wait "$2" || status=$?
    [ ! -e "$3" ] || status=1
    verdict "$1" "$status"
}

# no COMMAND...: fails with 1 where the command fails; ssh and git have numbers
# that are taken for signals.
no() { "$@" || return 1; }

serve a --pin-source "file:$WORK/t/pin"
ssh-add -L >"$WORK/key.pub"
echo "me $(cat "$WORK/key.pub")" >"$WORK/allowed"

check "ssh-add -l" ssh-add -l
output_has "the key" 'icn-identity \(ED25519\)'
check "ssh-add -T" ssh-add -T "$WORK/key.pub"
echo "a message" >"$WORK/m"
check "ssh-keygen -Y sign" ssh-keygen -Y sign -U -f "$WORK/key.pub" -n file "$WORK/m"
verify_m() { ssh-keygen -Y verify -f "$WORK/allowed" -I me -n file -s "$WORK/m.sig" <"$WORK/m"; }
check "ssh-keygen -Y verify" verify_m
check "icn-p11 verify" "$COMMAND" verify "$WORK/m" --signature "$WORK/m.sig" --did "$(cat "$WORK/did")"

git_signed() {
    git init -q "$WORK/repo"
    cd "$WORK/repo"
    git config user.name me
    git config user.email me@example.org
    git config gpg.format ssh
    git config user.signingkey "$WORK/key.pub"
    git config gpg.ssh.allowedSignersFile "$WORK/allowed-git"
    echo "me@example.org $(cat "$WORK/key.pub")" >"$WORK/allowed-git"
    git commit -q -S --allow-empty -m signed
    git tag -s -m signed v1
    git verify-tag v1
    git verify-commit HEAD
}
check "git commit -S, git tag -s" git_signed
output_has "git verify-commit" 'Good "git" signature for me@example.org'

# An sshd of our own, with the key as the only way in.
user=$(id -un)
ssh-keygen -q -t ed25519 -N '' -f "$WORK/hostkey"
ssh-keygen -q -t ed25519 -N '' -f "$WORK/ca"
cp "$WORK/key.pub" "$WORK/authorized"
cat >"$WORK/sshd_config" <<EOC
HostKey $WORK/hostkey
PidFile none
UsePAM no
AuthenticationMethods publickey
AuthorizedKeysFile $WORK/authorized
TrustedUserCAKeys $WORK/ca.pub
StrictModes no
PermitRootLogin prohibit-password
AllowAgentForwarding yes
EOC
[ "$(id -u)" != 0 ] || mkdir -p /run/sshd
# serve_ssh: sshd at port, one that nobody else uses.
serve_ssh() {
    local try sshd
    for try in 1 2 3 4 5; do
        port=$(shuf -i 20000-30000 -n 1)
        /usr/sbin/sshd -D -e -f "$WORK/sshd_config" -o "ListenAddress=127.0.0.1:$port" 2>"$WORK/sshd.log" &
        sshd=$!
        wait_for begun "$sshd"
        if kill -0 "$sshd" 2>/dev/null; then
            pids+=("$sshd")
            return
        fi
        echo "sshd does not start at port $port (try $try):" >&2
        cat "$WORK/sshd.log" >&2
    done
    return 1
}
# begun PID: sshd listens, or is gone.
begun() { grep -q "^Server listening on 127.0.0.1 port $port" "$WORK/sshd.log" || ! kill -0 "$1"; }
serve_ssh
echo "[127.0.0.1]:$port $(cat "$WORK/hostkey.pub")" >"$WORK/known"
remote() {
    ssh -F none -p "$port" -o "UserKnownHostsFile=$WORK/known" -o StrictHostKeyChecking=yes -o BatchMode=yes \
        -o IdentityFile=none "$@"
}
wait_for ssh-keyscan -p "$port" 127.0.0.1
check "ssh logs in" remote "$user@127.0.0.1" echo in
output_has "in" '^in$'
hostprint=$(ssh-keygen -lf "$WORK/hostkey.pub" | cut -d' ' -f2)
logged() { grep -E -- "$1" "$WORK/t/log"; }
check "the log has the login" logged "msg=signed .*for=ssh-login user=$user host=SHA256:[^ ]+ client_pid=[0-9]+ client_uid=$(id -u)"
certified() {
    ssh-keygen -q -s "$WORK/ca" -I icn -n "$user" "$WORK/key.pub"
    : >"$WORK/authorized"
    remote -o "CertificateFile=$WORK/key-cert.pub" "$user@127.0.0.1" echo certified
    cp "$WORK/key.pub" "$WORK/authorized"
    [ "$(grep -c for=ssh-login "$WORK/t/log")" = 2 ]
}
check "ssh logs in with a certificate" certified
output_has "certified" '^certified$'
for_host() { logged for=ssh-login | grep -F "host=$hostprint "; }
check "and the host" for_host

# The other side has nothing but the connection.
far() { remote -A "$user@127.0.0.1" "$@"; }
check "ssh -A: list" far ssh-add -l
output_has "the key is there" 'icn-identity'
sign_far() {
    far "'$COMMAND' agent sign - --format raw" <"$WORK/m" >"$WORK/far.sig"
    "$COMMAND" verify "$WORK/m" --format raw --signature "$WORK/far.sig" --did "$(cat "$WORK/did")"
}
check "ssh -A: a raw signature" sign_far
output_has "of the key here" 'Good signature'
hop() { far "ssh -F none -p $port -o UserKnownHostsFile=$WORK/known -o BatchMode=yes $user@127.0.0.1 echo further"; }
check "ssh -A: a further login" hop
output_has "further" '^further$'
check "the log tells who asked" logged "msg=signed .*for=message .*forwarded=true"
askpass passphrase
refuse "ssh -A: lock" no far "SSH_ASKPASS=$SSH_ASKPASS SSH_ASKPASS_REQUIRE=force ssh-add -x"
check "it is not locked" ssh-add -T "$WORK/key.pub"

by_path() { remote -R "$WORK/there:$WORK/a/s" "$user@127.0.0.1" "'$COMMAND' agent list --socket '$WORK/there'"; }
check "ssh -R: the socket at a path there" by_path
output_has "the key" icn-identity

# A container has the socket, and neither network, processes nor files of here.
# In the root of test/interop, which is no mount point, mounts are private already.
namespaces=(--mount --propagation unchanged --net --ipc --uts --pid --fork --kill-child)
[ "$(id -u)" = 0 ] || namespaces+=(--user --map-root-user)
mkdir -p "$WORK/root"/{bin,run,work}
cp "$COMMAND" "$WORK/root/bin/icn-p11"
# shellcheck disable=SC2016 # the shell inside expands its own arguments
contained() {
    unshare "${namespaces[@]}" bash -euc '
        ! mountpoint -q / || mount --make-rprivate /
        mount -t tmpfs tmpfs "$1/run"
        touch "$1/run/agent.sock"
        mount --bind "$2" "$1/run/agent.sock"
        for lib in $(ldd "$1/bin/icn-p11" | grep -o "/[^ ]*" || true); do
            mkdir -p "$1${lib%/*}"
            cp -L "$lib" "$1$lib"
        done
        exec env -i SSH_AUTH_SOCK=/run/agent.sock /usr/sbin/chroot "$1" /bin/icn-p11 agent sign - --format raw' \
        bash "$WORK/root" "$WORK/a/s" <"$WORK/m" >"$WORK/contained.sig"
    "$COMMAND" verify "$WORK/m" --format raw --signature "$WORK/contained.sig" --did "$(cat "$WORK/did")"
}
check "a container with the socket alone" contained
output_has "a signature of the key here" 'Good signature'

# Other users: the socket's mode keeps them out, and the agent does.
if [ "$(id -u)" = 0 ]; then
    chmod 755 "$WORK"
    cp "$COMMAND" "$WORK/icn-p11"
    nobody=(setpriv --reuid nobody --clear-groups)
    refuse "another user cannot reach the socket" "${nobody[@]}" "$WORK/icn-p11" agent list --socket "$WORK/a/s"
    chmod 755 "$WORK/a"
    chmod 666 "$WORK/a/s"
    refuse "who can is refused" "${nobody[@]}" "$WORK/icn-p11" agent list --socket "$WORK/a/s"
    check "and named in the log" logged "msg=\"connection refused\" pid=[0-9]+ client_pid=[0-9]+ client_uid=$(id -u nobody)"
    mkdir -m 755 "$WORK/shared"
    as=(setpriv --bounding-set=-all --inh-caps=-all)
    serve shared --pin-source "file:$WORK/t/pin" --allow-uid "$(id -u nobody)" --ssh-only
    check "--allow-uid lets one in" "${nobody[@]}" "$WORK/icn-p11" agent sign "$WORK/m" --socket "$WORK/shared/s"
    refuse "--ssh-only" "${nobody[@]}" "$WORK/icn-p11" agent sign "$WORK/m" --format raw --socket "$WORK/shared/s"
    refuse "and no third one" setpriv --reuid daemon --clear-groups "$WORK/icn-p11" agent list --socket "$WORK/shared/s"
    # What the agent holds is not for others of its user, either.
    agent_pid=${pids[-1]}
    "${as[@]}" sleep 60 &
    pids+=($!)
    check "a process can be looked into" "${as[@]}" cat "/proc/${pids[-1]}/environ"
    refuse "but not the agent" "${as[@]}" cat "/proc/$agent_pid/environ"
    as=()
    end "SIGHUP ends it" "$agent_pid" "$WORK/shared/s" HUP
else
    echo "SKIPPED: what other users can do is tested by root alone, who can become one" | tee "$WORK/out"
    [ -z "${CI:-}" ] || verdict "other users" 1
fi
export SSH_AUTH_SOCK=$WORK/a/s

# Lock and unlock, with ssh-add.
askpass passphrase
check "ssh-add -x" ssh-add -x
refuse "no keys while it is locked" ssh-add -l
refuse "no login while it is locked" no remote "$user@127.0.0.1" true
askpass other
refuse "ssh-add -X with another passphrase" ssh-add -X
askpass passphrase
check "ssh-add -X" wait_for ssh-add -X
check "ssh logs in again" remote "$user@127.0.0.1" true

end "SIGTERM ends it" "${pids[1]}" "$WORK/a/s" TERM

# A person is asked.
cat >"$SSH_ASKPASS" <<EOC
#!/bin/sh
echo "\$SSH_ASKPASS_PROMPT: \$1" >>"$WORK/asked"
cat "$WORK/answer"
EOC
serve b --pin-source "file:$WORK/t/pin" --confirm
echo yes >"$WORK/answer"
check "yes: ssh logs in" remote "$user@127.0.0.1" true
asked() { grep -F -- "$1" "$WORK/asked"; }
check "it was asked what for" asked "For: an SSH login as \"$user\" on the host with the key $hostprint"
check "by whom" asked "Asked by: process"
check "as ssh-agent asks" asked "confirm: Sign with the key \"icn-identity\""
echo no >"$WORK/answer"
refuse "no: ssh does not" no remote "$user@127.0.0.1" true
refuse "no: git does not" no git -C "$WORK/repo" commit -q -S --allow-empty -m unsigned
finish
