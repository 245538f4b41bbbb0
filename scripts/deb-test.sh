#!/usr/bin/env bash
# Installs the Debian package into a clean Debian root and does there what a new user does: deb-test.sh [PACKAGE].
# Needs root, mmdebstrap and Debian's mirror as apt on this machine knows it. The root is made once (target/deb/root.tar).
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

[[ $(id -u) -eq 0 ]] || die "Only root may make a Debian root." "Run this with sudo."
need mmdebstrap "Install mmdebstrap."
need unshare "Install util-linux."
check_disk 3000
deb=${1:-$(scripts/deb.sh)}
[[ -f $deb ]] || die "There is no package $deb." "Run 'make deb'."
major=$(dpkg-deb -f "$deb" Package | sed 's/^postgresql-\([0-9]*\)-.*/\1/')
base=$TARGET/deb/root-$major.tar
root=$TARGET/deb/root

# timed WHAT COMMAND...: one step, with its time.
timed() {
  local what=$1 begin end
  shift
  begin=$(date +%s.%N)
  "$@" || die "This failed: $what." "The words of it are above."
  end=$(date +%s.%N)
  printf '%7.1f s  %s\n' "$(echo "$end - $begin" | bc)" "$what"
}

make_base() {
  local sources=()
  for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list; do
    if [[ -s $file ]]; then sources+=("$file"); fi
  done
  mmdebstrap --quiet --variant=apt --aptopt='APT::Install-Recommends "false"' \
    --include="postgresql-$major" "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$base.new" "${sources[@]}" &&
    mv "$base.new" "$base"
}

unpack() {
  rm -rf "$root"
  mkdir -p "$root"
  tar -xf "$base" -C "$root"
}

# inside SCRIPT: bash in the clean root, in namespaces of its own, so that nothing of it outlives the command.
inside() {
  unshare --mount --pid --fork --ipc --net -- bash -euo pipefail -c '
    mount -t proc proc "$1/proc"
    mount -t tmpfs tmpfs "$1/dev/shm" 2>/dev/null || { mkdir -p "$1/dev/shm"; mount -t tmpfs tmpfs "$1/dev/shm"; }
    exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive bash -euo pipefail -c "$2"
  ' inside "$root" "$1"
}

# sql_of FILE: what a document has a reader run, and what it waits for meanwhile.
sql_of() {
  cat pg_test/documents/prelude.sql
  awk '/^```sql$/ { on = 1; next } /^```/ { on = 0; next } on { print; next }
       /^<!-- run: / { hidden = 1; sub(/^<!-- run: /, "") }
       hidden { end = sub(/ -->$/, ""); print; if (end) hidden = 0 }' "$1"
}

readonly START="pg_ctlcluster $major main start -- -t 60"
begin=$(date +%s)
say "$(basename "$deb") in a clean Debian root"
if [[ ! -e $base ]]; then timed "a Debian root with postgresql-$major (once)" make_base; fi
timed 'unpack it' unpack
cp "$deb" "$root/root/foreshard.deb"
sql_of docs/tutorial.md >"$root/root/tutorial.sql"
{ cat pg_test/documents/prelude.sql; cat pg_test/regress/sql/readme.sql; } >"$root/root/readme.sql"

timed 'dpkg -i' inside 'dpkg -i /root/foreshard.deb >/dev/null'
timed 'every file of it is there, and the library finds what it needs' inside "
  dpkg -V postgresql-$major-foreshard
  ! ldd /usr/lib/postgresql/$major/lib/foreshard.so | grep 'not found'"
timed 'a server that was not told to preload it says so' inside "
  install -d -o postgres /srv/disk1 /srv/disk2
  [[ -d /etc/postgresql/$major/main ]] || pg_createcluster $major main >/dev/null
  $START
  setpriv --reuid=postgres --regid=postgres --init-groups psql -XAt -c 'CREATE EXTENSION foreshard' \\
    -c \"SELECT 'check: ' || problem FROM foreshard.check() WHERE object = 'server'\" -c 'DROP EXTENSION foreshard' >/tmp/said 2>&1 || { cat /tmp/said; exit 1; }
  grep -q 'check: foreshard is not loaded' /tmp/said || { cat /tmp/said; exit 1; }
  pg_ctlcluster $major main stop"
timed 'shared_preload_libraries, start, the tutorial' inside "
  printf \"shared_preload_libraries = 'foreshard'\nforeshard.bucket = '1s'\nforeshard.canary_dwell = '200ms'\nforeshard.min_free_disk = 0\n\" >/etc/postgresql/$major/main/conf.d/foreshard.conf
  $START
  cd /
  setpriv --reuid=postgres --regid=postgres --init-groups psql -XAqt -v ON_ERROR_STOP=1 -c \"CREATE TABLESPACE disk1 LOCATION '/srv/disk1'\" \\
    -c \"CREATE TABLESPACE disk2 LOCATION '/srv/disk2'\" -c 'CREATE DATABASE tutorial' -c 'CREATE DATABASE readme'
  setpriv --reuid=postgres --regid=postgres --init-groups psql -Xq -v ON_ERROR_STOP=1 tutorial </root/tutorial.sql >/tmp/tutorial.out 2>&1 || { cat /tmp/tutorial.out; exit 1; }
  pg_ctlcluster $major main stop"
# The README shows an error on purpose: a map that names an unknown shard.
timed "the README's SQL" inside "
  $START
  cd /
  setpriv --reuid=postgres --regid=postgres --init-groups psql -Xq readme </root/readme.sql >/tmp/readme.out 2>&1
  grep '^ERROR' /tmp/readme.out >/tmp/errors || true
  grep -qv 'confidence\\|north' /tmp/errors && { cat /tmp/errors; exit 1; }
  pg_ctlcluster $major main stop"
timed 'remove it: managed tables work on' inside "
  dpkg -P postgresql-$major-foreshard >/dev/null
  [[ ! -e /usr/lib/postgresql/$major/lib/foreshard.so ]]
  rm /etc/postgresql/$major/main/conf.d/foreshard.conf
  $START
  [[ \$(setpriv --reuid=postgres --regid=postgres --init-groups psql -XAt readme -c 'SELECT count(*) FROM customer WHERE id = 42') == 1 ]]
  pg_ctlcluster $major main stop"
rm -rf "$root"
say "all of it in $(($(date +%s) - begin)) s"
