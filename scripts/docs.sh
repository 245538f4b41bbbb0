#!/usr/bin/env bash
# Writes what is generated from elsewhere: the SQL of README.md as a regress file
# (pg_test/regress/sql/readme.sql) and the README's table of settings, as the server lists them.
# The regress file's expected output is made by
#   FORESHARD_ONLY=readme FORESHARD_ACCEPT=1 cargo test -p foreshard_test --test regress
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

[[ -e README.md ]] || die "There is no README.md." "Write it first; its settings go between the markers settings:begin and settings:end."
scripts/bootstrap.sh 15
scripts/stage.sh 15 release >/dev/null
# One after the other: both rewrite files that the other reads.
FORESHARD_PG=15 FORESHARD_ACCEPT=1 cargo test -q -p foreshard_test --test docs -- --test-threads=1 ||
  die "README.md could not be brought up to date." "The output above says why."
say "README.md and pg_test/regress/sql/readme.sql are current"
