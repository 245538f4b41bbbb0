#!/usr/bin/env bash
# Installs a release build into a real server: install.sh [PG_CONFIG], by default the first
# pg_config in PATH. Needs the right to write into that server's directories.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

config=${1:-pg_config}
need "$config" "Name the server's pg_config: make install PG_CONFIG=/path/to/pg_config."
config=$(command -v "$config")
scripts/bootstrap.sh 15
major=$("$config" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/')
[[ $major =~ ^(15|16|17|18)$ ]] || die "PostgreSQL $major is not supported." "Use 15, 16, 17 or 18."
cargo pgrx install --release --no-default-features --features "pg$major" --pg-config "$config" ||
  die "The installation failed." "Cargo's words are above; may you write into $("$config" --pkglibdir)?"
say "add shared_preload_libraries = 'foreshard', restart the server, then CREATE EXTENSION foreshard"
