#!/usr/bin/env bash
# Builds the extension and installs it into a private copy of PostgreSQL:
#   stage.sh <15|16|17|18> <release|debug|bare>
# "bare" makes the private copy only. Prints the directory of the server's programs.
# The system's own PostgreSQL directories are never touched.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

major=${1:-15}
profile=${2:-release}
[[ $major =~ ^(15|16|17|18)$ ]] || die "Unknown version \"$major\"." "Use 15, 16, 17 or 18."
[[ $profile =~ ^(release|debug|bare)$ ]] || die "Unknown profile \"$profile\"." "Use release, debug or bare."
config=$(pg_config_of "$major") ||
  die "PostgreSQL $major with headers is not installed." "Run scripts/bootstrap.sh all."
run=$(run_dir)
tree=$run/pg$major
exec 9>"$run/.stage.lock"
flock 9

# The server finds its share and library directories relative to its own executable, so a
# copy that keeps the layout is complete.
copy_tree() {
  local version
  version=$("$config" --version)@$config
  local there
  there=$(cat "$run/pg$major.path" 2>/dev/null || true)
  # A checkout that was copied or moved must not use the copy of the one it comes from.
  if [[ $there == "$tree"/* && -x $there/postgres && $(cat "$tree/.source" 2>/dev/null) == "$version" ]]; then
    return
  fi
  say "copying PostgreSQL $major to $tree"
  local new=$tree.new bin
  rm -rf "$new"
  mkdir -p "$new"
  if [[ $config == /usr/lib/postgresql/* ]]; then
    mkdir -p "$new/lib/postgresql/$major" "$new/share/postgresql"
    cp -rL --preserve=mode,timestamps "/usr/lib/postgresql/$major/bin" "/usr/lib/postgresql/$major/lib" \
      "$new/lib/postgresql/$major/"
    cp -rL --preserve=mode,timestamps "/usr/share/postgresql/$major" "$new/share/postgresql/"
    bin=lib/postgresql/$major/bin
  else
    # The wheel: the installation and the libraries it was linked with lie beside each other.
    local install=${config%/bin/pg_config}
    local site=${install%/*}
    while [[ $site == *site-packages/* && ${site%/*} != *site-packages ]]; do site=${site%/*}; done
    cp -a "$site" "$new/"
    local libs
    for libs in "${site%/*}"/*.libs; do
      if [[ -d $libs ]]; then cp -a "$libs" "$new/"; fi
    done
    bin=${site##*/}${install#"$site"}/bin
  fi
  chmod -R a+rX "$new"
  echo "$version" >"$new/.source"
  rm -rf "$tree.old"
  if [[ -e $tree ]]; then mv "$tree" "$tree.old"; fi
  mv "$new" "$tree"
  rm -rf "$tree.old"
  echo "$tree/$bin" >"$run/pg$major.path"
}

# build_key: what the installed files depend on. Cargo alone would rebuild the extension
# whenever another version was staged in between.
build_key() {
  (cd "$ROOT" && {
    echo "$major $profile" "$(rustc --version)" "$("$config" --version)" "${RUSTFLAGS:-} ${CARGO_PROFILE_RELEASE_CODEGEN_UNITS:-}"
    find . -path ./target -prune -o -path ./.git -prune -o \( -path './src/*' -o -path './sql/*' -o -path './Cargo.*' -o -path ./foreshard.control \) -type f -print0 | sort -z | xargs -0 sha256sum
  } | sha256sum)
}

install_extension() {
  local key
  key=$(build_key)
  [[ $(cat "$tree/.extension" 2>/dev/null || true) == "$key" ]] && return
  local out=$TARGET/pkg-$major flags=() bin lib share file
  if [[ $profile == debug ]]; then flags=(--debug); fi
  say "building the extension for PostgreSQL $major ($profile; some minutes the first time)"
  rm -rf "$out"
  (cd "$ROOT" && cargo pgrx package --no-default-features --features "pg$major" --pg-config "$config" \
    "${flags[@]}" --out-dir "$out") >"$TARGET/stage-$major.log" 2>&1 || {
    tail -n 40 "$TARGET/stage-$major.log" >&2
    die "The extension does not build for PostgreSQL $major." "The whole output is in $TARGET/stage-$major.log."
  }
  bin=$(cat "$run/pg$major.path")
  lib=$("$bin/pg_config" --pkglibdir)
  share=$("$bin/pg_config" --sharedir)/extension
  file=$(find "$out" -name foreshard.so | head -n 1)
  [[ -n $file ]] || die "The package in $out holds no foreshard.so." "Remove $out and run this again."
  replace "$file" "$lib/foreshard.so"
  local package
  package=$(dirname "$(find "$out" -name foreshard.control | head -n 1)")
  for file in "$share"/foreshard--*.sql; do
    if [[ -e $file && ! -e $package/${file##*/} ]]; then rm -f "$file"; fi
  done
  for file in "$package"/foreshard*; do replace "$file" "$share/${file##*/}"; done
  echo "$key" >"$tree/.extension"
}

copy_tree
if [[ $profile != bare ]]; then install_extension; fi
cat "$run/pg$major.path"
