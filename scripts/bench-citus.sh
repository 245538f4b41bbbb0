#!/usr/bin/env bash
# foreshard against the rebalance strategies of Citus, on a skew and through a day, on PostgreSQL 15, where Citus is installed:
# bench-citus.sh [ARGUMENT...] (for example --days 0; see bench/citus/main.rs).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

bench_on 15 citus 3000 "$@"
