#!/usr/bin/env bash
# Assembles the test images into one archive, build/images.tar, that `ctr images import` reads. No registry is used.
#   localhost/pause:1     the sandbox image
#   localhost/busybox:1   Debian's busybox-static with a link for each applet; /bin/sh is bash-static, because ash
#                         does not run a trap while it waits for a child
#   localhost/echo:v1     the echo server; :v2 and :v3 differ in what /version answers, for rollouts
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/scripts/programs.sh images
exec 9>build/images.lock
flock 9
for file in /bin/busybox /bin/bash-static; do
  [ -x $file ] || { echo "images.sh: $file is missing: make setup installs it" >&2; exit 1; }
done
want=$(cat build/echo build/pause /bin/busybox /bin/bash-static "$0" | sha256sum)
if [ -f build/images.tar ] && [ "$(cat build/images.stamp 2>/dev/null)" = "$want" ]; then exit 0; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
arch=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
pack() { tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf "$1" -C "$2" .; }
entries=()
# image NAME ROOT JSON-OF-CONFIG
image() {
  pack "$work/layer.tar" "$2"
  local layer config
  layer=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
  mv "$work/layer.tar" "$work/out/$layer.tar"
  printf '{"architecture":"%s","os":"linux","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$arch" "$3" "$layer" >"$work/config.json"
  config=$(sha256sum "$work/config.json" | cut -d' ' -f1)
  mv "$work/config.json" "$work/out/$config.json"
  entries+=("{\"Config\":\"$config.json\",\"RepoTags\":[\"localhost/$1\"],\"Layers\":[\"$layer.tar\"]}")
}
mkdir -p "$work"/out "$work"/{pause,echo}/tmp "$work"/busybox/{bin,etc,tmp,root}
chmod 1777 "$work"/{pause,echo,busybox}/tmp
cp build/pause "$work/pause/pause"
cp build/echo "$work/echo/echo"
cp /bin/busybox "$work/busybox/bin/busybox"
for applet in $(/bin/busybox --list); do
  case $applet in busybox | sh) ;; *) ln -s busybox "$work/busybox/bin/$applet" ;; esac
done
cp /bin/bash-static "$work/busybox/bin/sh"
echo 'root:x:0:0:root:/root:/bin/sh' >"$work/busybox/etc/passwd"
echo 'root:x:0:' >"$work/busybox/etc/group"
path='"Env":["PATH=/bin"]'
image pause:1 "$work/pause" '{"Entrypoint":["/pause"],"User":"65535:65535"}'
image busybox:1 "$work/busybox" "{\"Cmd\":[\"sh\"],$path}"
for v in v1 v2 v3; do image echo:$v "$work/echo" "{\"Entrypoint\":[\"/echo\"],\"Env\":[\"PATH=/\",\"ECHO_VERSION=$v\"]}"; done
(IFS=,; echo "[${entries[*]}]") >"$work/out/manifest.json"
tar -cf build/images.tar.new -C "$work/out" .
mv build/images.tar.new build/images.tar
echo "$want" >build/images.stamp
