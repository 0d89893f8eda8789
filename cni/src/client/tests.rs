//! The client against plugins that are shell scripts: each writes down how it was called.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

struct Bench {
    dir: tempfile::TempDir,
    client: Client,
}

impl Bench {
    fn new(timeout: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let client =
            Client::new(vec![dir.path().join("none"), dir.path().join("bin")], dir.path().join("cni"), timeout);
        fs::create_dir_all(dir.path().join("bin")).unwrap();
        fs::create_dir_all(dir.path().join("net.d")).unwrap();
        Self { dir, client }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A plugin that logs verb, name, stdin and environment, and then runs `body`.
    fn plugin(&self, name: &str, body: &str) {
        let log = self.path().join("log");
        let script = format!(
            "#!/bin/sh\nin=$(cat)\necho \"$CNI_COMMAND {name} [$CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME $CNI_ARGS] $in\" \
             >> {}\n{body}\n",
            log.display()
        );
        let path = self.path().join("bin").join(name);
        // Written under another name by another process: a fork of a parallel test must not hold it open for writing,
        // or exec says ETXTBSY.
        let staged = path.with_extension("new");
        fs::write(&staged, script).unwrap();
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(std::process::Command::new("cp").arg("-p").args([&staged, &path]).status().unwrap().success());
    }

    fn list(&self, json: &str) -> NetworkList {
        let file = self.path().join("net.d/10-test.conflist");
        fs::write(&file, json).unwrap();
        Config::load(&self.path().join("net.d")).unwrap()
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path().join("log")).unwrap_or_default();
        let _ = fs::remove_file(self.path().join("log"));
        text.lines().map(str::to_owned).collect()
    }
}

fn result(address: &str) -> String {
    format!(r#"[ "$CNI_COMMAND" != ADD ] || echo '{{"cniVersion":"1.1.0","ips":[{{"address":"{address}"}}]}}'"#)
}

fn attachment() -> AttachmentArgs {
    let capabilities = serde_json::json!({"portMappings": [{"hostPort": 80}], "mac": "02:00:00:00:00:01"});
    AttachmentArgs {
        container_id: "c1".into(),
        ifname: "eth0".into(),
        netns: "/run/netns/x".into(),
        args: vec![("K8S_POD_NAME".into(), "web".into()), ("IgnoreUnknown".into(), "1".into())],
        capabilities: capabilities.as_object().cloned().unwrap(),
    }
}

const TWO: &str = r#"{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"one","x":1},
    {"type":"two","capabilities":{"portMappings":true,"bandwidth":true,"mac":false}}]}"#;

fn stdin(line: &str) -> Value {
    serde_json::from_str(line.split_once("] ").unwrap().1).unwrap()
}

#[tokio::test]
async fn a_chain_passes_results_capabilities_and_arguments_and_is_undone_in_reverse() {
    let bench = Bench::new(Duration::from_secs(10));
    bench.plugin("one", &result("10.0.0.1/32"));
    bench.plugin("two", &result("10.0.0.2/32"));
    let list = bench.list(TWO);
    let added = list.add(&bench.client, &attachment()).await.unwrap();
    assert_eq!(added.ips[0].address.to_string(), "10.0.0.2/32");
    let log = bench.log();
    assert!(log[0].starts_with("ADD one [c1 /run/netns/x eth0 K8S_POD_NAME=web;IgnoreUnknown=1]"), "{}", log[0]);
    let (one, two) = (stdin(&log[0]), stdin(&log[1]));
    assert_eq!(one, serde_json::json!({"cniVersion": "1.1.0", "name": "net", "type": "one", "x": 1}));
    assert_eq!(two["prevResult"]["ips"][0]["address"], "10.0.0.1/32");
    assert_eq!(two["runtimeConfig"], serde_json::json!({"portMappings": [{"hostPort": 80}]}));
    assert!(two.get("capabilities").is_none());
    let cached: Value =
        serde_json::from_slice(&fs::read(bench.path().join("cni/results/net-c1-eth0")).unwrap()).unwrap();
    assert_eq!(cached["kind"], "cniCacheV1");
    assert_eq!(cached["cniArgs"][0], serde_json::json!(["K8S_POD_NAME", "web"]));

    list.check(&bench.client, &attachment()).await.unwrap();
    let order: Vec<_> = bench.log().iter().map(|line| line[..9].to_owned()).collect();
    assert_eq!(order, ["CHECK one", "CHECK two"]);

    // DEL without a namespace and without arguments: the cache has them.
    let bare = AttachmentArgs { container_id: "c1".into(), ifname: "eth0".into(), ..AttachmentArgs::default() };
    list.del(&bench.client, &bare).await.unwrap();
    let log = bench.log();
    assert!(log[0].starts_with("DEL two [c1  eth0 K8S_POD_NAME=web;IgnoreUnknown=1]"), "{}", log[0]);
    assert!(log[1].starts_with("DEL one"));
    for line in &log {
        assert_eq!(stdin(line)["prevResult"]["ips"][0]["address"], "10.0.0.2/32");
    }
    assert!(!bench.path().join("cni/results/net-c1-eth0").exists());
    list.del(&bench.client, &bare).await.unwrap();
    assert!(stdin(&bench.log()[0]).get("prevResult").is_none());
    assert!(matches!(list.check(&bench.client, &bare).await, Err(ChainError::Unsupported(_))));
}

