#!/usr/bin/env bash
# Moves under kills, cancels, lock holders, DDL and full disks: PG=15 SEED=1 FAULTS=220 chaos.sh
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

need cargo "Install Rust 1.95 from the distribution or with rustup."
check_disk 6000
scripts/bootstrap.sh "${PG:-15}"
scripts/stage.sh "${PG:-15}" release >/dev/null
FORESHARD_PG="${PG:-15}" FORESHARD_SEED="${SEED:-1}" FORESHARD_FAULTS="${FAULTS:-220}" \
  exec cargo test --quiet -p foreshard_test --test chaos -- --nocapture
