#!/usr/bin/env bash
# Builds a Debian package: deb.sh [MAJOR] [--staged]; MAJOR is 15, or one whose PostgreSQL comes from Debian packages.
# It holds what scripts/stage.sh built and installed into the private copy of PostgreSQL; --staged takes
# that as it is, whatever its profile, and packs it quickly. The last line of output is the package's path.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

major=15
staged=''
for argument in "$@"; do
  case $argument in
    --staged) staged=yes ;;
    15 | 16 | 17 | 18) major=$argument ;;
    *) die "Unknown argument \"$argument\"." "Use a major version of PostgreSQL and --staged." ;;
  esac
done
need dpkg-deb "This needs Debian."
need objdump "Install binutils."
[[ -d /usr/lib/postgresql/$major/lib ]] ||
  die "PostgreSQL $major is not installed from Debian packages." "Install postgresql-$major and postgresql-server-dev-$major."
if [[ -z $staged ]]; then scripts/stage.sh "$major" release >/dev/null; fi
bin=$(cat "$TARGET/run.path" 2>/dev/null)/pg$major.path
[[ -e $bin ]] || die "Nothing is staged for PostgreSQL $major." "Leave --staged out."
bin=$(cat "$bin")
lib=$("$bin/pg_config" --pkglibdir)
share=$("$bin/pg_config" --sharedir)/extension

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
package=postgresql-$major-foreshard
deb=$TARGET/deb/${package}_$version-1_$(dpkg --print-architecture).deb
tree=$TARGET/deb/$package
doc=$tree/usr/share/doc/$package
# The same files give the same package.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)
export SOURCE_DATE_EPOCH

# glibc FILE: the version of the C library that a file needs.
glibc() { objdump -T "$1" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -Vu | tail -n 1; }

copy_files() {
  rm -rf "$tree"
  install -d "$tree/usr/lib/postgresql/$major/lib" "$tree/usr/share/postgresql/$major/extension" "$doc"
  install -m 0644 "$lib/foreshard.so" "$tree/usr/lib/postgresql/$major/lib/"
  strip --strip-unneeded --remove-section=.comment --remove-section=.note "$tree/usr/lib/postgresql/$major/lib/foreshard.so"
  install -m 0644 "$share/foreshard.control" "$share"/foreshard--*.sql "$tree/usr/share/postgresql/$major/extension/"
  install -m 0644 README.md SECURITY.md ARCHITECTURE.md "$doc/"
  install -d "$doc/docs/how-to" "$doc/docs/decisions" "$doc/monitoring"
  install -m 0644 docs/*.md "$doc/docs/"
  install -m 0644 docs/how-to/*.md "$doc/docs/how-to/"
  install -m 0644 docs/decisions/*.md "$doc/docs/decisions/"
  install -m 0644 docker/sql_exporter/*.yml docker/prometheus/alerts.yml docker/grafana/foreshard.json "$doc/monitoring/"
  gzip -9n <CHANGELOG.md >"$doc/changelog.gz"
  printf '%s (%s-1) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- the foreshard authors <maintainers@foreshard.invalid>  %s\n' \
    "$package" "$version" "$(date -uRd "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.Debian.gz"
}

# write_copyright: our licence, and those of the crates that are linked in, with their texts in a file beside it.
write_copyright() {
  local crates=$TARGET/deb/crates registry=${CARGO_HOME:-$HOME/.cargo}/registry/src name release licence folder file
  cargo tree --locked --offline -e normal -p foreshard --no-default-features --features "pg$major" --prefix none \
    --format '{p}|{l}' | sed 's/ ([^|]*)//' | grep -v '^foreshard' | sort -u >"$crates"
  {
    printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: foreshard\n\n'
    printf 'Files: *\nCopyright: 2026, the foreshard authors\nLicense: PostgreSQL\n'
    sed 's/^$/./; s/^/ /' LICENSE
    printf 'Comment: The library contains these Rust crates; third-party.gz has the texts of their licences.\n'
    sed 's/^\([^ ]*\) v\([^|]*\)|\(.*\)$/ \1 \2: \3/' "$crates"
  } >"$doc/copyright"
  while IFS='|' read -r name licence; do
    release=${name##* v}
    name=${name%% v*}
    for folder in "$registry"/*/"$name-$release"; do
      for file in "$folder"/LICEN[CS]E* "$folder"/COPYING* "$folder"/NOTICE*; do
        if [[ -f $file ]]; then printf '==== %s %s: %s\n\n' "$name" "$release" "${file##*/}"; cat "$file"; echo; fi
      done
    done
  done <"$crates" | gzip -9n >"$doc/third-party.gz"
}

write_control() {
  install -d "$tree/DEBIAN"
  cat >"$tree/DEBIAN/control" <<EOF
Package: $package
Source: foreshard
Version: $version-1
Section: database
Priority: optional
Architecture: $(dpkg --print-architecture)
Maintainer: the foreshard authors <maintainers@foreshard.invalid>
Installed-Size: $(du -ks --exclude=DEBIAN "$tree" | cut -f 1)
Depends: postgresql-$major, libc6 (>= $(glibc "$tree/usr/lib/postgresql/$major/lib/foreshard.so")), libgcc-s1
Suggests: postgresql-contrib
Description: lets a partitioned PostgreSQL $major database place its own data
 foreshard cuts tables into slots (native hash partitions), watches which are
 hot, forecasts their load, recommends where they should live and how sure it
 is of that, and moves them online: verified, without blocking users for longer
 than a bound, and able to survive a crash at any point.
 .
 It works once it is in shared_preload_libraries and the server was restarted;
 then CREATE EXTENSION foreshard.
EOF
  (cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
}

say "packing $package $version"
copy_files
write_copyright
write_control
chmod -R u=rwX,go=rX "$tree"
# What is only looked at need not be small.
compression=(-Zxz)
if [[ -n $staged ]]; then compression=(-Zgzip -z1); fi
dpkg-deb --root-owner-group "${compression[@]}" --build "$tree" "$deb" >/dev/null ||
  die "The package could not be built." "dpkg-deb's words are above."
rm -rf "$tree"
echo "$deb"