#[tokio::test]
async fn a_failed_add_deletes_the_chain_and_reports_the_plugin_its_code_and_message() {
    let bench = Bench::new(Duration::from_secs(10));
    bench.plugin("one", &result("10.0.0.1/32"));
    bench.plugin("two", r#"[ $CNI_COMMAND != ADD ] || { echo '{"code":11,"msg":"busy","details":"soon"}'; exit 1; }"#);
    let list = bench.list(TWO);
    let error = list.add(&bench.client, &attachment()).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::TryAgainLater));
    assert_eq!(error.to_string(), "ADD of plugin two in network net: busy; soon (CNI code 11)");
    let order: Vec<_> = bench.log().iter().map(|line| line[..7].to_owned()).collect();
    assert_eq!(order, ["ADD one", "ADD two", "DEL two", "DEL one"]);
    assert!(!bench.path().join("cni/results/net-c1-eth0").exists());
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_its_children() {
    let bench = Bench::new(Duration::from_millis(300));
    let pids = bench.path().join("pids");
    bench.plugin("one", &format!("sleep 600 & echo $! > {}; wait", pids.display()));
    let list = bench.list(r#"{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"one"}]}"#);
    let error = list.status(&bench.client).await.unwrap_err().to_string();
    assert!(error.contains("no answer within 300ms; it was killed"), "{error}");
    let child = fs::read_to_string(&pids).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    // A killed child is gone, or a zombie until init reaps it.
    let state = || fs::read_to_string(format!("/proc/{}/stat", child.trim()));
    while state().is_ok_and(|stat| !stat.contains(") Z")) {
        assert!(std::time::Instant::now() < deadline, "the plugin's child still runs");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_missing_or_silent_plugin_is_named_with_what_it_said() {
    let bench = Bench::new(Duration::from_secs(10));
    let list = bench.list(r#"{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"one"}]}"#);
    let error = list.status(&bench.client).await.unwrap_err().to_string();
    assert!(error.contains("there is no executable one in") && error.contains("bin"), "{error}");
    bench.plugin("one", "echo broken >&2; exit 3");
    let error = list.status(&bench.client).await.unwrap_err().to_string();
    assert!(error.contains("exit status: 3") && error.contains("broken"), "{error}");
}

#[tokio::test]
async fn gc_deletes_stale_attachments_spares_newer_ones_and_tells_the_plugins() {
    let bench = Bench::new(Duration::from_secs(10));
    bench.plugin("one", &result("10.0.0.1/32"));
    let list = bench.list(r#"{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"one"}]}"#);
    for id in ["keep", "stale", "newer"] {
        let args = AttachmentArgs { container_id: id.into(), ..attachment() };
        list.add(&bench.client, &args).await.unwrap();
    }
    bench.log();
    let listed_at = SystemTime::now() - Duration::from_secs(60);
    let old = fs::File::options().write(true).open(bench.path().join("cni/results/net-stale-eth0")).unwrap();
    old.set_modified(listed_at - Duration::from_secs(1)).unwrap();
    let valid = [AttachmentId { container_id: "keep".into(), ifname: "eth0".into() }];
    list.gc(&bench.client, &valid, listed_at).await.unwrap();
    let log = bench.log();
    assert!(log[0].starts_with("DEL one [stale"), "{}", log[0]);
    assert!(log[1].starts_with("GC one [   ]"), "{}", log[1]);
    let sent =
        serde_json::json!([{"containerID": "keep", "ifname": "eth0"}, {"containerID": "newer", "ifname": "eth0"}]);
    assert_eq!(stdin(&log[1])["cni.dev/valid-attachments"], sent);
    assert_eq!(list.cached_attachments(&bench.client).unwrap().len(), 2);
}

#[tokio::test]
async fn the_highest_version_that_everyone_speaks_is_used() {
    let bench = Bench::new(Duration::from_secs(10));
    let speak = |versions: &str| format!(r#"echo '{{"cniVersion":"1.1.0","supportedVersions":[{versions}]}}'"#);
    bench.plugin("one", &speak(r#""0.4.0","1.0.0","1.1.0""#));
    bench.plugin("two", &speak(r#""0.3.1","0.4.0","1.0.0""#));
    let json = r#"{"cniVersion":"1.1.0","cniVersions":["0.4.0","1.0.0","9.0.0"],"name":"net",
        "plugins":[{"type":"one"},{"type":"two"}]}"#;
    let mut list = bench.list(json);
    assert_eq!(list.version, Version::V1_1_0);
    assert_eq!(list.negotiate(&bench.client).await.unwrap(), Version::V1_0_0);
    let mut list = bench.list(&json.replace(r#","cniVersions":["0.4.0","1.0.0","9.0.0"]"#, ""));
    let error = list.negotiate(&bench.client).await.unwrap_err().to_string();
    assert!(error.contains("two speaks 0.3.1, 0.4.0, 1.0.0"), "{error}");
}

#[test]
fn a_wrong_configuration_names_file_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let none = Config::load(&dir.path().join("missing")).unwrap_err();
    assert!(matches!(none, ConfigError::NoneFound { .. }), "{none}");
    for (text, reason) in [
        ("{", "not a JSON object"),
        (r#"{"plugins":[{"type":"x"}]}"#, "no \"name\""),
        (r#"{"name":"../x","plugins":[{"type":"x"}]}"#, "must start with"),
        (r#"{"name":"n","plugins":[]}"#, "\"plugins\" is empty"),
        (r#"{"name":"n","plugins":[{"type":"a"},{}]}"#, "plugins[1]: no \"type\""),
        (r#"{"name":"n","plugins":[{"type":"../a"}]}"#, "without a path"),
        (r#"{"name":"n","cniVersion":"2.0.0","plugins":[{"type":"a"}]}"#, "newer than 1.1.0"),
        (r#"{"name":"n","disableGC":"maybe","plugins":[{"type":"a"}]}"#, "disableGC"),
        (r#"{"name":"n","loadOnlyInlinedPlugins":true}"#, "no \"plugins\""),
        (r#"{"name":"n"}"#, "no plugins"),
    ] {
        let file = dir.path().join("10-x.conflist");
        fs::write(&file, text).unwrap();
        let error = Config::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("10-x.conflist") && error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn the_first_usable_file_by_name_wins_and_plugins_come_from_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("05-broken.conflist", "{");
    write("10-b.conflist", r#"{"cniVersion":"1.0.0","name":"b","disableCheck":"true","plugins":[{"type":"x"}]}"#);
    write("20-c.conf", r#"{"cniVersion":"0.3.1","name":"c","type":"y"}"#);
    fs::create_dir(dir.path().join("b")).unwrap();
    write("b/99-more.conf", r#"{"type":"z"}"#);
    let list = Config::load(dir.path()).unwrap();
    let kinds = |list: &NetworkList| list.plugins.iter().map(|plugin| plugin.kind.clone()).collect::<Vec<_>>();
    assert_eq!((list.name.as_str(), list.disable_check, kinds(&list)), ("b", true, vec!["x".into(), "z".into()]));
    write(
        "10-b.conflist",
        r#"{"cniVersion":"1.0.0","name":"b","loadOnlyInlinedPlugins":true,"plugins":[{"type":"x"}]}"#,
    );
    assert_eq!(kinds(&Config::load(dir.path()).unwrap()), ["x"]);
    let single = Config::load_file(&dir.path().join("20-c.conf")).unwrap();
    assert_eq!((single.name.as_str(), single.version, kinds(&single)), ("c", Version::V0_3_1, vec!["y".into()]));
}
