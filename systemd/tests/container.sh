# SPDX-License-Identifier: Apache-2.0
# A booted Debian in a directory: sourced by boot.sh, which sets `base`, `work` and `root`.
#
#   container_refusal         prints why none can be booted here, or nothing
#   container_base            makes $base, a minimal bookworm with systemd, if it is missing
#   container_copy            copies $base to $root, which is then to be changed at will
#   container_boot [OPTION]   boots $root; the options are systemd-nspawn's
#   inside COMMAND            runs a command in it as root
#   inside_as USER COMMAND    the same as that user
#   container_remove          ends it and leaves nothing behind: no mount, cgroup or process

release=bookworm
machine=gpulet-boot-$$
inside_path=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
nspawn_pid=
init_pid=

container_refusal() {
    local program
    if [ "$(id -u)" -ne 0 ]; then
        echo "needs root"
        return
    fi
    for program in debootstrap systemd-nspawn nsenter make cc pkg-config; do
        if ! command -v "$program" >/dev/null; then
            echo "needs $program (packages: debootstrap systemd-container make gcc pkgconf)"
            return
        fi
    done
    unshare --mount --pid --fork true 2>/dev/null || echo "needs leave to make namespaces"
}

container_base() {
    [ -e "$base/etc/debian_version" ] && return
    local fresh=$base.$$
    rm -rf "$fresh"
    mkdir -p "$(dirname "$base")"
    echo "# making $base (a minute or two)"
    if ! debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus "$release" "$fresh" \
        >"$work/debootstrap.log" 2>&1; then
        tail -n 20 "$work/debootstrap.log" >&2
        rm -rf "$fresh"
        return 1
    fi
    rm -rf "$fresh"/var/cache/apt/archives/*.deb "$fresh"/var/lib/apt/lists/*
    # Renamed when complete, so that a broken-off run leaves no half a base.
    mv "$fresh" "$base"
}

container_copy() {
    cp -a --reflink=auto "$base" "$root"
}

# A cgroup of its own in each hierarchy that systemd uses: two containers at a time would share
# one, and what init makes below is then known to be ours to remove.
cgroup_directories() {
    local parent
    for parent in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
        [ -e "$parent/cgroup.procs" ] && echo "$parent/$machine"
    done
}

container_boot() {
    local directory
    for directory in $(cgroup_directories); do
        mkdir "$directory"
    done
    (
        for directory in $(cgroup_directories); do
            echo "$BASHPID" >"$directory/cgroup.procs"
        done
        exec systemd-nspawn --directory="$root" --machine="$machine" --register=no --keep-unit \
            --private-network --link-journal=no --console=pipe --boot "$@"
    ) </dev/null >"$work/console.log" 2>&1 &
    nspawn_pid=$!
    wait_until 30 container_is_up && return
    echo "# the container did not boot:" >&2
    tail -n 20 "$work/console.log" >&2
    return 1
}

container_is_up() {
    # The first child of nspawn that is process 1 of its namespace.
    local child
    for child in $(cat "/proc/$nspawn_pid/task/$nspawn_pid/children" 2>/dev/null); do
        if grep -q "^NSpid:.*[[:space:]]1$" "/proc/$child/status" 2>/dev/null; then
            init_pid=$child
        fi
    done
    [ -n "$init_pid" ] || return 1
    case $(inside systemctl is-system-running 2>/dev/null) in
        running | degraded) return 0 ;;
    esac
    return 1
}

inside() {
    nsenter --target "$init_pid" --all -- env -i LC_ALL=C "PATH=$inside_path" "$@"
}

inside_as() {
    local user=$1
    shift
    inside runuser -u "$user" -- "$@"
}

# wait_until SECONDS COMMAND: whether the command came to succeed; if not, what it said last.
wait_until() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >"$work/wait.log" 2>&1; do
        if [ "$SECONDS" -ge "$end" ]; then
            cat "$work/wait.log"
            return 1
        fi
        sleep 0.1
    done
}

container_remove() {
    local directory
    if [ -n "$nspawn_pid" ]; then
        # Killed, not shut down: every process of it ends with its process 1, every mount with
        # its namespace.
        [ -n "$init_pid" ] && kill -KILL "$init_pid" 2>/dev/null
        sleep 0.2
        kill -TERM "$nspawn_pid" 2>/dev/null
        wait "$nspawn_pid" 2>/dev/null
    fi
    for directory in $(cgroup_directories); do
        [ -d "$directory" ] && find "$directory" -depth -type d -exec rmdir {} + 2>/dev/null
    done
    [ -d "/run/systemd/nspawn/propagate/$machine" ] &&
        rmdir "/run/systemd/nspawn/propagate/$machine"
    rm -rf --one-file-system "${root:?}"
}
