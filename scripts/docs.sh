#!/usr/bin/env bash
# Documents: docs.sh [test]. Without an argument it writes what is generated from elsewhere: the SQL of README.md as a
# regress file (pg_test/regress/sql/readme.sql), the README's table of settings, docs/reference.md, and the output shown in docs/. With
# "test" it only runs and compares all of that. The regress file's expected output is made by
#   FORESHARD_ONLY=readme FORESHARD_ACCEPT=1 cargo test -p foreshard_test --test regress
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

[[ -e README.md ]] || die "There is no README.md." "Write it first; its settings go between the markers settings:begin and settings:end."
pg=${PG:-15}
[[ $pg =~ ^(15|18)$ ]] || die "PG names version \"$pg\"." "Use 15 or 18."
if [[ $pg == 15 ]]; then scripts/bootstrap.sh 15; else scripts/bootstrap.sh all; fi
scripts/stage.sh "$pg" release >/dev/null
export FORESHARD_PG=$pg
if [[ ${1:-} == test ]]; then
  # Both, whatever the first says.
  status=0
  cargo test -q -p foreshard_test --test docs || status=1
  if [[ -z ${FORESHARD_ONLY:-} ]]; then FORESHARD_ONLY=readme cargo test -q -p foreshard_test --test regress || status=1; fi
  exit "$status"
fi
# One after the other: both rewrite files that the other reads.
FORESHARD_ACCEPT=1 cargo test -q -p foreshard_test --test docs -- --test-threads=1 ||
  die "The documents could not be brought up to date." "The output above says why."
say "README.md, docs/ and pg_test/regress/sql/readme.sql are current"
