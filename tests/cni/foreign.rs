//! Our plugin under containernetworking's `cnitool`, and our client with containernetworking's plugins.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use harness::netns::Netns;
use harness::programs;
use nodelet_cni::client::{AttachmentArgs, Client, Config, NetworkList};
use nodelet_cni::conflist::{Conflist, ensure_conflist};
use nodelet_cni::protocol::AttachmentId;
use serde_json::{Value, json};

use crate::bench::{Bench, connect, listen};

#[test]
fn cnitool_drives_the_plugin_with_the_conflist_that_the_agent_writes() {
    let bench = Bench::new();
    let cnitool = programs::built("cni/cnitool").unwrap();
    let conf_dir = bench.dir.path().join("net.d");
    let pod_cidrs = ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|cidr| cidr.parse().unwrap()).to_vec();
    let conflist = Conflist { pod_cidrs, mtu: 0, data_dir: bench.dir.path().to_owned() };
    ensure_conflist(&conf_dir, &conflist).unwrap();
    let pod = Netns::new().unwrap();
    // libcni's cache has a fixed place; a mount namespace of its own keeps the machine's /var/lib/cni out of this.
    let script = format!(
        "mount -t tmpfs none /var/lib; export NETCONFPATH={conf} CNI_PATH={bin}; tool={tool}; ns={ns}
         $tool status nodelet $ns; $tool add nodelet $ns; $tool check nodelet $ns
         nsenter --net=$ns ip route del default
         ! $tool check nodelet $ns 2>&1 || exit 7
         ! $tool gc nodelet $ns || exit 8
         $tool del nodelet $ns; $tool del nodelet $ns",
        conf = conf_dir.display(),
        bin = bench.plugin().parent().unwrap().display(),
        tool = cnitool.display(),
        ns = pod.path().display(),
    );
    let output = bench.node.output(Command::new("unshare").args(["-m", "sh", "-ec", &script])).unwrap();
    assert!(output.contains("10.244.1.2/32") && output.contains("fd00:10:244:1::2/128"), "{output}");
    assert!(output.contains("route to 0.0.0.0/0 is missing"), "{output}");
    assert!(pod.ip("link show eth0").is_err());
    bench.assert_clean("after cnitool del");
}

/// The chain that most clusters without a network vendor run.
fn chain(bench: &Bench) -> NetworkList {
    let conf = json!({
        "cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.1.0"], "name": "foreign",
        "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": {
                "type": "host-local", "dataDir": bench.dir.path().join("host-local"),
                "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd88::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
            {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}},
        ],
    });
    let dir = bench.dir.path().join("net.d");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("10-foreign.conflist"), conf.to_string()).unwrap();
    Config::load(&dir).unwrap()
}

fn client(bench: &Bench, bin: PathBuf) -> Client {
    Client::new(vec![bin], bench.dir.path().join("cni"), Duration::from_secs(30))
}

/// Runs a future in the node's namespace: a plugin inherits the namespace of the thread that starts it.
fn on<T: Send>(node: &Netns, work: impl AsyncFnOnce() -> T + Send) -> T {
    let run = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work());
    node.within(run).unwrap()
}

fn attachment(id: &str, pod: &Netns) -> AttachmentArgs {
    AttachmentArgs {
        container_id: id.to_owned(),
        ifname: "eth0".to_owned(),
        netns: pod.path().display().to_string(),
        args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
        capabilities: json!({"portMappings": [{"hostPort": 8081, "containerPort": 8080, "protocol": "tcp"}]})
            .as_object()
            .cloned()
            .unwrap(),
    }
}

#[test]
fn the_client_runs_bridge_host_local_and_portmap_through_every_verb() {
    let bench = Bench::new();
    let bin = programs::built("cni/bridge").unwrap().parent().unwrap().to_owned();
    let (client, mut list) = (client(&bench, bin), chain(&bench));
    let (a, b) = (Netns::new().unwrap(), Netns::new().unwrap());
    let (to_a, to_b) =
        (attachment("a", &a), AttachmentArgs { capabilities: Default::default(), ..attachment("b", &b) });
    on(&bench.node, async || {
        assert_eq!(list.negotiate(&client).await.unwrap().to_string(), "1.1.0");
        list.status(&client).await.unwrap();
        let added = list.add(&client, &to_a).await.unwrap();
        assert_eq!(added.ips[0].address.to_string(), "10.88.0.2/24");
        assert_eq!(added.ips[1].address.to_string(), "fd88::2/64");
        list.add(&client, &to_b).await.unwrap();
        list.check(&client, &to_a).await.unwrap();
    });
    let cached: Value =
        serde_json::from_slice(&std::fs::read(bench.dir.path().join("cni/results/foreign-a-eth0")).unwrap()).unwrap();
    assert_eq!((&cached["kind"], &cached["netns"]), (&json!("cniCacheV1"), &json!(to_a.netns)));
    assert_eq!(cached["result"]["ips"][0]["address"], "10.88.0.2/24");

    let listener = listen(&a, 8080);
    let address: IpAddr = "10.88.0.2".parse().unwrap();
    assert_eq!(connect(&b, address, 8080, &listener).to_string(), "10.88.0.3");
    // The port mapping got there through capabilities, runtimeConfig and prevResult.
    connect(&b, "10.88.0.1".parse().unwrap(), 8081, &listener);

    a.ip("addr flush dev eth0").unwrap();
    on(&bench.node, async || {
        let error = list.check(&client, &to_a).await.unwrap_err().to_string();
        assert!(error.starts_with("CHECK of plugin bridge in network foreign"), "{error}");
        let valid = [AttachmentId { container_id: "a".into(), ifname: "eth0".into() }];
        list.gc(&client, &valid, SystemTime::now() + Duration::from_secs(60)).await.unwrap();
        let left: Vec<_> = list.cached_attachments(&client).unwrap().iter().map(|c| c.container_id.clone()).collect();
        assert_eq!(left, ["a"], "GC removed what is not valid");
        list.del(&client, &AttachmentArgs { netns: String::new(), ..to_a.clone() }).await.unwrap();
        list.del(&client, &to_a).await.unwrap();
    });
    let leases = std::fs::read_dir(bench.dir.path().join("host-local/foreign")).unwrap();
    let leases: Vec<_> = leases.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(leases.iter().all(|name| !name.starts_with("10.88.") && !name.starts_with("fd88")), "{leases:?}");
}

