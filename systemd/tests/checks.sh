# SPDX-License-Identifier: Apache-2.0
# What is checked in the container: sourced by boot.sh, which sets what is not set here. The user
# alice is on the daemon's allow list, the user mallory is not.

config=/etc/gpulet/gpuletd.toml
socket=/run/gpulet/gpuletd.sock
# gpuletctl's exit status for a refused user, the daemon's for a bad config.
refused_status=3
config_status=78

# There is no GPU here: a program that behaves as MPS's control program stands in for it, and keeps
# what it is told where the real one keeps its logs.
write_control_program() {
    sed "s,@STATE@,/run/gpulet/mps/log," "$repository/daemon/tests/fixtures/mps-control.sh" \
        >"$root/usr/bin/nvidia-cuda-mps-control" &&
        chmod 755 "$root/usr/bin/nvidia-cuda-mps-control"
}

# Before the boot: two users, a model that takes its time, and a client built against what was
# installed.
prepare_root() {
    chroot "$root" useradd --create-home alice &&
        chroot "$root" useradd --create-home mallory &&
        mkdir -p "$root/srv/models" "$root/srv/torch" "$root/srv/profiles" &&
        cp -a "$root/usr/share/gpulet/models/echo" "$root/srv/models" &&
        cp -a "$root/usr/share/gpulet/models/digits" "$root/srv/torch" &&
        write_slow_model "$root/srv/models/slow" "$root/srv/profiles" &&
        write_control_program &&
        PKG_CONFIG_SYSROOT_DIR=$root PKG_CONFIG_LIBDIR=$root/usr/lib/pkgconfig build_client
}

# Not pkg-config --define-variable: what users of the package get is what is tried.
build_client() {
    local flags
    flags=$(pkg-config --cflags --libs gpulet) || return 1
    # shellcheck disable=SC2086
    cc -std=c11 -D_GNU_SOURCE -O1 -Wall -Wextra -Werror "$tests/client.c" $flags \
        -o "$root/usr/local/bin/client"
}

# write_config USER...
write_config() {
    local user users=
    for user; do
        users="$users\"$user\", "
    done
    cat <<END
models = ["/srv/models"]

[access]
users = [$users]

[[gpulet]]
name = "echo0"
mechanism = "replay"
share_pct = 100
profiles = "/srv/profiles"
models = ["echo"]

[[gpulet]]
name = "slow0"
mechanism = "replay"
share_pct = 100
profiles = "/srv/profiles"
models = ["slow"]
END
}

# Half a second a request, one at a time. Nothing reads the archive of a replayed model.
write_slow_model() {
    mkdir -p "$1" && echo "no archive" >"$1/model.pt" || return 1
    cat >"$1/model.toml" <<END
file = "model.pt"
slo_ms = 20000.0
max_batch = 1
warmup_count = 1

[[input]]
name = "input"
dtype = "f32"
shape = [-1, 4]

[[output]]
name = "output"
dtype = "f32"
shape = [-1, 4]
END
    cat >"$2/slow.json" <<END
{ "model": "slow", "points": [{ "rows": 1, "p50_ns": 500000000, "p99_ns": 510000000 }] }
END
}

# nspawn's options that lend the container this machine's libtorch, one line each; none where it
# has none or is another Debian.
libtorch_binds() {
    local library
    grep -q "VERSION_CODENAME=$release" /etc/os-release || return
    for library in $(ldd "$root/usr/lib/gpulet/libgpulet_torch.so" 2>/dev/null |
        awk '$2 == "=>" && $3 ~ /^\// { print $3 }'); do
        [ -e "$root$library" ] || echo "--bind-ro=$library"
    done
}

property() {
    inside systemctl show --property="$1" --value gpuletd.service
}

main_pid() {
    property MainPID
}

journal_says() {
    inside journalctl --no-pager --quiet -o cat --unit=gpuletd.service | grep -q -e "$1"
}

# Whether that user's request, a row of 256 numbers, is answered, and by the same numbers.
answers() {
    head -c 1024 "$root/usr/bin/gpuletctl" >"$work/row"
    inside_as "$1" gpuletctl infer echo -i - -o - <"$work/row" | cmp - "$work/row"
}

is_refused() {
    local output status
    output=$(inside_as "$1" gpuletctl infer echo --zeros 2>&1)
    status=$?
    echo "status $status, $output"
    [ "$status" -eq "$refused_status" ] && [[ $output == *"allow list"* ]]
}

# --- files ---

