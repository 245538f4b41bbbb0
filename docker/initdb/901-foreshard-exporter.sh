#!/bin/sh
# The password of the exporter's role, from FORESHARD_EXPORTER_PASSWORD; without one it cannot log in over the network.
set -eu
if [ -n "${FORESHARD_EXPORTER_PASSWORD:-}" ]; then
  psql -X -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "${POSTGRES_DB:-$POSTGRES_USER}" <<'SQL'
\getenv password FORESHARD_EXPORTER_PASSWORD
ALTER ROLE foreshard_exporter PASSWORD :'password';
SQL
fi
