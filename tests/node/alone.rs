//! The agent alone: one set of scenarios on every combination of runtime and network. The scenarios of one combination share
//! a node, because starting one costs more than most of them, and each leaves it as the next expects it.

use std::time::Instant;

use anyhow::{Context, ensure};
use harness::containerd::{Cni, Version};
use harness::leak_check::remains_of_pods;
use harness::node::Node;

use crate::ending::{nothing_on_the_host, stop_all};
use crate::look::{all_ready, web};

mod commands;
mod explain;
mod manifests;
mod pods;
mod runtime;
mod services;

/// Runs scenarios one after the other; a failure is named for its scenario.
macro_rules! in_order {
    ($node:expr, $($module:ident::$scenario:ident),* $(,)?) => {
        $(
            let began = Instant::now();
            $module::$scenario($node).await.context(stringify!($scenario))?;
            println!("{:6.2} s  {}", began.elapsed().as_secs_f64(), stringify!($scenario));
        )*
    };
}

async fn every_scenario(version: Version, cni: Cni) -> anyhow::Result<()> {
    let mut node = Node::alone(version, cni).await?;
    scenarios(&mut node).await.with_context(|| node.logs())?;
    nothing_on_the_host(node)
}

async fn scenarios(node: &mut Node) -> anyhow::Result<()> {
    for (name, text) in [
        ("objects.yaml", include_str!("../data/node/objects.yaml")),
        ("everything.yaml", include_str!("../data/node/everything.yaml")),
        ("services.yaml", include_str!("../data/node/services.yaml")),
        ("client.yaml", include_str!("../data/node/client.yaml")),
        ("sick.yaml", include_str!("../data/node/sick.yaml")),
        ("web-1.yaml", &web("web-1", "v1")),
        ("web-2.yaml", &web("web-2", "v1")),
    ] {
        node.write_manifest(name, text)?;
    }
    node.run_alone()?;
    all_ready(node, &["everything", "client", "sick", "web-1", "web-2"]).await?;
    in_order!(
        node,
        pods::init_containers_ran_in_order_and_volumes_and_variables_have_their_values,
        pods::an_edited_config_map_reaches_its_volume_without_a_restart,
        pods::a_failing_liveness_probe_restarts_its_container,
        services::both_pods_answer_from_the_node_and_from_a_pod_and_at_the_node_port,
        services::a_pod_that_is_not_ready_gets_no_requests,
        services::an_edited_service_is_served_at_once,
        services::cluster_ips_are_kept_over_restarts,
        commands::get_shows_pods_services_and_endpoints,
        commands::logs_and_describe_tell_of_a_pod,
        explain::service_says_where_packets_go_and_its_exit_code_whether_they_pass,
        manifests::a_broken_manifest_keeps_what_ran_and_is_named_with_its_line,
        manifests::a_broken_manifest_keeps_what_ran_over_a_restart,
        runtime::a_sandbox_that_is_lost_is_replaced,
        runtime::a_restart_of_containerd_disturbs_no_pod_and_is_noticed,
        runtime::an_agent_that_waits_for_the_runtime_ends_at_sigterm,
        manifests::an_edited_pod_is_replaced,
        manifests::a_removed_pod_is_gone_at_once,
    );
    // The check below would also pass if it saw nothing.
    let seen = remains_of_pods(node).await?.join("\n");
    for kind in ["container ", "sandbox ", "mount ", "cgroup ", "link ", "kubelet/pods/", "pod-logs/", "shim "] {
        ensure!(seen.contains(kind), "no {kind} while pods run:\n{seen}");
    }
    ensure!(seen.contains("lease ") || seen.contains("cni/data/pods/10.244.0."), "no lease while pods run:\n{seen}");
    stop_all(node, |_| false).await
}

#[tokio::test]
async fn a_node_alone_does_its_work_on_containerd_1_6_with_bridge() {
    every_scenario(Version::V1_6, Cni::Bridge).await.unwrap();
}

#[tokio::test]
async fn a_node_alone_does_its_work_on_containerd_1_6_with_nodelet_cni() {
    every_scenario(Version::V1_6, Cni::ByAgent).await.unwrap();
}

#[tokio::test]
async fn a_node_alone_does_its_work_on_containerd_2_with_bridge() {
    every_scenario(Version::V2, Cni::Bridge).await.unwrap();
}

#[tokio::test]
async fn a_node_alone_does_its_work_on_containerd_2_with_nodelet_cni() {
    every_scenario(Version::V2, Cni::ByAgent).await.unwrap();
}
