#!/usr/bin/env bash
# Everything at once for a long time: MINUTES=30 PG=15 SEED=1 soak.sh; "soak.sh scale": many connections, slots and tables.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

need cargo "Install Rust 1.95 from the distribution or with rustup."
major=${PG:-15}
check_disk 6000
if [[ $major == 15 ]]; then scripts/bootstrap.sh 15; else scripts/bootstrap.sh all; fi
scripts/stage.sh "$major" release >/dev/null
export FORESHARD_PG=$major FORESHARD_MINUTES=${MINUTES:-30} FORESHARD_SEED=${SEED:-1}
name=soak
if [[ ${1:-} == scale ]]; then
  name=scale
  export FORESHARD_SCALE=full
fi
exec cargo test --quiet -p foreshard_test --test "$name" -- --nocapture
