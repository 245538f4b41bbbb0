#!/usr/bin/env bash
# A coordinator and nodes on PostgreSQL 15: what spreading their load by itself is worth against the best there is.
# bench-scale.sh [ARGUMENT...] (for example --nodes 3; see bench/scale/main.rs).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

need cargo "Install Rust 1.95 from the distribution or with rustup."
need xz "Install xz-utils."
check_disk 3000
scripts/bootstrap.sh 15
scripts/stage.sh 15 release >/dev/null
cargo build --quiet --release -p foreshard_test --bin foreshard-bench-scale ||
  die "The bench does not build." "Cargo's words are above."
FORESHARD_PG=15 exec "$TARGET/release/foreshard-bench-scale" "$@"