units_verify_clean() {
    local output
    output=$(inside systemd-analyze verify --man=no gpuletd.service gpuletd.socket \
        gpulet-mps.service 2>&1)
    local status=$?
    echo "$output"
    [ "$status" -eq 0 ] && [ -z "$output" ]
}

exposure_is_low() {
    local unit
    for unit in gpuletd.service gpulet-mps.service; do
        inside systemd-analyze security --no-pager --offline=true --threshold=25 "$unit" |
            tail -n 1
        [ "${PIPESTATUS[0]}" -eq 0 ] || return 1
    done
}

example_config_is_right() {
    inside runuser -u gpulet -- gpuletd --config "$config" --check
}

user_and_directories_exist() {
    inside id gpulet || return 1
    [ "$(inside stat -c %U:%a /var/lib/gpulet)" = gpulet:755 ] || return 1
    [ "$(inside stat -c %U:%a /var/lib/gpulet/models)" = root:755 ]
}

# --- the service ---

starts() {
    write_config alice | inside tee "$config" &&
        inside systemctl start gpuletd.service &&
        inside systemctl is-active gpuletd.service
}

# As much as the unit asks for, or, where this very machine may not raise limits, as it may.
may_lock_memory() {
    local expected=unlimited got
    prlimit --memlock=unlimited:unlimited true 2>/dev/null ||
        expected=$(prlimit --memlock --raw --noheadings --output HARD)
    # shellcheck disable=SC2016
    got=$(inside awk '/^Max locked memory/ { print $4 }' "/proc/$(main_pid)/limits")
    echo "locked memory: $got, expected: $expected"
    [ "$got" = "$expected" ]
}

runs_unprivileged() {
    local process user
    process=/proc/$(main_pid)
    user=$(inside id --user gpulet)
    inside grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' "$process/status"
    inside grep -q "^Uid:[[:space:]]*${user}[[:space:]]" "$process/status" &&
        inside grep -q '^CapEff:[[:space:]]*0*$' "$process/status" &&
        may_lock_memory
}

signal() {
    inside systemctl kill --kill-whom=main --signal="$1" gpuletd.service
}

has_new_pid() {
    local pid
    pid=$(main_pid)
    [ "$pid" -ne 0 ] && [ "$pid" -ne "$1" ] &&
        [ "$(property ActiveState)" = active ]
}

# comes_back SIGNAL SECONDS: after the signal another process serves within that time.
comes_back() {
    local before
    before=$(main_pid)
    signal "$1" && wait_until "$2" has_new_pid "$before"
}

keeps_config_on_bad_hup() {
    local before
    before=$(main_pid)
    write_broken_config || return 1
    signal HUP
    wait_until 5 journal_says "$1" || return 1
    [ "$(main_pid)" -eq "$before" ] && answers alice
}

reload_reports_bad_config() {
    ! inside systemctl reload gpuletd.service && [ "$(property ActiveState)" = active ]
}

write_broken_config() {
    echo 'nonsense = 1' | inside tee "$config"
}

reload_lets_in() {
    local before
    before=$(main_pid)
    write_config "$@" | inside tee "$config" &&
        inside systemctl reload gpuletd.service &&
        wait_until 5 answers "${!#}" &&
        [ "$(main_pid)" -eq "$before" ]
}

# A client that goes on through kill -9 of the daemon: its session ends, its next one answers.
client_reconnects() {
    local client log=$work/through.log
    inside_as alice client through 2 >"$log" 2>&1 &
    client=$!
    wait_until 10 grep -q answered "$log" && signal KILL
    wait "$client"
    local status=$?
    cat "$log"
    return "$status"
}

# Requests in flight when the service is stopped are answered before it ends.
stop_drains() {
    local client log=$work/burst.log
    inside_as alice client burst slow 4 >"$log" 2>&1 &
    client=$!
    wait_until 10 grep -q submitted "$log"
    inside systemctl stop gpuletd.service
    wait "$client"
    local status=$?
    cat "$log"
    [ "$status" -eq 0 ] && [ "$(property Result)" = success ]
}

# The sandbox lets libtorch load, compile and compute.
torch_runs() {
    inside tee "$config" <<END
models = ["/srv/torch"]
[access]
users = ["alice"]
END
    inside systemctl restart gpuletd.service && inside_as alice client burst digits 8
}

fails_once_on_bad_config() {
    write_broken_config || return 1
    ! inside systemctl start gpuletd.service || return 1
    # Longer than RestartSec: time for a restart that must not come.
    sleep 1.5
    inside systemctl show -p ActiveState,Result,ExecMainStatus,NRestarts gpuletd.service
    [ "$(property ActiveState)" = failed ] && [ "$(property NRestarts)" -eq 0 ] &&
        [ "$(property ExecMainStatus)" -eq "$config_status" ]
}

