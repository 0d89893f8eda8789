//! The command line: `nodelet run`, and the commands that ask a running agent through its control socket.
//!
//! Called as `kubelet` the program behaves as `nodelet run --only pods` (both halves with `--proxy-config`), called as
//! `kube-proxy` as `nodelet run --only services` with kube-proxy's flag names.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::config::{Flags, Only, flags};
use crate::service::Protocol;
use crate::service::explain::ask::{self, Sender, Target};

pub mod client;
pub mod gc;
pub mod print;

/// Exit code for a command line or configuration that cannot be used; `EX_USAGE` of sysexits.h.
pub const EXIT_USAGE: u8 = 64;

/// The whole command line.
#[derive(Parser, Debug)]
#[command(name = "nodelet", version = crate::config::KUBELET_VERSION, about = "A Kubernetes node agent: kubelet and kube-proxy in one process")]
pub struct Cli {
    /// Directory of the agent's own state; it holds the control socket
    #[arg(long, global = true, default_value = "/var/lib/nodelet")]
    pub state_dir: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A command.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the agent
    Run(Box<RunArgs>),
    /// Check configuration without starting
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print the version
    Version(VersionArgs),
    /// Show pods, services or endpoints of a running agent
    Get(GetArgs),
    /// Print the logs of a container
    Logs(LogsArgs),
    /// Explain one object in detail
    Describe {
        /// Kind; only `pod` so far.
        #[arg(value_enum)]
        kind: DescribeKind,
        /// Name of the object
        name: String,
        /// Namespace
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Say what happens to traffic, and why
    Explain {
        /// Of what.
        #[command(subcommand)]
        command: ExplainCommand,
    },
    /// Remove unused images and what pods left, or show what would go and why
    Gc(GcArgs),
    /// Remove the rules that this node's Services need
    Cleanup,
}

/// `nodelet config ...`
#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Read all files and flags as `run` would, and report
    Check(Box<RunArgs>),
}

/// `nodelet version`.
#[derive(Args, Debug)]
pub struct VersionArgs {
    /// Output format
    #[arg(short, long, value_enum)]
    output: Option<DataFormat>,
    /// One line as `kubelet --version` prints it; kubeadm reads that
    #[arg(long, hide = true)]
    as_kubelet: bool,
}

/// How `version` and `explain` print for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DataFormat {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// The answer of `nodelet version`.
pub fn version(args: &VersionArgs) -> String {
    let (own, level) = (env!("CARGO_PKG_VERSION"), crate::config::KUBELET_VERSION);
    match args.output {
        Some(DataFormat::Json) => format!("{{\"nodelet\": \"{own}\", \"kubernetes\": \"{level}\"}}"),
        Some(DataFormat::Yaml) => format!("nodelet: {own}\nkubernetes: {level}"),
        None if args.as_kubelet => format!("Kubernetes {level}"),
        None => format!("nodelet {own} (Kubernetes {level})"),
    }
}

/// Kinds that `describe` knows.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DescribeKind {
    /// A pod.
    Pod,
}

/// Kinds that `get` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GetKind {
    /// Pods.
    #[value(alias = "pod", alias = "po")]
    Pods,
    /// Services.
    #[value(alias = "service", alias = "svc")]
    Services,
    /// EndpointSlices.
    #[value(alias = "endpoint", alias = "ep", alias = "endpointslices")]
    Endpoints,
}

/// How `get` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// More columns.
    Wide,
    /// The objects as JSON.
    Json,
    /// The objects as YAML.
    Yaml,
}

/// `nodelet get`.
#[derive(Args, Debug)]
pub struct GetArgs {
    /// What to show
    #[arg(value_enum)]
    pub kind: GetKind,
    /// Only the object of this name
    pub name: Option<String>,
    /// Namespace; all namespaces when absent
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// All namespaces (the default)
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Output format
    #[arg(short, long, value_enum)]
    pub output: Option<Format>,
}

