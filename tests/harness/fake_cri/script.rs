//! What a container's process does, in a form that the fake plays and a real shell runs.
//!
//! [`Script::command`] renders `sh -c "TEXT"` where TEXT begins with a no-op that carries the script as JSON. A shell ignores
//! the no-op and does the rest; the fake reads the JSON and ignores the rest. So one container configuration behaves the same
//! under both.

use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

const APART: &str = "</dev/null >/dev/null 2>&1";
const MARK: &str = ": 'nodelet-script ";

/// What SIGTERM does to a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnTerm {
    /// It ends with this code after this many milliseconds.
    Exit {
        /// Exit code.
        code: i32,
        /// Time that it takes to shut down.
        after_ms: u64,
    },
    /// Nothing: only SIGKILL ends it.
    Ignore,
}

/// The life of a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// Lines on standard output at the start.
    pub stdout: Vec<String>,
    /// Lines on standard error at the start.
    pub stderr: Vec<String>,
    /// Milliseconds until it ends by itself; `None` is never.
    pub run_ms: Option<u64>,
    /// Its exit code when it ends by itself.
    pub exit_code: i32,
    /// What SIGTERM does.
    pub on_term: OnTerm,
    /// Fake only: StartContainer fails with this text, as for a command that does not exist.
    pub start_error: Option<String>,
}

impl Default for Script {
    /// Runs until SIGTERM and ends with 143 then, as a process without a handler does.
    fn default() -> Self {
        Self {
            stdout: Vec::new(),
            stderr: Vec::new(),
            run_ms: None,
            exit_code: 0,
            on_term: OnTerm::Exit { code: 143, after_ms: 0 },
            start_error: None,
        }
    }
}

impl Script {
    /// Runs until it is told to stop.
    pub fn forever() -> Self {
        Self::default()
    }

    /// Ends at once.
    pub fn exit(code: i32) -> Self {
        Self { run_ms: Some(0), exit_code: code, ..Self::default() }
    }

    /// Ends by itself after a time.
    pub fn exit_after(time: Duration, code: i32) -> Self {
        Self { run_ms: Some(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)), exit_code: code, ..Self::default() }
    }

    /// Prints a line on standard output first.
    #[must_use]
    pub fn say(mut self, line: &str) -> Self {
        self.stdout.push(line.to_owned());
        self
    }

    /// Prints a line on standard error first.
    #[must_use]
    pub fn complain(mut self, line: &str) -> Self {
        self.stderr.push(line.to_owned());
        self
    }

    /// Does this on SIGTERM.
    #[must_use]
    pub fn on_term(self, on_term: OnTerm) -> Self {
        Self { on_term, ..self }
    }

    /// The command for a container or an exec, for an image with a shell.
    pub fn command(&self) -> Vec<String> {
        vec!["/bin/sh".to_owned(), "-c".to_owned(), self.shell_text()]
    }

    fn shell_text(&self) -> String {
        let json =
            serde_json::to_string(self).expect("a struct of strings and numbers is JSON").replace('\'', "\\u0027");
        let mut text = format!("{MARK}{json}'\n");
        // Writing to a String cannot fail.
        let _ = match &self.on_term {
            OnTerm::Exit { code, after_ms: 0 } => writeln!(text, "trap 'exit {code}' TERM"),
            OnTerm::Exit { code, after_ms } => writeln!(text, "trap 'sleep {}; exit {code}' TERM", seconds(*after_ms)),
            OnTerm::Ignore => writeln!(text, "trap '' TERM"),
        };
        for line in &self.stdout {
            let _ = writeln!(text, "printf '%s\\n' {}", quoted(line));
        }
        for line in &self.stderr {
            let _ = writeln!(text, "printf '%s\\n' {} >&2", quoted(line));
        }
        // A shell runs a trap only between commands, but `wait` returns for it. The sleeper holds no stream: after killing an
        // exec that took too long, containerd waits until everybody has closed the streams.
        let _ = match self.run_ms {
            None => writeln!(text, "while :; do sleep 3600 {APART} & wait $!; done"),
            Some(0) => Ok(()),
            Some(time) => writeln!(text, "sleep {} {APART} & wait $!", seconds(time)),
        };
        let _ = writeln!(text, "exit {}", self.exit_code);
        text
    }

    /// The script that a command carries.
    pub fn from_command(command: &[String]) -> Option<Self> {
        let carrier = command.iter().find_map(|word| word.strip_prefix(MARK))?;
        let (json, _) = carrier.split_once('\'')?;
        serde_json::from_str(json).ok()
    }
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000)
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_carries_its_script() {
        let script =
            Script::exit_after(Duration::from_millis(1500), 3).say("it's $HOME").complain("oh").on_term(OnTerm::Ignore);
        assert_eq!(Script::from_command(&script.command()), Some(script));
    }

    #[test]
    fn a_foreign_command_carries_none() {
        assert_eq!(Script::from_command(&["sleep".to_owned(), "5".to_owned()]), None);
    }

    #[test]
    fn a_real_shell_does_what_the_script_says() {
        let command = Script::exit_after(Duration::from_millis(10), 3).say("it's $HOME").complain("oh").command();
        let output = std::process::Command::new(&command[0]).args(&command[1..]).output().expect("/bin/sh runs");
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "it's $HOME\n");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "oh\n");
    }
}
