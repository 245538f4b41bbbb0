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

bench_on "$version" overhead 6000 ${arguments[@]+"${arguments[@]}"}
