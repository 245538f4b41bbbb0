#!/usr/bin/env bash
# How well the cost of five unlike triggers is predicted, on a machine that does nothing else: PG=15 test-prediction.sh
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

major=${PG:-15}
if [[ $major == 15 ]]; then scripts/bootstrap.sh 15; else scripts/bootstrap.sh all; fi
scripts/stage.sh "$major" release >/dev/null
FORESHARD_PG=$major FORESHARD_PREDICTION=1 \
  exec cargo test --quiet -p foreshard_test --test prediction -- --nocapture --test-threads 1
