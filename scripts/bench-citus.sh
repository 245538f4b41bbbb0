#!/usr/bin/env bash
# foreshard as a rebalance strategy of Citus on PostgreSQL 15, where Citus is installed:
# bench-citus.sh [ARGUMENT...] (for example --seconds 10; see bench/citus/main.rs).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

bench_on 15 citus 3000 "$@"
