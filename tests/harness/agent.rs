//! The agent of a node: the `nodelet` program that cargo built, in the node's namespace, with its log in a file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;

use crate::containerd::tail;
use crate::netns::Netns;
use crate::programs;

/// How the agent is started; the same each time.
#[derive(Clone, Debug)]
pub struct AgentCommand {
    /// Arguments after `nodelet`.
    pub arguments: Vec<String>,
    /// `--state-dir`, which has the control socket.
    pub state_dir: PathBuf,
    /// Its log.
    pub log: PathBuf,
}

/// An agent, running or not.
#[derive(Debug)]
pub struct Agent {
    command: AgentCommand,
    process: Option<Child>,
}

impl Agent {
    /// Starts it.
    pub fn start(command: AgentCommand, netns: &Netns) -> anyhow::Result<Self> {
        let mut agent = Self { command, process: None };
        agent.start_again(netns)?;
        Ok(agent)
    }

    /// Starts it with the same command line after [`Agent::kill9`] or [`Agent::stop`].
    pub fn start_again(&mut self, netns: &Netns) -> anyhow::Result<()> {
        ensure!(self.process.is_none(), "the agent runs already");
        let log = File::options().create(true).append(true).open(&self.command.log)?;
        let mut command = Command::new(programs::workspace_binary("nodelet")?);
        command.args(&self.command.arguments).stdout(log.try_clone()?).stderr(log);
        self.process = Some(netns.enter(&mut command).spawn().context("nodelet does not start")?);
        Ok(())
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Fails with the end of its log when the process is not there any more.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        let process = self.process.as_mut().context("the agent was stopped")?;
        match process.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("the agent ended with {status}:\n{}", self.log_tail()),
        }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// SIGTERM, and waits at most 15 s for the end, which must be with status 0.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let pid = rustix::process::Pid::from_child(&process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let ended = crate::eventually::eventually(Duration::from_secs(15), "the agent to end", async || {
            process.try_wait()?.context("it still runs")
        });
        match ended.await {
            Ok(status) => {
                ensure!(status.success(), "the agent ended with {status}:\n{}", self.log_tail());
                Ok(())
            }
            Err(error) => {
                let _ = process.kill();
                let _ = process.wait();
                Err(error.context(self.log_tail()))
            }
        }
    }

    /// Runs `nodelet --state-dir ... WORDS` and gives how it ends.
    pub fn run(&self, words: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(programs::workspace_binary("nodelet")?);
        Ok(command.arg("--state-dir").arg(&self.command.state_dir).args(words).output()?)
    }

    /// The same for what must not fail; gives what it prints.
    pub fn ask(&self, words: &[&str]) -> anyhow::Result<String> {
        let done = self.run(words)?;
        let error = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "nodelet {}: {}: {error}", words.join(" "), done.status);
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    }

    /// What `nodelet get KIND -o json` lists.
    pub fn list<T: serde::de::DeserializeOwned>(&self, kind: &str) -> anyhow::Result<Vec<T>> {
        let mut list: serde_json::Value = serde_json::from_str(&self.ask(&["get", kind, "-o", "json"])?)?;
        Ok(serde_json::from_value(list["items"].take())?)
    }

    /// One pod of the namespace `default` with its status.
    pub fn pod(&self, name: &str) -> anyhow::Result<Pod> {
        let pods: Vec<Pod> = self.list("pods")?;
        let found = pods.into_iter().find(|pod| pod.metadata.name.as_deref() == Some(name));
        found.with_context(|| format!("pod {name} is not on the node"))
    }

    /// The log file.
    pub fn log(&self) -> &Path {
        &self.command.log
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        tail(&self.command.log, 30)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the agent's log, {}:\n{}", self.command.log.display(), self.log_tail());
        }
        self.kill9();
    }
}
