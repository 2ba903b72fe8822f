#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Installs gpulet into a minimal Debian, boots it with systemd as process 1, and checks that the
# service does what the units promise. Speaks TAP; exits 1 if a check fails.
#
#   systemd/tests/boot.sh [MAKE-VARIABLE...]      such as BUILD=target/release
#
# Without BUILD it takes the binaries built last, debug or release; it builds them if there are none.
# Needs root, debootstrap and systemd-nspawn; where a container can't be booted it is skipped, or
# fails if GPULET_BOOT_REQUIRED is set. The Debian is kept in target/systemd-root for next time.
set -u

export LC_ALL=C
tests=$(cd "$(dirname "$0")" && pwd)
repository=$(cd "$tests/../.." && pwd)
base=$repository/target/systemd-root

# shellcheck source=container.sh
. "$tests/container.sh"
# shellcheck source=checks.sh
. "$tests/checks.sh"

refusal=$(container_refusal)
if [ -n "$refusal" ]; then
    echo "1..0 # SKIP $refusal"
    [ -z "${GPULET_BOOT_REQUIRED:-}" ]
    exit
fi

mkdir -p "$repository/target"
work=$(mktemp -d "$repository/target/systemd-boot.XXXXXX") || exit 1
root=$work/root

cleanup() {
    container_remove
    rm -rf "${work:?}"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

number=0
failed=0

# check TEXT COMMAND...: one line of TAP; what the command printed follows if it failed.
check() {
    local text=$1
    shift
    number=$((number + 1))
    if "$@" >"$work/check.log" 2>&1; then
        echo "ok $number - $text"
        return
    fi
    failed=$((failed + 1))
    echo "not ok $number - $text"
    tail -n 40 "$work/check.log" | sed 's/^/#   /'
    if [ -n "$init_pid" ]; then
        inside journalctl --no-pager --quiet -n 15 -o cat -u gpuletd | sed 's/^/#   journal: /'
    fi
}

skip() {
    number=$((number + 1))
    echo "ok $number - $1 # SKIP $2"
}

# The directory of the gpuletd that was built last.
newest_build() {
    local newest=target/debug
    [ target/release/gpuletd -nt "$newest/gpuletd" ] && newest=target/release
    [ -e "$newest/gpuletd" ] || cargo build --locked -p gpulet-daemon || return 1
    echo "$newest"
}

install_into_root() {
    local build
    cd "$repository" && build=$(newest_build) && ffi/client/build-lib.sh "$work/client-lib" &&
        make --no-print-directory install DESTDIR="$root" PREFIX=/usr BUILD="$build" \
            CLIENT_LIB="$work/client-lib" "$@"
}

container_base && container_copy || exit 1
if ! install_into_root "$@" >"$work/install.log" 2>&1; then
    tail -n 20 "$work/install.log" >&2
    exit 1
fi
prepare_root || exit 1
mapfile -t binds < <(libtorch_binds)
container_boot "${binds[@]}" || exit 1
run_checks

echo "1..$number"
[ "$failed" -eq 0 ]