/// `nodelet logs`.
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// The pod
    pub pod: String,
    /// The container; the pod's first one when absent
    #[arg(short, long)]
    pub container: Option<String>,
    /// Namespace
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Go on printing
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last lines
    #[arg(long)]
    pub tail: Option<usize>,
    /// Only lines of this last time, such as 10m or 1h30m
    #[arg(long, value_parser = duration)]
    pub since: Option<Duration>,
    /// Only so many bytes
    #[arg(long)]
    pub limit_bytes: Option<u64>,
    /// Print times
    #[arg(long)]
    pub timestamps: bool,
    /// Logs of the container before this one
    #[arg(short, long)]
    pub previous: bool,
}

/// `nodelet explain ...`
#[derive(Subcommand, Debug)]
pub enum ExplainCommand {
    /// The way of packets to a Service on this node: endpoints, kernel, result. Exit code 0: traffic passes, 1: it does
    /// not, 2: there is no answer
    #[command(alias = "svc")]
    Service(ExplainServiceArgs),
}

/// `nodelet explain service`.
#[derive(Args, Debug)]
pub struct ExplainServiceArgs {
    /// The Service, and one of its ports by number or name: [NAMESPACE/]NAME[:PORT]
    pub service: Target,
    /// Namespace of a Service that is named without one
    #[arg(short, long, default_value = "default", value_parser = ask::namespace)]
    pub namespace: String,
    /// Who connects: pod/NAMESPACE/NAME, pod/NAME, node or an IP address; a pod of this node and somebody outside when absent
    #[arg(long)]
    pub from: Option<Sender>,
    /// Only ports of this protocol: tcp, udp or sctp
    #[arg(long, value_parser = ask::protocol)]
    pub protocol: Option<Protocol>,
    /// Output format
    #[arg(short, long, value_enum)]
    pub output: Option<DataFormat>,
}

/// `nodelet gc`.
#[derive(Args, Debug)]
pub struct GcArgs {
    /// Only show what would go
    #[arg(long)]
    pub dry_run: bool,
    /// Remove unused images, the longest unused first, until so many bytes are free, whatever the thresholds say: 5Gi
    #[arg(long, value_parser = bytes)]
    pub free: Option<u64>,
    /// Output format
    #[arg(short, long, value_enum)]
    pub output: Option<GcFormat>,
}

/// How `gc` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GcFormat {
    /// JSON.
    Json,
}

fn bytes(text: &str) -> Result<u64, String> {
    let quantity =
        crate::quantity::Quantity::parse(text).ok().and_then(|quantity| u64::try_from(quantity.value()).ok());
    quantity.ok_or_else(|| "expected a quantity of bytes such as 500Mi or 5Gi".into())
}

fn duration(text: &str) -> Result<Duration, String> {
    crate::config::duration::parse(text).ok_or_else(|| "expected a duration such as 10s, 1m30s or 1h".into())
}

/// `nodelet run`.
#[derive(Args, Debug, Default)]
pub struct RunArgs {
    /// KubeletConfiguration file
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Directory of KubeletConfiguration drop-ins (*.conf)
    #[arg(long)]
    pub config_dir: Option<PathBuf>,
    /// KubeProxyConfiguration file
    #[arg(long)]
    pub proxy_config: Option<PathBuf>,
    /// Kubeconfig of the node
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Kubeconfig to request a client certificate with
    #[arg(long)]
    pub bootstrap_kubeconfig: Option<PathBuf>,
    /// Directory of pods and volumes
    #[arg(long)]
    pub root_dir: Option<PathBuf>,
    /// Directory of certificates
    #[arg(long)]
    pub cert_dir: Option<PathBuf>,
    /// CredentialProviderConfig file, or a directory of them
    #[arg(long)]
    pub image_credential_provider_config: Option<PathBuf>,
    /// Directory of the credential providers' programs
    #[arg(long)]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
    /// Node name
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// Node address, or one of each family
    #[arg(long)]
    pub node_ip: Option<String>,
    /// Labels to register with: key=value,...
    #[arg(long)]
    pub node_labels: Option<String>,
    /// Taints to register with: key=value:effect,...
    #[arg(long)]
    pub register_with_taints: Option<String>,
    /// Runtime socket: unix:///run/containerd/containerd.sock
    #[arg(long)]
    pub container_runtime_endpoint: Option<String>,
    /// Run alone from this directory of manifests
    #[arg(long)]
    pub manifests: Option<PathBuf>,
    /// ClusterIP range when running alone
    #[arg(long)]
    pub service_cidr: Option<String>,
    /// Pod address range when running alone
    #[arg(long)]
    pub pod_cidr: Option<String>,
    /// Directory of network configurations; one for nodelet-cni is written there when it has none ("" never writes)
    #[arg(long)]
    pub cni_conf_dir: Option<PathBuf>,
    /// Do only one half of the work
    #[arg(long, value_enum)]
    pub only: Option<OnlyArg>,
    /// `external` where a cloud controller runs
    #[arg(long, hide = true)]
    pub cloud_provider: Option<String>,
    /// Dead containers of a name to keep, for their logs: kubelet's flag, 1 by default, negative for all
    #[arg(long, hide = true, allow_negative_numbers = true)]
    pub maximum_dead_containers_per_container: Option<i64>,
    /// kubelet's and kube-proxy's flags for fields of their files.
    #[command(flatten)]
    pub fields: FieldFlags,
    /// Log level, as klog counts: 0 info, 4 debug, 6 trace
    #[arg(short, long, default_value_t = 0)]
    pub v: u8,
}

