#!/usr/bin/env bash
# Every SQL function with random and hostile arguments: SECONDS=60 SEED=… PG=15.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

major=${PG:-15}
# SECONDS is a variable of bash's own, so the Makefile hands it over under another name.
export FORESHARD_FUZZ_SECONDS=${FUZZ_SECONDS:-60} FORESHARD_PG=$major
if [[ -n ${SEED:-} ]]; then export FORESHARD_FUZZ_SEED=$SEED; fi
if [[ $major == 15 ]]; then scripts/bootstrap.sh 15; else scripts/bootstrap.sh all; fi
scripts/stage.sh "$major" release >/dev/null
exec cargo test -q -p foreshard_test --test fuzz -- --nocapture
