#!/usr/bin/env bash
# Installs what building and testing need on Debian, builds the Go programs and assembles the test images. Safe to run again.
#   setup.sh demo   leaves out what only tests need, which takes minutes to build
set -euo pipefail
cd "$(dirname "$0")/../.."
# program:package (protoc: containerd-client's build script runs it)
missing=()
for need in containerd:containerd runc:runc nft:nftables conntrack:conntrack busybox:busybox-static ip:iproute2 \
  bash-static:bash-static jq:jq curl:curl gcc:gcc pkg-config:pkg-config tar:tar \
  protoc:protobuf-compiler; do
  command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
done
# For the runc that tests build.
[ -e /usr/include/seccomp.h ] || [ "${1:-}" = demo ] || missing+=(libseccomp-dev)
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing ${missing[*]}" >&2
  command -v apt-get >/dev/null || { echo "setup: needs ${missing[*]}; this script installs only with apt-get" >&2; exit 1; }
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q >&2
  # Installing the package must not start the machine's own containerd: demo and tests start theirs.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
  fi
  apt-get install -q -y --no-install-recommends "${missing[@]}" >&2
fi
command -v cargo >/dev/null || { echo "setup: needs Rust: https://rustup.rs (rust-toolchain.toml pins the version)" >&2; exit 1; }
if [ "${1:-}" != demo ]; then
  cargo fmt --version >/dev/null && cargo clippy --version >/dev/null
  tests/scripts/programs.sh
fi
tests/scripts/images.sh
