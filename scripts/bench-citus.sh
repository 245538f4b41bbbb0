#!/usr/bin/env bash
# foreshard as a rebalance strategy of Citus on PostgreSQL 15, where Citus is installed:
# bench-citus.sh [ARGUMENT...] (for example --seconds 10; see bench/citus/main.rs).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

need cargo "Install Rust 1.95 from the distribution or with rustup."
check_disk 3000
scripts/bootstrap.sh 15
scripts/stage.sh 15 release >/dev/null
cargo build --quiet --release -p foreshard_test --bin foreshard-bench-citus ||
  die "The bench does not build." "Cargo's words are above."
FORESHARD_PG=15 exec "$TARGET/release/foreshard-bench-citus" "$@"
