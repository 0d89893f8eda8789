#!/usr/bin/env bash
# Builds the Go programs that tests run into build/. Does nothing when sources and versions are those of the last build.
#   programs.sh images   the programs of the test images only: seconds
#   programs.sh          all: the control plane, containerd 2.x, a runc of its time and the CNI plugins, too
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p build/v2 build/runc build/cni
exec 9>build/programs.lock
flock 9
command_line=$0
# is_new STAMP PATH...: the sources below PATH, or this script, are not those of the stamp.
is_new() {
  local stamp=$1
  shift
  want=$(find "$@" -type f -print0 | sort -z | xargs -0 sha256sum | cat - "$command_line" | sha256sum)
  [ "$(cat "$stamp" 2>/dev/null)" != "$want" ]
}
need_go() {
  command -v go >/dev/null || { echo "programs.sh: the go command is needed (1.26 or newer): https://go.dev/dl" >&2; exit 1; }
}
if is_new build/image-programs.stamp tests/go/go.mod tests/go/cmd/echo tests/go/cmd/pause; then
  need_go
  # The images hold nothing but the program, so these two may not need a C library.
  (cd tests/go && CGO_ENABLED=0 go build -ldflags "-s -w" -o ../../build/ ./cmd/echo ./cmd/pause)
  echo "$want" >build/image-programs.stamp
fi
if [ "${1:-}" = images ] || ! is_new build/all-programs.stamp tests/go tests/go-containerd tests/go-runc; then exit 0; fi
need_go
echo "building the Go programs for tests (about 7 minutes on 2 cores when Go's build cache is cold)" >&2
version="-X k8s.io/component-base/version.gitVersion=v1.37.2 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37"
(cd tests/go && go build -ldflags "-s -w $version" -o ../../build/ ./cmd/controlplane k8s.io/kubernetes/cmd/kubectl)
(
  cd tests/go-containerd
  containerd=github.com/containerd/containerd/v2
  go build -tags "no_btrfs no_zfs no_devmapper" -ldflags "-s -w -X $containerd/version.Version=v2.4.2" \
    -o ../../build/v2/ $containerd/cmd/containerd $containerd/cmd/containerd-shim-runc-v2 $containerd/cmd/ctr
  plugins=github.com/containernetworking/plugins/plugins
  CGO_ENABLED=0 go build -ldflags "-s -w" -o ../../build/cni/ github.com/containernetworking/cni/cnitool \
    $plugins/ipam/host-local $plugins/main/bridge $plugins/main/loopback $plugins/meta/portmap
)
(cd tests/go-runc && go build -tags seccomp -ldflags "-s -w -X main.version=1.4.4" -o ../../build/runc/ github.com/opencontainers/runc)
echo "$want" >build/all-programs.stamp
