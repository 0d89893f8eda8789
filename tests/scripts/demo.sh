#!/usr/bin/env bash
# Shows nodelet alone: a private containerd and the agent in a network namespace of their own, tests/data/demo as the
# directory of manifests. Needs root; the host's network, cgroups and containerd stay as they are.
#   demo.sh        runs it and cleans up; KEEP=1 leaves it running
#   demo.sh stop   stops what KEEP=1 left
set -euo pipefail
cd "$(dirname "$0")/../.."
name=nodelet-demo
dir=/run/$name
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
inside() { nsenter --net=/run/netns/$name "$@"; }

# owned: processes whose command line names our directory, and no others.
owned() {
  local proc
  for proc in /proc/[0-9]*; do
    if tr '\0' ' ' 2>/dev/null <"$proc/cmdline" | grep -q -- "$dir/"; then echo "${proc#/proc/}"; fi
  done 2>/dev/null
}
clean() {
  local cgroup sockets=() made=()
  # What is outside of our directory: sockets of shims, of which our namespace tells, and what containerd's CNI library
  # remembers of our pods.
  if [ -e /run/netns/$name ]; then mapfile -t sockets < <(inside awk 'index($8, "/run/containerd/s/") == 1 { print $8 }' /proc/net/unix); fi
  owned | xargs -r kill -KILL 2>/dev/null || true
  for cgroup in /sys/fs/cgroup/$name /sys/fs/cgroup/*/$name; do
    [ -d "$cgroup" ] || continue
    for _ in $(seq 100); do
      find "$cgroup" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u | xargs -r kill -KILL 2>/dev/null || true
      find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
      [ -d "$cgroup" ] || break
      sleep 0.05
    done
  done
  awk -v at="$dir/" 'index($5, at) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r -n1 umount -l
  [ -e /run/netns/$name ] && ip netns delete $name
  grep -lsF "$dir/" /var/lib/cni/results/* | xargs -r rm -f
  rm -f "${sockets[@]}"
  [ -f $dir/made ] && mapfile -t made <$dir/made
  rm -rf "$dir"
  [ ${#made[@]} -eq 0 ] || rmdir "${made[@]}" 2>/dev/null || true
}
wait_for() { # wait_for SECONDS WHAT COMMAND...
  local deadline=$(($(date +%s) + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    if [ "$(date +%s)" -ge $deadline ]; then
      echo "demo: waited in vain for $what; the end of the agent's log:" >&2
      tail -20 $dir/nodelet.log >&2 || true
      return 1
    fi
    sleep 0.1
  done
}

[ "$(id -u)" = 0 ] || { echo "demo: run as root: it makes a network namespace and runs containers" >&2; exit 1; }
if [ "${1:-}" = stop ]; then clean; echo "stopped"; exit 0; fi
if [ -d $dir ]; then say "Stopping the demo of before"; clean; fi

say "Preparing: packages, programs, images"
tests/scripts/setup.sh demo
cargo build --locked -q -p nodelet -p nodelet-cni
bin=${CARGO_TARGET_DIR:-target}/debug
# A failure with KEEP=1 leaves everything to be looked at, too.
[ "${KEEP:-}" = 1 ] || trap clean EXIT

say "A network namespace, a cgroup and containerd ($(containerd --version | cut -d' ' -f3)) of its own"
mkdir -p $dir/ctrd/cni/{bin,conf} $dir/manifests $dir/kubelet
# Directories that containerd makes outside of ours; those that are not there yet go again at the end.
for made in /var/lib/cni/results /var/lib/cni /run/containerd/s /run/containerd; do [ -d $made ] || echo $made; done >$dir/made
ip netns add $name
for step in "link set lo up" "link add eth0 type veth peer name outside" "addr add 10.88.0.2/24 dev eth0" "link set eth0 up" \
  "link set outside up" "route add default via 10.88.0.1"; do
  inside ip $step
done
awk '($3 == "cgroup" || $3 == "cgroup2") && index($2, "/sys/fs/cgroup") == 1 { print $2 }' /proc/self/mounts | while read -r hierarchy; do
  mkdir "$hierarchy/$name"
  # A v1 cpuset starts empty, and no process can be put into an empty one.
  case $hierarchy in */cpuset) for f in cpuset.cpus cpuset.mems; do cat "$hierarchy/$f" >"$hierarchy/$name/$f"; done ;; esac
