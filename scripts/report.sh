#!/usr/bin/env bash
# Writes the report of the demo's cluster to target/report.html: report.sh [FILE].
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

file=${1:-$TARGET/report.html}
scripts/demo.sh psql -At -c 'SELECT foreshard.report_html()' >"$file.new" ||
  die "The report could not be made." "Run 'make demo' first; its words are above."
mv -f "$file.new" "$file"
say "$file ($(($(stat -c %s "$file") / 1024)) kB): open it in a browser"
