#!/usr/bin/env bash
# Assembles the images of upstream's e2e suite v1.37.2 into build/e2e/images.tar from a Debian tree, Debian's busybox and the
# programs that e2e-programs.sh built. Names and tags are those that `e2e.test --list-images` prints. No registry is used.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$PWD/build/e2e
exec 9>"$out/images.lock"
flock 9
want=$(cat "$out"/{agnhost,nnp,coredns,regression-issue-74839} build/pause /bin/busybox /bin/bash-static "$0" | sha256sum)
if [ -f "$out/images.tar" ] && [ "$(cat "$out/images.stamp" 2>/dev/null)" = "$want" ]; then exit 0; fi
packages=bash,curl,wget,netcat-openbsd,bind9-dnsutils,iproute2,conntrack,iptables,ca-certificates,nginx-light,iputils-ping,util-linux
if [ "$(cat "$out/debian.packages" 2>/dev/null)" != "$packages" ]; then
  echo "making a Debian tree for the images (half a minute)" >&2
  rm -rf "$out/debian.new" "$out/debian"
  debootstrap --variant=minbase --include=$packages bookworm "$out/debian.new" >"$out/debootstrap.log" 2>&1 ||
    { tail -5 "$out/debootstrap.log" >&2; exit 1; }
  rm -rf "$out"/debian.new/{var/cache/apt/*,var/lib/apt/lists/*,usr/share/{doc,man,locale},dev/*}
  mv "$out/debian.new" "$out/debian"
  echo "$packages" >"$out/debian.packages"
fi
module=$(cd tests/go && go list -m -f '{{.Dir}}' k8s.io/kubernetes)/test/images
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/out"
arch=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
entries=()
# layer DIRECTORY: packs it and prints its digest.
layer() {
  tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$work/layer" -C "$1" .
  local digest
  digest=$(sha256sum "$work/layer" | cut -d' ' -f1)
  mv "$work/layer" "$work/out/$digest.tar"
  echo "$digest"
}
# image REFERENCE CONFIG LAYER...: CONFIG is the "config" of the image as JSON.
image() {
  local reference=$1 config=$2 ids files digest
  shift 2
  ids=$(printf '"sha256:%s",' "$@") files=$(printf '"%s.tar",' "$@")
  printf '{"architecture":"%s","os":"linux","author":"%s","config":%s,"rootfs":{"type":"layers","diff_ids":[%s]}}' \
    "$arch" "$reference" "$config" "${ids%,}" >"$work/config"
  digest=$(sha256sum "$work/config" | cut -d' ' -f1)
  mv "$work/config" "$work/out/$digest.json"
  entries+=("{\"Config\":\"$digest.json\",\"RepoTags\":[\"$reference\"],\"Layers\":[${files%,}]}")
}
path='"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]'
e2e=registry.k8s.io/e2e-test-images

mkdir -p "$work"/pause "$work"/regression "$work"/agnhost/{etc,uploads,tmp} "$work"/nnp/usr/local/bin "$work"/busybox/{bin,etc,tmp,root,usr/bin}
chmod 1777 "$work"/{busybox,agnhost}/tmp
cp build/pause "$work/pause/pause"
cp "$out/agnhost" "$work/agnhost/agnhost"
ln -s agnhost "$work/agnhost/agnhost-2"
cp "$out/coredns" "$work/agnhost/coredns"
cp "$module"/agnhost/porter/localhost.{crt,key} "$work/agnhost/"
cp "$out"/debian/etc/{passwd,group} "$work/agnhost/etc/"
echo 'user-defined-in-image:x:1000:1000::/home/user:/bin/sh' >>"$work/agnhost/etc/passwd"
printf 'user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n' >>"$work/agnhost/etc/group"
install -m 4755 "$out/nnp" "$work/nnp/usr/local/bin/nnp"
cp /bin/busybox "$work/busybox/bin/busybox"
for applet in $(/bin/busybox --list); do
  case $applet in busybox | sh) ;; *) ln -s busybox "$work/busybox/bin/$applet" ;; esac
done
# Upstream's image has busybox 1.37, whose ash hands on environment names that a shell variable cannot have; Debian's drops
# them. Tests read such names (so bash runs where there is one), and others compare ash's error texts (so ash runs else).
cp /bin/bash-static "$work/busybox/bin/bash-static"
cat >"$work/sh.c" <<'C'
#include <ctype.h>
#include <unistd.h>
extern char **environ;
int main(int count, char **words) {
  for (char **entry = environ; *entry; entry++)
    for (char *at = *entry; *at && *at != '='; at++)
      if (!isalnum((unsigned char)*at) && *at != '_') return execv("/bin/bash-static", words);
  return execv("/bin/busybox", words);
}
C
gcc -static -Os -s -o "$work/busybox/bin/sh" "$work/sh.c"
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >"$work/busybox/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$work/busybox/etc/group"

debian=$(layer "$out/debian") agnhost=$(layer "$work/agnhost") busybox=$(layer "$work/busybox")
image registry.k8s.io/pause:3.10.2 '{"Entrypoint":["/pause"],"User":"65535:65535"}' "$(layer "$work/pause")"
for tag in 2.66.1 2.55; do image $e2e/agnhost:$tag "{\"Entrypoint\":[\"/agnhost\"],\"Cmd\":[\"pause\"],$path}" "$debian" "$agnhost"; done
for tag in 1.37.0-2 1.36.1-1; do image $e2e/busybox:$tag "{\"Cmd\":[\"sh\"],$path}" "$busybox"; done
for tag in 1.27.0-2 1.28.0-2; do
  image $e2e/nginx:$tag "{\"Entrypoint\":[\"nginx\",\"-g\",\"daemon off;\"],$path}" "$debian"
done
image $e2e/nonroot:1.5 "{\"Cmd\":[\"sh\"],\"User\":\"1234\",$path}" "$busybox"
image $e2e/nonewprivs:1.4 "{\"Cmd\":[\"nnp\"],$path}" "$busybox" "$(layer "$work/nnp")"
image $e2e/glibc-dns-testing:2.1.1 "{\"Cmd\":[\"bash\"],$path}" "$debian"
image registry.k8s.io/build-image/distroless-iptables:v0.9.9 "{$path}" "$debian"
cp "$out/regression-issue-74839" "$work/regression/"
image $e2e/regression-issue-74839:1.5 '{"Entrypoint":["/regression-issue-74839"]}' "$(layer "$work/regression")"
for name in kitten nautilus; do
  mkdir "$work/$name"
  cp -r "$module/$name/html/." "$work/$name/"
  image $e2e/$name:1.8 "{\"Entrypoint\":[\"/agnhost\"],\"Cmd\":[\"test-webserver\"],$path}" "$debian" "$agnhost" "$(layer "$work/$name")"
done
(IFS=,; echo "[${entries[*]}]") >"$work/out/manifest.json"
tar -cf "$out/images.tar.new" -C "$work/out" .
mv "$out/images.tar.new" "$out/images.tar"
echo "$want" >"$out/images.stamp"
