#!/usr/bin/env bash
# Builds the Go programs that tests run into build/: the control plane, the programs of the test images, containerd 2.x
# and the CNI plugins. Does nothing when sources and versions are those of the last build.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p build/v2 build/cni
exec 9>build/programs.lock
flock 9
want=$(find tests/go tests/go-containerd -type f -print0 | sort -z | xargs -0 sha256sum | cat - "$0" | sha256sum)
if [ "$(cat build/programs.stamp 2>/dev/null)" = "$want" ]; then exit 0; fi
command -v go >/dev/null || { echo "programs.sh: the go command is needed (1.26 or newer): https://go.dev/dl" >&2; exit 1; }
echo "building the Go programs for tests (about 7 minutes on 2 cores when Go's build cache is cold)" >&2
version="-X k8s.io/component-base/version.gitVersion=v1.37.2 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37"
(
  cd tests/go
  # The images hold nothing but the program, so these two may not need a C library.
  CGO_ENABLED=0 go build -ldflags "-s -w" -o ../../build/ ./cmd/echo ./cmd/pause
  go build -ldflags "-s -w $version" -o ../../build/ ./cmd/controlplane k8s.io/kubernetes/cmd/kubectl
)
(
  cd tests/go-containerd
  containerd=github.com/containerd/containerd/v2
  go build -tags "no_btrfs no_zfs no_devmapper" -ldflags "-s -w -X $containerd/version.Version=v2.4.2" \
    -o ../../build/v2/ $containerd/cmd/containerd $containerd/cmd/containerd-shim-runc-v2 $containerd/cmd/ctr
  plugins=github.com/containernetworking/plugins/plugins
  CGO_ENABLED=0 go build -ldflags "-s -w" -o ../../build/cni/ github.com/containernetworking/cni/cnitool \
    $plugins/ipam/host-local $plugins/main/bridge $plugins/main/loopback $plugins/meta/portmap
)
echo "$want" >build/programs.stamp