done
# The agent writes the network configuration itself.
cp "$bin/nodelet-cni" $dir/ctrd/cni/bin/
ln -s nodelet-cni $dir/ctrd/cni/bin/loopback
cat >$dir/ctrd/config.toml <<TOML
version = 2
root = "$dir/ctrd/root"
state = "$dir/ctrd/state"
[grpc]
address = "$dir/ctrd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "$dir/ctrd/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
# Without CAP_SYS_RESOURCE, as in many containers, a sandbox cannot have the score that CRI asks for.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "$dir/ctrd/cni/bin"
conf_dir = "$dir/ctrd/cni/conf"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "$dir/ctrd/runc"
TOML
inside setsid containerd --config $dir/ctrd/config.toml >$dir/ctrd/log 2>&1 &
disown
ctr="ctr --address $dir/ctrd/containerd.sock --namespace k8s.io"
wait_for 30 containerd $ctr version
$ctr images import build/images.tar >/dev/null

say "nodelet run --manifests, with two web pods, a ConfigMap and a Service"
cp tests/data/demo/*.yaml $dir/manifests/
cat >$dir/kubelet.yaml <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: /$name
failCgroupV1: false
failSwapOn: false
imageGCHighThresholdPercent: 100
podLogsDir: $dir/pod-logs
YAML
start_agent() {
  inside setsid "$bin/nodelet" --state-dir $dir/state run --manifests $dir/manifests --config $dir/kubelet.yaml \
    --root-dir $dir/kubelet --cert-dir $dir/pki --service-cidr 10.96.0.0/16 --pod-cidr 10.244.0.0/24 \
    --cni-conf-dir $dir/ctrd/cni/conf --container-runtime-endpoint unix://$dir/ctrd/containerd.sock >>$dir/nodelet.log 2>&1 &
  agent=$!
  disown
}
start_agent
nodelet="$bin/nodelet --state-dir $dir/state"
wait_for 20 "the control socket" $nodelet get pods
ready() { [ "$($nodelet get pods -o json | jq '[.. | objects | select(.type? == "Ready" and .status? == "True")] | length')" -ge 2 ]; }
wait_for 60 "both pods to be Ready" ready
$nodelet get pods -o wide

say "Asking the Service by its ClusterIP, http://10.96.0.10, until both pods have answered"
answered() {
  local answer
  answer=$(inside curl -sS --max-time 2 http://10.96.0.10/) || return 1
  echo "  $answer" >&3
  case $answer in web-1*) one=1 ;; web-2*) two=1 ;; esac
  [ "${one:-}${two:-}" = 11 ]
}
exec 3>&1
wait_for 20 "answers of both pods" answered
printf '  the page, from the ConfigMap: '
inside curl -sS --max-time 2 http://10.96.0.10/page/

say "nodelet get services"
$nodelet get services
say "nodelet get endpoints"
$nodelet get endpoints

say "kill -9 of the agent: the Service answers while it is away, and no pod is restarted"
kill -KILL $agent
while [ -d /proc/$agent ]; do sleep 0.01; done
inside curl -sS --max-time 2 http://10.96.0.10/
start_agent
wait_for 20 "the control socket" $nodelet get pods
wait_for 20 "both pods to be Ready" ready
$nodelet get pods

if [ "${KEEP:-}" = 1 ]; then
  say "It goes on running. To look around:"
  cat <<TEXT
  $nodelet get pods -o yaml
  $nodelet logs web-1
  $nodelet describe pod web-1
  nsenter --net=/run/netns/$name curl http://10.96.0.10/
  nsenter --net=/run/netns/$name nft list ruleset
  \$EDITOR $dir/manifests/web.yaml        # edits and removals take effect at once
  less $dir/nodelet.log
and to stop it: make demo-stop
TEXT
else
  say "Cleaning up"
fi
