#!/usr/bin/env bash
# Chosen keys, on recorded accesses and, for what look-ups cost, on PostgreSQL 15:
# bench-place.sh TRACE [ARGUMENT...] (see bench/place/main.rs).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

need cargo "Install Rust 1.95 from the distribution or with rustup."
check_disk 4000
scripts/bootstrap.sh 15
scripts/stage.sh 15 release >/dev/null
cargo build --quiet --release -p foreshard_test --bin foreshard-bench-place ||
  die "The bench does not build." "Cargo's words are above."
FORESHARD_PG=15 exec "$TARGET/release/foreshard-bench-place" "$@"
