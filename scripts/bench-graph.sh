#!/usr/bin/env bash
# Graphs, in memory and on PostgreSQL 15: bench-graph.sh EDGES [ARGUMENT...] (see bench/graph/main.rs).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

bench_on 15 graph 6000 "$@"
