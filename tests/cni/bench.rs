//! A node in a namespace, with a plugin and its data directory.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use harness::netns::Netns;
use harness::programs;
use serde_json::{Value, json};

/// The node.
pub(crate) struct Bench {
    pub(crate) node: Netns,
    pub(crate) dir: tempfile::TempDir,
    plugin: PathBuf,
}

/// What a call of the plugin gave.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// Standard output; null when empty.
    pub(crate) json: Value,
}

impl Answer {
    fn from(output: Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let json = match text.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|e| panic!("output is no JSON ({e}): {text}")),
        };
        Self { success: output.status.success(), signal: output.status.signal(), json }
    }

    /// The result of a call that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!(self.success, "{:?} {}", self.signal, self.json);
        self.json
    }

    /// The message of a call that must have failed with this code.
    #[track_caller]
    pub(crate) fn error(self, code: u32) -> String {
        assert!(!self.success, "succeeded: {}", self.json);
        assert_eq!(self.json["code"], code, "{}", self.json);
        self.json["msg"].as_str().unwrap().to_owned()
    }
}

impl Bench {
    pub(crate) fn new() -> Self {
        let plugin = programs::workspace_binary("nodelet-cni").unwrap();
        Self { node: Netns::new().unwrap(), dir: tempfile::tempdir().unwrap(), plugin }
    }

    pub(crate) fn plugin(&self) -> &Path {
        &self.plugin
    }

    /// A configuration of both families.
    pub(crate) fn conf(&self) -> Value {
        json!({
            "type": "nodelet-cni", "cniVersion": "1.1.0", "name": "pods", "gcGraceSeconds": 0,
            "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"], "dataDir": self.dir.path(),
        })
    }

    fn command(&self, verb: &str, id: &str, netns: &Path) -> Command {
        let mut command = Command::new(&self.plugin);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        self.node.enter(&mut command);
        command
    }

    /// Starts a call without waiting.
    pub(crate) fn start(&self, verb: &str, id: &str, netns: &Path, conf: &Value) -> Child {
        let mut child = self.command(verb, id, netns).spawn().unwrap();
        write(&mut child, conf);
        child
    }

    pub(crate) fn finish(child: Child) -> Answer {
        Answer::from(child.wait_with_output().unwrap())
    }

    pub(crate) fn call(&self, verb: &str, id: &str, netns: &Path, conf: &Value) -> Answer {
        Self::finish(self.start(verb, id, netns, conf))
    }

    /// ADD that dies after a number of steps; `None` when it has fewer steps and ended by itself.
    pub(crate) fn add_killed_after(&self, step: usize, id: &str, netns: &Path) -> Option<()> {
        let mut command = self.command("ADD", id, netns);
        let mut child = command.env("NODELET_CNI_KILL_AFTER", step.to_string()).spawn().unwrap();
        write(&mut child, &self.conf());
        let answer = Self::finish(child);
        (answer.signal == Some(9)).then_some(())
    }

    /// ADD of a new pod; its namespace and result.
    pub(crate) fn pod(&self, id: &str) -> (Netns, Value) {
        let pod = Netns::new().unwrap();
        let result = self.call("ADD", id, &pod.path(), &self.conf()).ok();
        (pod, result)
    }

    pub(crate) fn del(&self, id: &str, netns: &Path) {
        self.call("DEL", id, netns, &self.conf()).ok();
    }

    /// The configuration with a result, as CHECK and DEL get it.
    pub(crate) fn conf_with(&self, result: &Value) -> Value {
        let mut conf = self.conf();
        conf["prevResult"] = result.clone();
        conf
    }

    /// The addresses in the lease file.
    pub(crate) fn leased(&self) -> Vec<String> {
        let Ok(text) = std::fs::read_to_string(self.dir.path().join("pods/leases.json")) else { return Vec::new() };
        let json: Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
        let leases = json["leases"].as_array().unwrap().iter();
        leases.flat_map(|lease| lease["addresses"].as_array().unwrap()).map(text_of).collect()
    }

    /// Fails unless the node has no interface, route or lease of a pod.
    #[track_caller]
    pub(crate) fn assert_clean(&self, when: &str) {
        assert_eq!(self.leased(), Vec::<String>::new(), "leases {when}");
        let links = self.node.ip("-br link").unwrap();
        assert!(!links.contains("veth"), "interfaces {when}: {links}");
        let routes = self.node.ip("route").unwrap() + &self.node.ip("-6 route").unwrap();
        assert!(!routes.contains("10.244.1.") && !routes.contains("fd00:10:244:1"), "routes {when}: {routes}");
    }
}

fn write(child: &mut Child, conf: &Value) {
    use std::io::Write;
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
}

/// The addresses of a result, without prefixes.
pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    let address = |ip: &Value| text_of(&ip["address"]).split('/').next().unwrap().parse().unwrap();
    result["ips"].as_array().unwrap().iter().map(address).collect()
}

pub(crate) fn text_of(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// Listens on every address of a namespace.
pub(crate) fn listen(on: &Netns, port: u16) -> TcpListener {
    on.within(|| TcpListener::bind(("::", port))).unwrap().unwrap()
}

/// Connects; the address that the other side sees.
#[track_caller]
pub(crate) fn connect(from: &Netns, to: IpAddr, port: u16, listener: &TcpListener) -> IpAddr {
    let connect = || TcpStream::connect_timeout(&(to, port).into(), Duration::from_secs(3));
    let stream = from.within(connect).unwrap().unwrap_or_else(|e| panic!("{} to {to}:{port}: {e}", from.name()));
    let (_, peer) = listener.accept().unwrap();
    drop(stream);
    peer.ip().to_canonical()
}
