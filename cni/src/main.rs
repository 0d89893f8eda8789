//! The plugin `nodelet-cni`: environment and stdin in, JSON and an exit code out. Everything else is in the library.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use nodelet_cni::plugin;
use nodelet_cni::protocol::{CniError, Code, Request};
use serde_json::Value;

fn main() -> ExitCode {
    let mut stdin = Vec::new();
    let answer = match std::env::var_os("CNI_COMMAND") {
        None => {
            let msg = concat!(
                "nodelet-cni ",
                env!("CARGO_PKG_VERSION"),
                " is a CNI plugin: a container runtime starts it with CNI_COMMAND set and a configuration on stdin"
            );
            Err(CniError::new(Code::InvalidEnvironment, msg))
        }
        Some(_) => read_and_run(&mut stdin),
    };
    match answer {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(result)) => print(&result, ExitCode::SUCCESS),
        Err(error) => {
            let conf: Option<Value> = serde_json::from_slice(&stdin).ok();
            let version = conf.as_ref().and_then(|conf| conf["cniVersion"].as_str()).unwrap_or("1.1.0");
            // The exit code is only "not zero" to a runtime; ours is 1 for all, the number is in the JSON.
            print(&error.to_json(version), ExitCode::FAILURE)
        }
    }
}

fn read_and_run(stdin: &mut Vec<u8>) -> Result<Option<Value>, CniError> {
    io::stdin()
        .read_to_end(stdin)
        .map_err(|e| CniError::new(Code::Io, format!("read the network configuration from stdin: {e}")))?;
    let request = Request::parse(|name| std::env::var(name).ok(), stdin)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    plugin::run(request, stdin, now)
}

fn print(json: &Value, exit: ExitCode) -> ExitCode {
    // One write: line by line, each of the 40 lines would wake the runtime that reads the pipe.
    match io::stdout().write_all(format!("{json:#}\n").as_bytes()) {
        Ok(()) => exit,
        // The runtime has closed its end: it will not see the result and has to be told that there is none.
        Err(_) => ExitCode::FAILURE,
    }
}
