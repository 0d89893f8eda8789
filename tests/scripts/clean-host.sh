#!/usr/bin/env bash
# Removes what tests that crashed left on this machine. Everything that tests make carries the prefix "nlt-" and the id of
# the process that made it; only what belongs to processes that are gone is touched.
set -uo pipefail
[ "$(id -u)" = 0 ] || { echo "clean-host.sh: run as root" >&2; exit 1; }
# owner_gone NAME: NAME is nlt-PID-...; true when that process does not exist.
owner_gone() { local pid=${1#nlt-}; pid=${pid%%-*}; [[ $pid =~ ^[0-9]+$ ]] && [ ! -d "/proc/$pid" ]; }
left() { find /tmp /run/netns /sys/fs/cgroup /sys/fs/cgroup/* -maxdepth 1 -name 'nlt-*' -printf '%f\n' 2>/dev/null | sort -u; }
for name in $(left); do
  owner_gone "$name" || continue
  echo "removing $name"
  for dir in /sys/fs/cgroup/*/"$name" /sys/fs/cgroup/"$name"; do
    [ -d "$dir" ] || continue
    find "$dir" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u | xargs -r kill -KILL 2>/dev/null
  done
  # Daemons are found by the directory that their command line names.
  for proc in /proc/[0-9]*; do
    if tr '\0' '\n' <"$proc/cmdline" 2>/dev/null | grep -q "/tmp/$name/"; then kill -KILL "${proc#/proc/}" 2>/dev/null; fi
  done
  for _ in $(seq 50); do
    find /sys/fs/cgroup/*/"$name" /sys/fs/cgroup/"$name" -depth -type d -exec rmdir {} + 2>/dev/null
    ls -d /sys/fs/cgroup/*/"$name" /sys/fs/cgroup/"$name" >/dev/null 2>&1 || break
    sleep 0.1
  done
  awk -v at="/tmp/$name" 'index($5, at) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r -n1 umount -l
  [ -e "/run/netns/$name" ] && ip netns delete "$name"
  rm -rf "/tmp/$name"
done