/// `--only`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OnlyArg {
    /// kubelet's half.
    Pods,
    /// kube-proxy's half.
    Services,
}

impl RunArgs {
    /// The flags, for the configuration.
    pub fn flags(&self, state_dir: &std::path::Path) -> Flags {
        Flags {
            config: self.config.clone(),
            config_dir: self.config_dir.clone(),
            proxy_config: self.proxy_config.clone(),
            kubeconfig: self.kubeconfig.clone(),
            bootstrap_kubeconfig: self.bootstrap_kubeconfig.clone(),
            root_dir: self.root_dir.clone(),
            cert_dir: self.cert_dir.clone(),
            state_dir: Some(state_dir.to_owned()),
            credential_provider_config: self.image_credential_provider_config.clone(),
            credential_provider_bin_dir: self.image_credential_provider_bin_dir.clone(),
            hostname_override: self.hostname_override.clone(),
            node_ip: self.node_ip.clone(),
            node_labels: self.node_labels.clone(),
            register_with_taints: self.register_with_taints.clone(),
            runtime_endpoint: self.container_runtime_endpoint.clone(),
            manifests: self.manifests.clone(),
            service_cidr: self.service_cidr.clone(),
            pod_cidr: self.pod_cidr.clone(),
            cni_conf_dir: self.cni_conf_dir.clone(),
            cloud_provider: self.cloud_provider.clone(),
            dead_containers: self.maximum_dead_containers_per_container,
            fields: self.fields.0.clone(),
            only: self.only.map(|only| match only {
                OnlyArg::Pods => Only::Pods,
                OnlyArg::Services => Only::Services,
            }),
        }
    }
}

/// The arguments with which `nodelet` is to be parsed, given those that the program was called with.
pub fn rewrite(args: Vec<String>) -> Vec<String> {
    let program = args.first().and_then(|a| a.rsplit('/').next()).unwrap_or_default().to_owned();
    let rest = args.into_iter().skip(1);
    let has_proxy = |args: &[String]| args.iter().any(|a| a.starts_with("--proxy-config"));
    let head = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    match program.as_str() {
        "kubelet" | "kube-proxy" if rest.clone().any(|arg| arg == "--version" || arg == "--version=true") => {
            head(&["nodelet", "version", "--as-kubelet"])
        }
        "kubelet" => {
            let rest: Vec<String> = rest.map(dashes).collect();
            let mut all =
                if has_proxy(&rest) { head(&["nodelet", "run"]) } else { head(&["nodelet", "run", "--only", "pods"]) };
            all.extend(rest);
            all
        }
        "kube-proxy" => {
            let rest: Vec<String> = rest.map(dashes).collect();
            if rest.iter().any(|a| a == "--cleanup" || a == "--cleanup=true") {
                return head(&["nodelet", "cleanup"]);
            }
            let mut all = head(&["nodelet", "run", "--only", "services"]);
            // kube-proxy's --config is a KubeProxyConfiguration.
            all.extend(rest.into_iter().map(|arg| match arg.strip_prefix("--config") {
                Some(tail) if tail.is_empty() || tail.starts_with('=') => format!("--proxy-config{tail}"),
                _ => arg,
            }));
            all
        }
        _ => std::iter::once("nodelet".to_owned()).chain(rest).collect(),
    }
}

