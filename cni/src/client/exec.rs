use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::{AttachmentArgs, ChainError, Client};
use crate::protocol::{CniError, Code};

/// One execution of one plugin.
pub(super) struct Call<'a> {
    pub(super) verb: &'static str,
    pub(super) plugin: &'a str,
    pub(super) network: &'a str,
    pub(super) attachment: Option<&'a AttachmentArgs>,
    pub(super) stdin: &'a Value,
}

/// More output than this is not a CNI result; reading stops so that a mad plugin cannot fill the agent's memory.
const OUTPUT_LIMIT: u64 = 1024 * 1024;

/// Runs a plugin and returns its JSON; `null` for verbs without a result.
pub(super) async fn run(client: &Client, call: &Call<'_>) -> Result<Value, ChainError> {
    let failed = |reason: String| ChainError::Exec {
        verb: call.verb,
        plugin: call.plugin.to_owned(),
        network: call.network.to_owned(),
        reason,
    };
    let path = find(client, call.plugin).map_err(failed)?;
    let mut child =
        command(client, call, &path).spawn().map_err(|e| failed(format!("start {}: {e}", path.display())))?;
    let group = Group(child.id());
    let stdin = call.stdin.to_string();
    let output = match tokio::time::timeout(client.timeout, communicate(&mut child, stdin.as_bytes())).await {
        Ok(output) => output.map_err(|e| failed(format!("talk to {}: {e}", path.display())))?,
        Err(_) => {
            drop(group);
            // The leader is killed, so this ends at once; it must be reaped.
            let _ = child.wait().await;
            return Err(failed(format!("no answer within {:?}; it was killed", client.timeout)));
        }
    };
    group.leave();
    if output.status.success() {
        let empty = output.stdout.iter().all(u8::is_ascii_whitespace);
        if empty && call.verb != "ADD" && call.verb != "VERSION" {
            return Ok(Value::Null);
        }
        return match serde_json::from_slice(&output.stdout) {
            Ok(value) => Ok(value),
            // DEL and CHECK have no result; some plugins print something anyway.
            Err(_) if call.verb != "ADD" && call.verb != "VERSION" => Ok(Value::Null),
            Err(e) => Err(failed(format!("its output is no JSON ({e}): {}", excerpt(&output.stdout)))),
        };
    }
    match parse_error(&output.stdout) {
        Some(error) => Err(ChainError::Plugin {
            verb: call.verb,
            plugin: call.plugin.to_owned(),
            network: call.network.to_owned(),
            error,
        }),
        None => Err(failed(format!(
            "{} without an error message; stdout {}, stderr {}",
            output.status,
            excerpt(&output.stdout),
            excerpt(&output.stderr)
        ))),
    }
}

/// The first executable of this name.
fn find(client: &Client, plugin: &str) -> Result<PathBuf, String> {
    let executable =
        |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0);
    let mut candidates = client.bin_dirs.iter().map(|dir| dir.join(plugin));
    candidates.find(executable).ok_or_else(|| {
        let dirs: Vec<_> = client.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
        format!("there is no executable {plugin} in {}", dirs.join(", "))
    })
}

fn command(client: &Client, call: &Call<'_>, path: &PathBuf) -> Command {
    let mut command = Command::new(path);
    let dirs: Vec<_> = client.bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
    command.env("CNI_COMMAND", call.verb).env("CNI_PATH", dirs.join(":"));
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
        command.env_remove(name);
    }
    if let Some(attachment) = call.attachment {
        let args: Vec<_> = attachment.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        command
            .env("CNI_CONTAINERID", &attachment.container_id)
            .env("CNI_NETNS", &attachment.netns)
            .env("CNI_IFNAME", &attachment.ifname)
            .env("CNI_ARGS", args.join(";"));
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    command
}

/// Writes and reads at once: a plugin may fill its output before it has read its input.
async fn communicate(child: &mut Child, stdin: &[u8]) -> std::io::Result<Output> {
    let (input, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut input) = input {
            // VERSION is answered by some plugins without reading: a closed pipe is not an error.
            let _ = input.write_all(stdin).await;
        }
    };
    let ((), stdout, stderr) = tokio::join!(write, read(stdout), read(stderr));
    Ok(Output { status: child.wait().await?, stdout: stdout?, stderr: stderr? })
}

async fn read(pipe: Option<impl tokio::io::AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(OUTPUT_LIMIT).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn parse_error(stdout: &[u8]) -> Option<CniError> {
    let json: Value = serde_json::from_slice(stdout).ok()?;
    let text = |key| json[key].as_str().unwrap_or_default().to_owned();
    let code = u32::try_from(json["code"].as_u64()?).ok()?;
    Some(CniError { code: Code::from_number(code), msg: text("msg"), details: text("details") })
}

fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim();
    match text.char_indices().nth(400) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// The plugin's process group: plugins start others (IPAM), and all of them go when the time is up or the caller drops
/// the call.
struct Group(Option<u32>);

impl Group {
    /// The plugin has ended by itself; its group is nobody's any more.
    fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // ESRCH: all of it has ended.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}