# --- the socket ---

# The client that starts the daemon may be told that the model is being loaded: it asks again.

first_client_starts_it() {
    [ "$(property ActiveState)" = inactive ] || return 1
    inside systemctl start gpuletd.socket &&
        [ "$(property ActiveState)" = inactive ] &&
        inside test -S "$socket" &&
        wait_until 15 answers alice && [ "$(property ActiveState)" = active ]
}

socket_outlives_service() {
    inside systemctl stop gpuletd.service
    inside test -S "$socket" && wait_until 15 answers alice
}

leaves_no_socket() {
    inside systemctl stop gpuletd.socket gpuletd.service && ! inside test -e "$socket"
}

# --- MPS ---

mps_property() {
    inside systemctl show --property="$1" --value gpulet-mps.service
}

# ask_mps COMMAND, as gpuletd asks.
ask_mps() {
    inside runuser -u gpulet -- env CUDA_MPS_PIPE_DIRECTORY=/run/gpulet/mps/pipe \
        /bin/sh -c "echo $1 | nvidia-cuda-mps-control"
}

mps_runs_beside_the_daemon() {
    inside systemctl start gpulet-mps.service && wait_until 10 ask_mps get_server_list || return 1
    inside stat -c '%n %U %a' /run/gpulet /run/gpulet/mps/pipe /run/gpulet/mps/log
    [ "$(inside stat -c %U:%a /run/gpulet/mps/pipe)" = gpulet:700 ] &&
        [ "$(inside stat -c %a /run/gpulet)" = 755 ] &&
        wait_until 15 answers alice
}

mps_stops_when_told() {
    inside systemctl stop gpulet-mps.service
    [ "$(mps_property Result)" = success ] && [ "$(mps_property ExecMainStatus)" -eq 0 ] &&
        ! inside test -e /run/gpulet/mps/pipe && inside test -S "$socket"
}

# --- coming and going ---

enables_both() {
    inside systemctl enable gpuletd.service && inside systemctl is-enabled gpuletd.socket
}

uninstalls() {
    local left
    inside systemctl disable gpuletd.service
    make -C "$repository" --no-print-directory uninstall DESTDIR="$root" PREFIX=/usr
    left=$(find "$root/etc" "$root/usr" -iname '*gpulet*' ! -path "$root/etc/gpulet*")
    echo "$left"
    [ -z "$left" ] && [ -e "$root$config" ]
}

run_checks() {
    check "systemd-analyze verify has nothing to say" units_verify_clean
    check "systemd-analyze security: exposure of 2.5 or less" exposure_is_low
    check "sysusers and tmpfiles were applied at boot" user_and_directories_exist
    check "the installed config is right" example_config_is_right

    check "the service starts without the socket unit" starts
    check "it has no privileges, and may lock memory" runs_unprivileged
    check "an unprivileged user on the list gets answers" answers alice
    check "a user not on the list is refused with a clear status" is_refused mallory
    check "kill -9 is followed by a restart" comes_back KILL 15
    check "a client that loses its session that way reconnects" client_reconnects
    check "a frozen daemon is restarted by the watchdog" comes_back STOP 25
    check "it was the watchdog" journal_says "Watchdog timeout"
    check "clients get answers again" answers alice
    check "SIGHUP with a broken config keeps the old one" keeps_config_on_bad_hup "nonsense"
    check "systemctl reload reports a broken config" reload_reports_bad_config
    check "systemctl reload lets a new user in" reload_lets_in alice mallory
    check "stopping it drains: what is in flight is answered" stop_drains

    check "the first client starts the service through the socket" first_client_starts_it
    check "with the socket, kill -9 is followed by a restart" comes_back KILL 15
    check "clients get answers again" answers alice
    check "the socket outlives the service" socket_outlives_service
    check "MPS runs as a unit of its own beside it" mps_runs_beside_the_daemon
    check "it stops when it is told to, and leaves the socket alone" mps_stops_when_told
    check "a stopped socket leaves no file" leaves_no_socket
    if [ "${#binds[@]}" -gt 0 ]; then
        check "libtorch runs in the sandbox" torch_runs
    else
        skip "libtorch runs in the sandbox" "no libtorch of $release here"
    fi
    inside systemctl stop gpuletd.service
    check "a bad config ends in exit status 78, once" fails_once_on_bad_config
    check "enabling the service enables its socket" enables_both
    check "uninstalling leaves the config and nothing else" uninstalls
}
