#!/usr/bin/env bash
# A move against a bare copy, SET TABLESPACE and pg_repack, on PostgreSQL 15:
# bench.sh [ARGUMENT...] (for example --rows 200000; see bench/move.rs).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

need cargo "Install Rust 1.95 from the distribution or with rustup."
check_disk 6000
scripts/bootstrap.sh 15
scripts/stage.sh 15 release >/dev/null
# Without it the bench says what it had to skip.
scripts/repack.sh || true
cargo build --quiet --release -p foreshard_test --bin foreshard-bench-move ||
  die "The bench does not build." "Cargo's words are above."
FORESHARD_PG=15 exec "$TARGET/release/foreshard-bench-move" "$@"
