#!/usr/bin/env bash
# Chosen keys, on recorded accesses and, for what look-ups cost, on PostgreSQL 15:
# bench-place.sh TRACE [ARGUMENT...] (see bench/place/main.rs).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

bench_on 15 place 4000 "$@"
