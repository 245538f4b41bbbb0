#!/usr/bin/env bash
# A move against a bare copy, SET TABLESPACE and pg_repack, on PostgreSQL 15:
# bench.sh [ARGUMENT...] (for example --rows 200000; see bench/move.rs).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

# pg_repack goes into a staged server; without it the bench says what it had to skip.
need cargo "Install Rust 1.95 from the distribution or with rustup."
scripts/bootstrap.sh 15
scripts/stage.sh 15 release >/dev/null
scripts/repack.sh || true
bench_on 15 move 6000 "$@"
