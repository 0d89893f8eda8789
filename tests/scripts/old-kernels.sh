#!/usr/bin/env bash
# Runs the suite `services` on Debian's older kernels, each in an emulated machine, so that it runs where there is no KVM.
# That takes about ten times as long: NODELET_TEST_SLOWNESS, 10 if not set, stretches the suite's deadlines. 1.5 GiB of memory, one machine at a time.
#   old-kernels.sh [SUITE...] [-- arguments of the test program]
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/scripts/debian-suites.sh
suites=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do suites+=("$1"); shift; done
[ $# -eq 0 ] || shift
# bullseye's 5.10 is older than the 5.15 that is promised, bookworm has 6.1.
[ ${#suites[@]} -gt 0 ] || suites=(bullseye bookworm)
need qemu-system-x86_64:qemu-system-x86 jq:jq modprobe:kmod cpio:cpio busybox:busybox-static strip:binutils \
  nft:nftables conntrack:conntrack ip:iproute2 sysctl:procps
work=$(mktemp -d /tmp/nlt-$$-vm-XXXX)
trap 'rm -rf "$work"' EXIT

# with PROGRAM...: programs of this machine with their libraries, at their own paths.
with() {
  local program file
  for program in "$@"; do
    program=$(command -v "$program" || echo "$program")
    for file in "$program" $(ldd "$program" 2>/dev/null | grep -o '/[^ ]*'); do
      mkdir -p "$root$(dirname "$file")"
      cp -Lu "$file" "$root$file"
    done
  done
}
# modules KERNEL: what our rules and the networks of the tests are made of. The kernel loads them itself when they are asked for.
modules() {
  local from=$1 version=$2 name file
  mkdir -p "$root/lib/modules/$version"
  depmod -b "$from" "$version"
  cp "$from"/lib/modules/"$version"/modules.{builtin,order}* "$root/lib/modules/$version/"
  for name in nf_tables nfnetlink nf_conntrack nf_conntrack_netlink nf_nat nft_ct nft_nat nft_chain_nat nft_masq nft_numgen nft_reject \
    nft_reject_ipv4 nft_reject_ipv6 nft_compat veth bridge dummy ipv6 sctp sctp_diag virtio_rng; do
    # Some are built in, and some belong to others in newer kernels.
    modprobe -d "$from" -S "$version" --show-depends "$name" 2>/dev/null | sed -n 's/^insmod \([^ ]*\).*/\1/p' || true
  done | sort -u | while read -r file; do
    mkdir -p "$root/$(dirname "${file#"$from"}")"
    cp "$file" "$root/${file#"$from"}"
  done
  depmod -b "$root" "$version"
}

nice -n 10 cargo test --locked --workspace --test services --no-run --message-format=json >"$work/build.json"
suite_program=$(jq -r 'select(.executable and .target.name == "services") | .executable' "$work/build.json")
strip -o "$work/services" "$suite_program"
failed=0
for suite in "${suites[@]}"; do
  suite_update "$suite" || { echo "$suite: the mirror does not offer it" >&2; continue; }
  package=$(suite_apt "$suite" apt-get -s install --no-install-recommends linux-image-cloud-amd64 |
    sed -n 's/^Inst \(linux-image-[0-9][^ ]*\) .*/\1/p')
  kernel=$work/$suite root=$work/$suite-root
  (cd "$old/$suite/archives" && rm -f ./*.deb && suite_apt "$suite" apt-get download -q "$package" >/dev/null && dpkg -x ./*.deb "$kernel")
  [ -d "$kernel/lib" ] || ln -s usr/lib "$kernel/lib"
  version=$(ls "$kernel/lib/modules")
  mkdir -p "$root"/{bin,dev,proc,sys,run,tmp,etc,sbin,usr/bin,usr/sbin}
  with busybox dash date nft conntrack ip sysctl modprobe "$suite_program"
  rm "$root/$suite_program"
  cp "$work/services" "$root/services"
  cp tests/scripts/vm-init.sh "$root/init"
  ln -sf "$(command -v dash)" "$root/bin/sh"
  ln -sf "$(command -v modprobe)" "$root/sbin/modprobe" 2>/dev/null || true
  cp /etc/protocols "$root/etc/" 2>/dev/null || true
  printf '%s\n' "$@" >"$root/arguments"
  echo "${NODELET_TEST_SLOWNESS:-10}" >"$root/slowness"
  modules "$kernel" "$version"
  (cd "$root" && find . | cpio --quiet -o -H newc) >"$work/initrd"
  rm -rf "$root"
  log=$old/$suite/vm.log
  echo "== services on Linux $version ($suite)"
  timeout "${VM_TIMEOUT:-3600}" nice -n 10 qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 1536 -nodefaults -no-reboot -display none \
    -serial stdio -device virtio-rng-pci -kernel "$kernel"/boot/vmlinuz-* -initrd "$work/initrd" \
    -append "console=ttyS0 quiet panic=-1 random.trust_cpu=on" </dev/null | sed -u 's,\r,,g' | tee "$log" || true
  rm -rf "$kernel"
  grep -q '^exit code 0$' "$log" || { echo "services fails on Linux $version: $log" >&2; failed=1; }
done
exit $failed
