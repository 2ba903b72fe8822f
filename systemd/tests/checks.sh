# SPDX-License-Identifier: Apache-2.0
# What is checked in the container: sourced by boot.sh. The user alice is on the daemon's allow
# list, the user mallory is not.

config=/etc/gpulet/gpuletd.toml
socket=/run/gpulet/gpuletd.sock
# gpuletctl's exit status for a refused user, the daemon's for a bad config.
refused_status=3
config_status=78

# Before the boot: users, and a config that lets one of them in.
prepare_root() {
    chroot "$root" useradd --create-home alice
    chroot "$root" useradd --create-home mallory
    write_config >"$root$config"
}

write_config() {
    echo "alice $*"
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

answers() {
    inside_as "$1" gpuletctl infer echo
}

is_refused() {
    local output status
    output=$(inside_as "$1" gpuletctl infer echo 2>&1)
    status=$?
    echo "status $status, $output"
    [ "$status" -eq "$refused_status" ] && [[ $output == *"refused"* ]]
}

# --- the files ---

units_verify_clean() {
    local output
    output=$(inside systemd-analyze verify --man=no gpuletd.service gpuletd.socket 2>&1)
    local status=$?
    echo "$output"
    [ "$status" -eq 0 ] && [ -z "$output" ]
}

exposure_is_low() {
    inside systemd-analyze security --no-pager --offline=true --threshold=25 gpuletd.service |
        tail -n 1
    return "${PIPESTATUS[0]}"
}

user_and_directories_exist() {
    inside id gpulet || return 1
    [ "$(inside stat -c %U:%a /var/lib/gpulet)" = gpulet:755 ] || return 1
    [ "$(inside stat -c %U:%a /var/lib/gpulet/models)" = root:755 ]
}

# --- the life of the service ---

starts() {
    inside systemctl start gpuletd.service && inside systemctl is-active gpuletd.service
}

stops_cleanly() {
    inside systemctl stop "$@" || return 1
    [ "$(property Result)" = success ] && [ "$(property MainPID)" -eq 0 ]
}

# As much as the unit asks for, or, where this very machine may not raise limits, as it may.
may_lock_memory() {
    local expected=unlimited got
    prlimit --memlock=unlimited:unlimited true 2>/dev/null ||
        expected=$(prlimit --memlock --raw --noheadings --output HARD)
    got=$(inside awk '/^Max locked memory/ { print $4 }' "/proc/$(main_pid)/limits")
    echo "locked memory: $got, expected: $expected"
    [ "$got" = "$expected" ]
}

runs_unprivileged() {
    local process user
    process=/proc/$(main_pid)
    user=$(inside id --user gpulet)
    inside grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' "$process/status"
    inside grep -q "^Uid:[[:space:]]*$user[[:space:]]*$user" "$process/status" &&
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
    write_config "$1" | inside tee "$config" &&
        inside systemctl reload gpuletd.service &&
        wait_until 5 answers "$1" &&
        [ "$(main_pid)" -eq "$before" ]
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

first_client_starts_it() {
    [ "$(property ActiveState)" = inactive ] || return 1
    inside systemctl start gpuletd.socket &&
        [ "$(property ActiveState)" = inactive ] &&
        inside test -S "$socket" &&
        answers alice && [ "$(property ActiveState)" = active ]
}

socket_outlives_service() {
    inside systemctl stop gpuletd.service
    inside test -S "$socket" && answers alice
}

leaves_no_socket() {
    inside systemctl stop gpuletd.socket gpuletd.service && ! inside test -e "$socket"
}

run_checks() {
    check "systemd-analyze verify has nothing to say" units_verify_clean
    check "systemd-analyze security: exposure of 2.5 or less" exposure_is_low
    check "sysusers and tmpfiles were applied at boot" user_and_directories_exist

    check "the service starts without the socket unit" starts
    check "it has no privileges, and may lock memory" runs_unprivileged
    check "an unprivileged user on the list gets answers" answers alice
    check "a user not on the list is refused with a clear status" is_refused mallory
    check "kill -9 is followed by a restart" comes_back KILL 5
    check "clients get answers again" answers alice
    check "a frozen daemon is restarted by the watchdog" comes_back STOP 25
    check "it was the watchdog" journal_says "Watchdog timeout"
    check "clients get answers again" answers alice
    check "SIGHUP with a broken config keeps the old one" keeps_config_on_bad_hup "config"
    check "systemctl reload reports a broken config" reload_reports_bad_config
    check "systemctl reload lets a new user in" reload_lets_in mallory
    check "it stops cleanly" stops_cleanly gpuletd.service

    check "the first client starts the service through the socket" first_client_starts_it
    check "with the socket, kill -9 is followed by a restart" comes_back KILL 5
    check "clients get answers again" answers alice
    check "the socket outlives the service" socket_outlives_service
    check "a stopped socket leaves no file" leaves_no_socket
    check "a bad config ends in exit status 78, once" fails_once_on_bad_config
}
