#!/usr/bin/env bash
# Runs test tiers and prints one closing line, "N passed, N failed", over all of them.
#   test.sh TIER...   with TIER one of lint, unit, kernel, node, cluster
set -uo pipefail
cd "$(dirname "$0")/../.."
passed=0 failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# suite NAME COMMAND...: one cargo test command; a run that ends without results counts as one failure.
suite() {
  local name=$1 p f rc
  shift
  echo "== $name"
  "$@" 2>&1 | tee "$log"
  rc=${PIPESTATUS[0]}
  p=$(sed -n 's/^test result: .* \([0-9]*\) passed; .*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
  f=$(sed -n 's/^test result: .* passed; \([0-9]*\) failed.*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }')
  if [ "$rc" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
  passed=$((passed + p)) failed=$((failed + f))
}
# check NAME COMMAND...: something that is right or wrong as a whole; it counts as one.
check() {
  echo "== $1"
  shift
  if "$@"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
}
# Cargo does not build the binaries of other packages for a test, so every tier starts with them. Always for the whole
# workspace: another choice of packages is another choice of features, and builds every crate a second time.
suite "build" cargo build --locked --workspace --bins
for tier in "$@"; do
  case $tier in
  lint) check "lint: formatting" cargo fmt --all --check
        check "lint: clippy" cargo clippy --locked --workspace --all-targets -- -D warnings
        check "lint: licences, sources and banned crates" make --no-print-directory deny ;;
  unit) suite "unit: pure code and fakes" cargo test --locked --workspace --lib --bins --no-fail-fast
        suite "unit: descriptors" cargo test --locked --workspace --test descriptors --no-fail-fast
        suite "unit: a runtime that is ill, images" cargo test --locked --workspace --test faults --test images --no-fail-fast ;;
  kernel) suite "kernel: nftables and CNI" cargo test --locked --workspace --test services --test cni --no-fail-fast ;;
  node) suite "node: contract and agent alone" cargo test --locked --workspace --test contract --test node --no-fail-fast ;;
  cluster) suite "cluster: agent joined" cargo test --locked --workspace --test cluster --no-fail-fast -- --test-threads=1 ;;
  *) echo "test.sh: no tier $tier; there are lint, unit, kernel, node, cluster" >&2; exit 64 ;;
  esac
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
