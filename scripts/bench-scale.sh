#!/usr/bin/env bash
# A coordinator and nodes on PostgreSQL 15: what spreading their load by itself is worth against the best there is.
# bench-scale.sh [ARGUMENT...] (for example --nodes 3; see bench/scale/main.rs).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

need xz "Install xz-utils."
bench_on 15 scale 3000 "$@"
