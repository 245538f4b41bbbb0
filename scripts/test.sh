#!/usr/bin/env bash
# Every kind of test, in the order in which failures are cheapest:
# format, core, lints, documentation, then real servers of each version.
# TEST_PG="15" restricts the versions. The last line is "N passed, N failed".
set -euo pipefail
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

versions=${TEST_PG:-15 18}
for version in $versions; do
  [[ $version =~ ^(15|18)$ ]] || die "TEST_PG names version \"$version\"." "Use 15, 18 or both."
done
need cargo "Install Rust 1.95 from the distribution or with rustup."
if [[ $versions == 15 ]]; then scripts/bootstrap.sh 15; else scripts/bootstrap.sh all; fi

passed=0
failed=0
failures=()

# check NAME COMMAND...: one check that passes or fails as a whole.
check() {
  local name=$1
  shift
  say "$name (after $((SECONDS / 60)) min)"
  if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)) failures+=("$name"); fi
}

# count WORD: the sum of the numbers before "passed" or "failed" in the output of a run.
count() {
  awk -v word="$1" '/^test result:|^ *Summary \[/ {
    for (i = 2; i <= NF; i++) if ($i ~ "^" word "[,;]?$") sum += $(i - 1)
  } END { print sum + 0 }' "$TARGET/test-output"
}

# server_tests: servers mostly wait for their workers, so more of them run at a time than there are cores. Under
# nextest, where it is installed, no file of tests waits for the slowest test of another.
server_tests() {
  if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --no-fail-fast --test-threads 4 -p foreshard_test
  else
    RUST_TEST_THREADS=4 cargo test --no-fail-fast -p foreshard_test
  fi
}

# in_memory: clusters of many small files, made and thrown away hundreds of times, keep a disk's file system busy with
# looking for free inodes (a quarter of all CPU time on ext4). They lie in memory where there is room.
in_memory() {
  local room memory
  room=$(df --output=avail -k /dev/shm 2>/dev/null | tail -1)
  memory=$(awk '/^MemAvailable:/ { print $2 }' /proc/meminfo 2>/dev/null)
  if [[ -w /dev/shm && ${room:-0} -gt 6000000 && ${memory:-0} -gt 12000000 ]]; then
    FORESHARD_CLUSTERS=$(mktemp -d /dev/shm/foreshard-clusters.XXXXXX)
    chmod 755 "$FORESHARD_CLUSTERS"
    export FORESHARD_CLUSTERS
    trap 'rm -rf "$FORESHARD_CLUSTERS"' EXIT
  fi
}

# tests NAME COMMAND...: a run of cargo test or nextest, counted by its "test result:" or "Summary" lines.
tests() {
  local name=$1 output=$TARGET/test-output status=0 good bad
  shift
  say "$name (after $((SECONDS / 60)) min)"
  "$@" 2>&1 | tee "$output" || status=$?
  good=$(count passed)
  bad=$(count failed)
  # A run that does not even build has no such line.
  if [[ $status -ne 0 && $bad -eq 0 ]]; then bad=1; fi
  passed=$((passed + good))
  failed=$((failed + bad))
  if [[ $bad -gt 0 ]]; then failures+=("$name"); fi
}

document() {
  RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items -p foreshard_core -p foreshard_test &&
    RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items -p foreshard
}

# What ships is compiled in one piece, which takes a minute longer per version on two processors.
export CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16

check 'format' cargo fmt --all --check
tests 'core tests' cargo test --no-fail-fast -p foreshard_core
check 'clippy, core and harness' cargo clippy -p foreshard_core -p foreshard_test --all-targets -- -D warnings
check 'clippy, extension' cargo clippy -p foreshard --no-default-features --features pg15 -- -D warnings
check "type-check for PostgreSQL 16 and 17" scripts/check-versions.sh
check 'rustdoc' document
check 'forecasts of real series' cargo run --quiet -p foreshard_test --bin foreshard-bench-forecast -- data/series --gate 0.73
check 'documentation tests' cargo test --quiet --doc -p foreshard_test
check 'plans on simulated clusters' cargo run --quiet --release -p foreshard_test --bin foreshard-bench-sim -- data/series --gate
in_memory
for version in $versions; do
  check "extension for PostgreSQL $version" scripts/stage.sh "$version" release
  FORESHARD_PG=$version tests "server tests on PostgreSQL $version" server_tests
done

for name in ${failures[@]+"${failures[@]}"}; do printf 'failed: %s\n' "$name"; done
echo "$passed passed, $failed failed"
if [[ $failed -gt 0 ]]; then exit 1; fi
