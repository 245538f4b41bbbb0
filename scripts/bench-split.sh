#!/usr/bin/env bash
# Splits, cold and prepared, merges and ways back on PostgreSQL 15:
# bench-split.sh [ARGUMENT...] (for example --rows 200000; see bench/split/main.rs).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

bench_on 15 split 6000 "$@"
