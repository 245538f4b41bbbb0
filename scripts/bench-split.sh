#!/usr/bin/env bash
# Splits, cold and prepared, merges and ways back on PostgreSQL 15:
# bench-split.sh [ARGUMENT...] (for example --rows 200000; see bench/split/main.rs).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

need cargo "Install Rust 1.95 from the distribution or with rustup."
check_disk 6000
scripts/bootstrap.sh 15
scripts/stage.sh 15 release >/dev/null
cargo build --quiet --release -p foreshard_test --bin foreshard-bench-split ||
  die "The bench does not build." "Cargo's words are above."
FORESHARD_PG=15 exec "$TARGET/release/foreshard-bench-split" "$@"
