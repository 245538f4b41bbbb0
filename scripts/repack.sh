#!/usr/bin/env bash
# Puts pg_repack, with which a bench compares, into the staged PostgreSQL 15: repack.sh.
# From the Debian package: the installed one, else the archive's, unpacked below target/ only.
# Fails with one sentence when neither is to be had.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

major=15
package=postgresql-$major-repack
run=$(run_dir)
bin=$(cat "$run/pg$major.path" 2>/dev/null) ||
  die "PostgreSQL $major is not staged." "Run scripts/stage.sh $major release."
exec 9>"$run/.stage.lock"
flock 9

# unpack: the archive's package into target/repack.
unpack() {
  rm -rf "$TARGET/repack"
  mkdir -p "$TARGET/repack"
  cd "$TARGET/repack"
  # As root, apt would fetch as a user who may not be able to write here.
  apt-get -o APT::Sandbox::User=root download "$package" && dpkg-deb -x "$package"_*.deb .
}

from=''
if [[ ! -x /usr/lib/postgresql/$major/bin/pg_repack ]]; then
  from=$TARGET/repack
  if [[ ! -x $from/usr/lib/postgresql/$major/bin/pg_repack ]]; then
    (unpack) >"$TARGET/repack.log" 2>&1 ||
      die "pg_repack is not to be had: $package is neither installed nor downloadable." \
        "Run apt-get update or apt-get install $package; apt-get's words are in $TARGET/repack.log."
  fi
fi
files=$from/usr/lib/postgresql/$major
share=$("$bin/pg_config" --sharedir)/extension
replace "$files/bin/pg_repack" "$bin/pg_repack" 0755
replace "$files/lib/pg_repack.so" "$("$bin/pg_config" --pkglibdir)/pg_repack.so"
for file in "$from/usr/share/postgresql/$major/extension"/pg_repack*; do
  replace "$file" "$share/${file##*/}"
done
