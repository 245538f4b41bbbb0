#!/usr/bin/env bash
# What watching costs: bench-overhead.sh [--pg 15|18] [ARGUMENT...] (see bench/overhead.rs).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

version=15
arguments=()
while [[ $# -gt 0 ]]; do
  if [[ $1 == --pg ]]; then
    version=${2:-}
    [[ $version =~ ^(15|18)$ ]] || die "Unknown version \"$version\"." "Use --pg 15 or --pg 18."
    shift 2
  else
    arguments+=("$1")
    shift
  fi
done

need cargo "Install Rust 1.95 from the distribution or with rustup."
check_disk 6000
scripts/bootstrap.sh "$version"
scripts/stage.sh "$version" release >/dev/null
cargo build --quiet --release -p foreshard_test --bin foreshard-bench-overhead ||
  die "The bench does not build." "Cargo's words are above."
FORESHARD_PG=$version exec "$TARGET/release/foreshard-bench-overhead" ${arguments[@]+"${arguments[@]}"}