#[test]
fn linked_as_loopback_it_serves_the_chain_that_containerd_runs_for_every_sandbox() {
    let bench = Bench::new();
    let bin = bench.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(bench.plugin(), bin.join("loopback")).unwrap();
    let file = bench.dir.path().join("lo.conflist");
    // containerd's own list, internal/cri: version 0.3.1, one plugin, nothing else.
    std::fs::write(&file, r#"{"cniVersion":"0.3.1","name":"cni-loopback","plugins":[{"type":"loopback"}]}"#).unwrap();
    let list = Config::load_file(&file).unwrap();
    let (client, pod) = (client(&bench, bin), Netns::new().unwrap());
    pod.ip("link set lo down").unwrap();
    let attachment = AttachmentArgs { ifname: "lo".to_owned(), ..attachment("a", &pod) };
    let result = on(&bench.node, async || list.add(&client, &attachment).await.unwrap());
    assert!(pod.ip("-br addr show lo").unwrap().contains("127.0.0.1/8"));
    assert!(result.ips.iter().any(|ip| ip.address.to_string() == "127.0.0.1/8"), "{result:?}");
    on(&bench.node, async || list.del(&client, &attachment).await.unwrap());
}

#[test]
fn a_cache_file_written_by_libcni_is_used_by_the_client() {
    let bench = Bench::new();
    let (pod, list) = (Netns::new().unwrap(), {
        let dir = bench.dir.path().join("net.d");
        let pod_cidrs = vec!["10.244.1.0/24".parse().unwrap()];
        ensure_conflist(&dir, &Conflist { pod_cidrs, mtu: 0, data_dir: bench.dir.path().to_owned() }).unwrap();
        Config::load(&dir).unwrap()
    });
    let client = client(&bench, bench.plugin().parent().unwrap().to_owned());
    let script = format!(
        "mount -t tmpfs none /var/lib; export NETCONFPATH={conf} CNI_PATH={bin}
         {tool} add nodelet {ns} >/dev/null; cat /var/lib/cni/results/*",
        conf = bench.dir.path().join("net.d").display(),
        bin = bench.plugin().parent().unwrap().display(),
        tool = programs::built("cni/cnitool").unwrap().display(),
        ns = pod.path().display(),
    );
    let cached = bench.node.output(Command::new("unshare").args(["-m", "sh", "-ec", &script])).unwrap();
    let id = serde_json::from_str::<Value>(&cached).unwrap()["containerId"].as_str().unwrap().to_owned();
    std::fs::create_dir_all(bench.dir.path().join("cni/results")).unwrap();
    std::fs::write(bench.dir.path().join(format!("cni/results/nodelet-{id}-eth0")), cached).unwrap();
    let attachment = AttachmentArgs { capabilities: Default::default(), ..attachment(&id, &pod) };
    on(&bench.node, async || {
        list.check(&client, &attachment).await.unwrap();
        pod.ip("route del default").unwrap();
        let error = list.check(&client, &attachment).await.unwrap_err();
        assert!(error.to_string().contains("route to 0.0.0.0/0 is missing"), "{error}");
        list.del(&client, &attachment).await.unwrap();
    });
    assert_eq!(list.cached_attachments(&client).unwrap().len(), 0);
}

#[test]
fn thirty_attachments_at_once_through_the_client_are_all_made_and_all_removed() {
    let bench = Bench::new();
    let dir = bench.dir.path().join("net.d");
    let pod_cidrs = vec!["10.244.1.0/24".parse().unwrap()];
    ensure_conflist(&dir, &Conflist { pod_cidrs, mtu: 0, data_dir: bench.dir.path().to_owned() }).unwrap();
    let list = Config::load(&dir).unwrap();
    let client = client(&bench, bench.plugin().parent().unwrap().to_owned());
    let pods: Vec<_> = (0..30).map(|_| Netns::new().unwrap()).collect();
    let args: Vec<_> = pods.iter().enumerate().map(|(n, pod)| attachment(&format!("c{n}"), pod)).collect();
    on(&bench.node, async || {
        let added = futures_util::future::join_all(args.iter().map(|args| list.add(&client, args))).await;
        let addresses: std::collections::BTreeSet<_> =
            added.into_iter().map(|result| result.unwrap().ips[0].address).collect();
        assert_eq!(addresses.len(), 30);
        let deleted = futures_util::future::join_all(args.iter().map(|args| list.del(&client, args))).await;
        assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    });
    assert_eq!(list.cached_attachments(&client).unwrap().len(), 0);
    let links = bench.node.ip("-br link").unwrap();
    assert!(!links.contains("veth"), "{links}");
}
