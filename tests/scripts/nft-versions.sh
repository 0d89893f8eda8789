#!/usr/bin/env bash
# Lists our tables with the `nft` of every Debian, old and new: each program runs with its own libraries, in the namespace
# in which the programmer has made the tables. Downloads about 10 MB for each suite.
#   nft-versions.sh [SUITE...]
# More programs can be named in NODELET_NFT_PROGRAMS, separated by colons.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/debian-suites.sh
[ "$(id -u)" = 0 ] || { echo "nft-versions.sh: run as root" >&2; exit 1; }
# bullseye's 0.9.8 is older than the 1.0.2 that is promised.
[ $# -gt 0 ] || set -- bullseye bookworm trixie forky sid
work=$(mktemp -d /tmp/nlt-$$-nft-XXXX)
trap 'rm -rf "$work"' EXIT
programs=${NODELET_NFT_PROGRAMS:+:$NODELET_NFT_PROGRAMS}
for suite in "$@"; do
  suite_update "$suite" && suite_closure "$suite" nftables "$work/$suite" || { echo "$suite: the mirror does not offer it" >&2; continue; }
  root=$work/$suite
  loader=$(find "$root" -name 'ld-linux-x86-64.so.2' -path '*x86_64-linux-gnu*' -print -quit)
  printf '#!/bin/sh\nexec %s --library-path %s %s/usr/sbin/nft "$@"\n' "$(readlink -f "$loader")" \
    "$root/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu" "$root" >"$root/nft"
  chmod +x "$root/nft"
  programs=$programs:$root/nft
done
[ -n "$programs" ] || { echo "nft-versions.sh: nothing to test with" >&2; exit 1; }
NODELET_NFT_PROGRAMS=${programs#:} nice -n 10 cargo test --locked --workspace --test services -- --nocapture \
  nft_lists_our_tables_without_complaint
