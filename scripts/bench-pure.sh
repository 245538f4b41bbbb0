#!/usr/bin/env bash
# Benches that need no server: bench-pure.sh forecast|plan|sim [ARGUMENT...]; the arguments are those of the
# program, see the head of its source below bench/.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

name=${1:-}
[[ $name =~ ^(forecast|plan|sim)$ ]] || die "Unknown bench \"$name\"." "Use forecast, plan or sim."
shift
need cargo "Install Rust 1.95 from the distribution or with rustup."
scripts/bootstrap.sh 15
cargo build --quiet --release -p foreshard_test --bin "foreshard-bench-$name" ||
  die "The bench does not build." "Cargo's words are above."
exec "$TARGET/release/foreshard-bench-$name" "$@"
