//! How a node of a test ends: with nothing left of its pods, and then of itself.

use std::fs;

use anyhow::{Context as _, ensure};
use harness::eventually::eventually;
use harness::leak_check::{remains, remains_of_pods};
use harness::node::Node;

use crate::look::LONG;

/// Waits until nothing is left of pods but what the test knows of.
pub(crate) async fn nothing_of_pods(node: &Node, is_known: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    eventually(LONG, "nothing to be left of pods", async || {
        let mut left = remains_of_pods(node).await?;
        left.retain(|what| !is_known(what));
        ensure!(left.is_empty(), "{left:#?}");
        anyhow::Ok(())
    })
    .await
}

/// Takes all manifests away, waits until nothing is left of pods but what the test knows of, and stops the agent.
pub(crate) async fn stop_all(node: &mut Node, is_known: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    for manifest in fs::read_dir(node.manifests())? {
        fs::remove_file(manifest?.path())?;
    }
    nothing_of_pods(node, is_known).await?;
    node.agent()?.stop().await
}

/// Runs a test on a node: its logs are told where the test fails, and nothing may be left of it.
pub(crate) async fn on(mut node: Node, test: impl AsyncFnOnce(&mut Node) -> anyhow::Result<()>) -> anyhow::Result<()> {
    test(&mut node).await.with_context(|| node.logs())?;
    nothing_on_the_host(node)
}

/// The end of the node itself.
pub(crate) fn nothing_on_the_host(node: Node) -> anyhow::Result<()> {
    let name = node.name().to_owned();
    drop(node);
    ensure!(remains(&name).is_empty(), "left on the host: {:#?}", remains(&name));
    Ok(())
}
