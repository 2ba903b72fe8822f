#!/usr/bin/env bash
# Installs, on Debian 12, what a target needs beside the Rust toolchain: setup.sh demo|test|models.
# Does nothing when it is all there. As root, or through sudo.
set -euo pipefail

build=(gcc g++ make binutils libtorch-dev)
export_models=(python3 python3-torch python3-torchvision python3-pip)
case "${1:-}" in
  demo) packages=("${build[@]}" "${export_models[@]}") ;;
  models) packages=("${export_models[@]}") ;;
  test)
    packages=("${build[@]}" "${export_models[@]}" clang libclang-rt-14-dev valgrind
      python3-cffi python3-pycparser python3-venv pkgconf cmake debootstrap
      systemd systemd-container util-linux iproute2 mandoc)
    ;;
  *)
    echo "usage: $0 demo|test|models" >&2
    exit 2
    ;;
esac

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    echo "setup: not root and no sudo; install these by hand: ${missing[*]}" >&2
    exit 1
  }
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
