//! Another process under measurement: an agent, started from a command line with placeholders.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use harness::netns::Netns;

use crate::process::Process;

/// A running agent; killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Contestant(Child);

impl Contestant {
    /// Starts `command`, split at blanks, with each `{name}` replaced, in `netns`, with its output
    /// appended to `log`.
    pub(crate) fn start(command: &str, replace: &[(&str, &str)], netns: &Netns, log: &Path) -> anyhow::Result<Self> {
        let words = command.split_whitespace().map(|word| {
            replace.iter().fold(word.to_owned(), |word, (name, value)| word.replace(&format!("{{{name}}}"), value))
        });
        let words: Vec<String> = words.collect();
        let (program, arguments) = words.split_first().context("an empty command line was given for an agent")?;
        let log = std::fs::File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = netns.enter(&mut command).spawn().with_context(|| format!("{program} does not start"))?;
        Ok(Self(child))
    }

    pub(crate) fn process(&self) -> Process {
        Process(self.0.id())
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        // Ended by itself already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
