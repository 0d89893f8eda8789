//! The process of a container: a task that plays a script and records how it ended.

use std::sync::Arc;
use std::time::Duration;

use nodelet_proto::cri::ContainerEventType;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use super::events;
use super::log::LogLine;
use super::model::Run;
use super::script::{OnTerm, Script};
use super::shared::{Shared, lock};

/// What reaches a process from outside.
#[derive(Clone, Debug)]
pub(super) enum ProcessSignal {
    Term,
    Kill,
    /// It ends by itself, because a test says so.
    Exit {
        code: i32,
        reason: Option<&'static str>,
    },
    Print(LogLine),
}

/// How a process ended.
struct End {
    code: i32,
    reason: Option<&'static str>,
}

/// Plays `script` to its end and records it, unless the runtime forgot the container meanwhile.
pub(super) async fn run(shared: Arc<Shared>, id: String, script: Script, signals: UnboundedReceiver<ProcessSignal>) {
    for line in &script.stdout {
        print(&shared, &id, &LogLine::Stdout(line.clone()));
    }
    for line in &script.stderr {
        print(&shared, &id, &LogLine::Stderr(line.clone()));
    }
    if let Some(end) = play(&shared, &id, &script, signals).await {
        record(&shared, &id, &end);
    }
}

async fn play(
    shared: &Shared,
    id: &str,
    script: &Script,
    mut signals: UnboundedReceiver<ProcessSignal>,
) -> Option<End> {
    let mut end = script.run_ms.map(|time| (Instant::now() + Duration::from_millis(time), script.exit_code));
    loop {
        let signal = match end {
            None => signals.recv().await,
            Some((at, code)) => match tokio::time::timeout_at(at, signals.recv()).await {
                Ok(signal) => signal,
                Err(_) => return Some(End { code, reason: None }),
            },
        };
        // Without senders the container is forgotten: nobody is left to tell.
        match signal? {
            ProcessSignal::Kill => return Some(End { code: 137, reason: None }),
            ProcessSignal::Exit { code, reason } => return Some(End { code, reason }),
            ProcessSignal::Print(line) => print(shared, id, &line),
            ProcessSignal::Term => match script.on_term {
                OnTerm::Ignore => {}
                OnTerm::Exit { code, after_ms } => {
                    let at = Instant::now() + Duration::from_millis(after_ms);
                    end = Some(end.filter(|(natural, _)| *natural <= at).unwrap_or((at, code)));
                }
            },
        }
    }
}

fn print(shared: &Shared, id: &str, line: &LogLine) {
    let now = shared.now();
    if let Some(log) = shared.read(|model| model.container(id).ok().map(|container| Arc::clone(&container.log))) {
        // A full disk stops a real container's log as silently.
        let _ = lock(&log).write(line, now);
    }
}

fn record(shared: &Shared, id: &str, end: &End) {
    let now = shared.now();
    let event = shared.update(|model| {
        let container = model.container_mut(id)?;
        let Run::Running { started_at, .. } = container.run else { return None };
        let reason = end.reason.unwrap_or(if end.code == 0 { "Completed" } else { "Error" }).to_owned();
        container.run = Run::Exited { started_at, finished_at: now, code: end.code, reason, message: String::new() };
        let sandbox = container.sandbox.clone();
        Some(events::event(model, id, &sandbox, ContainerEventType::ContainerStoppedEvent, now))
    });
    if let Some(event) = event {
        shared.events.publish(event);
    }
}
