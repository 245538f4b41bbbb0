#!/usr/bin/env bash
# Type-checks the extension for PostgreSQL 16 and 17 without their headers: against the bindings that
# pgrx ships for its own documentation. The servers themselves are tested for 15 and 18 only.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

wrapper=$TARGET/docsrs/rustc-wrapper
mkdir -p "$TARGET/docsrs"
cat >"$wrapper" <<'EOF'
#!/usr/bin/env bash
# Only pgrx-pg-sys shall think that it is documented; elsewhere that asks for a nightly compiler.
for argument in "$@"; do
  if [[ $argument == pgrx_pg_sys ]]; then exec "$@" --cfg docsrs; fi
done
exec "$@"
EOF
chmod +x "$wrapper"
for major in ${*:-16 17}; do
  say "type-checking for PostgreSQL $major"
  DOCS_RS=1 RUSTC_WRAPPER=$wrapper CARGO_TARGET_DIR=$TARGET/docsrs \
    cargo check --quiet --no-default-features --features "pg$major"
done
