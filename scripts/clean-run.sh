#!/usr/bin/env bash
# Stops and removes every cluster and staged installation of this clone; builds stay.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

"$ROOT/scripts/demo.sh" stop
run=$(cat "$TARGET/run.path" 2>/dev/null || true)
[[ -n $run && -d $run ]] || exit 0
for data in "$run"/clusters/*/data; do
  pid=$(head -n 1 "$data/postmaster.pid" 2>/dev/null || true)
  if [[ -n $pid ]] && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$data"; then
    kill -QUIT "$pid" 2>/dev/null || true
    sleep 1
  fi
  socket=$(cat "${data%/data}/socket_dir" 2>/dev/null || true)
  case $socket in /tmp/foreshard-*) rm -rf "$socket" ;; esac
done
rm -rf "$run/clusters" "$run/templates" "$run"/pg1? "$run"/pg1?.path "$run/regress"
