#!/usr/bin/env bash
# The demo and its cluster: demo.sh <run|psql|stop> [ARGUMENT...]
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

# load_env: the running demo's place, or fail silently.
load_env() {
  local file
  file=$(cat "$TARGET/run.path" 2>/dev/null || true)/demo.env
  [[ -f $file ]] || return 1
  source "$file"
  # A demo that failed has removed its cluster itself.
  if [[ ! -d $CLUSTER_DIR ]]; then
    rm -f "$file"
    return 1
  fi
}

stop_demo() {
  load_env || return 0
  local pid
  pid=$(head -n 1 "$CLUSTER_DIR/data/postmaster.pid" 2>/dev/null || true)
  # The number may have been reused since: only a server of this very directory.
  if [[ -n $pid ]] && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$CLUSTER_DIR/data"; then
    kill -INT "$pid" 2>/dev/null || true
    local tries=0
    while [[ -e $CLUSTER_DIR/data/postmaster.pid && $tries -lt 300 ]]; do
      sleep 0.1
      tries=$((tries + 1))
    done
    if [[ -e $CLUSTER_DIR/data/postmaster.pid ]]; then
      kill -QUIT "$pid" 2>/dev/null || true
      sleep 1
    fi
    say "the demo's server is stopped and removed"
  fi
  case $CLUSTER_DIR in */clusters/*) rm -rf "$CLUSTER_DIR" ;; esac
  case $CLUSTER_SOCKET in /tmp/foreshard-*) rm -rf "$CLUSTER_SOCKET" ;; esac
  rm -f "$(cat "$TARGET/run.path")/demo.env"
}

run_demo() {
  need cargo "Install Rust 1.95 from the distribution or with rustup."
  check_disk 4000
  scripts/bootstrap.sh 15
  stop_demo
  scripts/stage.sh 15 release >/dev/null
  say "building the demo"
  cargo build --quiet --release -p foreshard_test --bin foreshard-demo ||
    die "The demo does not build." "Cargo's words are above."
  trap 'trap - INT TERM; stop_demo; exit 130' INT TERM
  FORESHARD_PG=15 "$TARGET/release/foreshard-demo" "$@" || exit $?
}

command=${1:-run}
shift || true
case $command in
  run) run_demo "$@" ;;
  stop) stop_demo ;;
  psql)
    load_env || die "No demo cluster is running." "Run 'make demo' first."
    exec "$CLUSTER_BIN/psql" -X -h "$CLUSTER_SOCKET" -p "$CLUSTER_PORT" -U postgres -d "$CLUSTER_DB" "$@"
    ;;
  *) die "Unknown command \"$command\"." "Use run, psql or stop." ;;
esac
