#!/usr/bin/env bash
# Builds what upstream's e2e suite needs into build/e2e/: e2e.test, ginkgo, the programs of its images, CoreDNS, and kubelet
# and kube-proxy as the reference. About 7 minutes on 2 cores when Go's build cache is cold.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v debootstrap >/dev/null || { DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends debootstrap >&2; }
out=$PWD/build/e2e
mkdir -p "$out"
exec 9>"$out/programs.lock"
flock 9
want=$(find tests/go tests/coredns -type f -print0 | sort -z | xargs -0 sha256sum | cat - "$0" | sha256sum)
if [ "$(cat "$out/programs.stamp" 2>/dev/null)" = "$want" ]; then exit 0; fi
echo "building upstream's e2e suite" >&2
version="-X k8s.io/component-base/version.gitVersion=v1.37.2 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37"
images=k8s.io/kubernetes/test/images
cd tests/go
CGO_ENABLED=0 go build -ldflags "-s -w" -o "$out/" $images/agnhost
CGO_ENABLED=0 go build -ldflags "-s -w" -o "$out/nnp" $images/nonewprivs
CGO_ENABLED=0 go build -ldflags "-s -w" -o "$out/" $images/regression-issue-74839
go test -c -ldflags "-s -w $version" -o "$out/e2e.test" k8s.io/kubernetes/test/e2e
go build -ldflags "-s -w $version" -o "$out/" github.com/onsi/ginkgo/v2/ginkgo ./cmd/kubelet ./cmd/kube-proxy
(cd ../coredns && CGO_ENABLED=0 go build -ldflags "-s -w" -o "$out/coredns" .)
echo "$want" >"$out/programs.stamp"
