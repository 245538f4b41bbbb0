#!/usr/bin/env bash
# How well loads are forecast, against what everybody else would do:
# bench-forecast.sh DIR [ARGUMENT...] (for example --step 5m --refit 24; see bench/forecast/main.rs).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

need cargo "Install Rust 1.95 from the distribution or with rustup."
scripts/bootstrap.sh 15
cargo build --quiet --release -p foreshard_test --bin foreshard-bench-forecast ||
  die "The bench does not build." "Cargo's words are above."
exec "$TARGET/release/foreshard-bench-forecast" "$@"
