# shellcheck shell=bash
# To be sourced.
# Waits until the daemon of process PID, at $GPULET_SOCKET, has loaded all that it will; fails if it
# ends before, or takes longer than a minute.
wait_until_ready() { # BIN PID
  local state
  for _ in $(seq 600); do
    state=$("$1/gpuletctl" status --json 2>/dev/null || true)
    case $state in *'"ready":true'* | *'"ready": true'*) return ;; esac
    kill -0 "$2" 2>/dev/null || { echo "gpuletd ended" >&2; return 1; }
    sleep 0.1
  done
  echo "gpuletd is not ready after a minute" >&2
  return 1
}