/// Flags of kubelet and kube-proxy may be written with underscores.
fn dashes(arg: String) -> String {
    let Some(flag) = arg.strip_prefix("--") else { return arg };
    match flag.split_once('=') {
        Some((name, value)) => format!("--{}={value}", name.replace('_', "-")),
        None => format!("--{}", flag.replace('_', "-")),
    }
}

/// Flags that are fields of a configuration file: name and text, in the order given. They are not shown in the help,
/// because the file is the place for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldFlags(pub Vec<(String, String)>);

impl FieldFlags {
    fn names() -> BTreeSet<&'static str> {
        flags::KUBELET.iter().chain(flags::PROXY).map(|(name, ..)| *name).collect()
    }

    fn augment(command: clap::Command) -> clap::Command {
        Self::names().into_iter().fold(command, |command, name| {
            let arg = clap::Arg::new(name).long(name).hide(true).action(clap::ArgAction::Append);
            command.arg(if flags::is_switch(name) {
                arg.num_args(0..=1).require_equals(true).default_missing_value("true")
            } else {
                arg
            })
        })
    }
}

impl Args for FieldFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        Self::augment(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment(command)
    }
}

impl FromArgMatches for FieldFlags {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut given: Vec<(usize, String, String)> = Vec::new();
        for name in Self::names() {
            let texts = matches.get_many::<String>(name).into_iter().flatten();
            let places = matches.indices_of(name).into_iter().flatten();
            given.extend(places.zip(texts).map(|(place, text)| (place, name.to_owned(), text.clone())));
        }
        given.sort();
        Ok(Self(given.into_iter().map(|(_, name, text)| (name, text)).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_name_that_the_program_is_called_by_decides_what_it_does() {
        for (called, expected) in [
            ("/usr/bin/kubelet --config=/c --max_pods=1", "nodelet run --only pods --config=/c --max-pods=1"),
            ("kubelet --config /c --proxy-config /p", "nodelet run --config /c --proxy-config /p"),
            ("kube-proxy --config=/p --v=2", "nodelet run --only services --proxy-config=/p --v=2"),
            ("kube-proxy --cleanup", "nodelet cleanup"),
            ("kubelet --version", "nodelet version --as-kubelet"),
            ("./nodelet get pods", "nodelet get pods"),
        ] {
            assert_eq!(rewrite(words(called)), words(expected), "{called}");
        }
    }

    #[test]
    fn a_command_line_of_kubeadm_is_understood() {
        let line = "kubelet --bootstrap-kubeconfig=/b --kubeconfig=/k --config=/c --container-runtime-endpoint=unix:///s \
                    --hostname-override=n1 --register-with-taints=a=b:NoSchedule --v=4";
        let cli = Cli::try_parse_from(rewrite(words(line))).unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.flags(&cli.state_dir).only, Some(Only::Pods));
        assert_eq!(run.v, 4);
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_fields_are_kept_in_their_order() {
        let line = "kubelet --kubeconfig=/k --max-pods 20 --fail-swap-on=false --pod-infra-container-image=p --max-pods=30 \
                    --rotate-certificates --v=2";
        let cli = Cli::try_parse_from(rewrite(words(line))).unwrap();
        let Command::Run(run) = cli.command else { panic!("not run") };
        let given: Vec<(&str, &str)> = run.fields.0.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
        assert_eq!(
            given,
            [
                ("max-pods", "20"),
                ("fail-swap-on", "false"),
                ("pod-infra-container-image", "p"),
                ("max-pods", "30"),
                ("rotate-certificates", "true")
            ]
        );
    }
}
