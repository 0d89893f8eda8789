#!/bin/sh
# The first process of a virtual machine of old-kernels.sh: runs the suite and powers off.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/
box=/usr/bin/busybox
[ -x $box ] || box=/bin/busybox
for applet in mount mkdir cat cut dmesg grep ls rm sed sleep tail uname; do $box ln -s $box /bin/$applet; done
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
ip link set lo up
uname -a
nft --version
NODELET_TEST_SLOWNESS=$(cat /slowness)
export NODELET_TEST_SLOWNESS
set -f
cd /tmp
/services $(cat /arguments)
echo "exit code $?"
dmesg | grep -E 'WARNING|BUG|Oops|segfault|nf_tables|nft_' | tail -n 20
$box poweroff -f
