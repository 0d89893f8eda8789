//! Pod conditions. Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};

use super::containers::Statuses;
use super::{Context, time};
use crate::pod::lifecycle::{Cause, Lifecycle};
use crate::pod::memory::PREEMPTING;
use crate::pod::plan::start::is_usable;
use crate::pod::resize;
use crate::pod::spec::{self, Role, rules};
use crate::pod::view::PodView;

/// The condition types that a node agent owns; all others belong to somebody else and are left alone.
pub const OWNED: [&str; 8] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    RESTARTING,
    resize::PENDING,
    resize::IN_PROGRESS,
];

/// All containers of the pod are being removed to start over (KEP-5532).
pub const RESTARTING: &str = "AllContainersRestarting";

/// Somebody ends the pod for reasons that are not its own (KEP-3329). Others set it, too, so it is not among [`OWNED`].
const DISRUPTION: &str = "DisruptionTarget";

struct Verdict {
    is_true: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn yes() -> Self {
        Self { is_true: true, reason: "", message: String::new() }
    }

    fn no(reason: &'static str, message: String) -> Self {
        Self { is_true: false, reason, message }
    }
}

/// Computes all conditions: foreign ones as they are, then ours in kubelet's order.
pub fn conditions(view: &PodView<'_>, context: &Context<'_>, statuses: &Statuses, phase: &str) -> Vec<PodCondition> {
    let api = view.pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let mut all: Vec<PodCondition> = api.iter().filter(|c| !OWNED.contains(&c.type_.as_str())).cloned().collect();
    let ready = ready(view, statuses, phase, &all);
    let verdicts = [
        ("PodReadyToStartContainers", ready_to_start(view)),
        ("Initialized", initialized(view, context, statuses, phase)),
        ("Ready", ready),
        ("ContainersReady", containers_ready(view, statuses, phase)),
        ("PodScheduled", Verdict::yes()),
    ];
    if !matches!(phase, "Succeeded" | "Failed") {
        all.extend(context.resize.conditions());
    }
    if let Some(verdict) = disruption(view, phase) {
        all.retain(|condition| condition.type_ != DISRUPTION);
        all.push(condition(view, context, DISRUPTION, verdict));
    }
    all.extend(verdicts.into_iter().map(|(type_, verdict)| condition(view, context, type_, verdict)));
    if rules::may_restart_all(view.pod) {
        let restarting = condition(view, context, RESTARTING, restarting(view, phase));
        all.push(PodCondition { observed_generation: None, ..restarting });
    }
    all
}

/// Told with the phase, once nothing of the pod runs any more.
fn disruption(view: &PodView<'_>, phase: &str) -> Option<Verdict> {
    let Some(Cause::Failed { reason, .. }) = view.lifecycle.termination().map(|termination| &termination.cause) else {
        return None;
    };
    let message = "Pod was preempted by Kubelet to accommodate a critical pod.".to_owned();
    (reason == PREEMPTING && phase == "Failed").then_some(Verdict {
        is_true: true,
        reason: "TerminationByKubelet",
        message,
    })
}

/// Whether a condition was true when it was published last.
pub(super) fn was_true(context: &Context<'_>, type_: &str) -> bool {
    context.last.conditions.iter().flatten().any(|c| c.type_ == type_ && c.status == "True")
}

fn restarting(view: &PodView<'_>, phase: &str) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::no("PodCompleted", String::new()),
        "Failed" => return Verdict::no("PodFailed", String::new()),
        _ => {}
    }
    if matches!(view.lifecycle, Lifecycle::Syncing) && rules::is_starting_over(view.pod, view.runtime) {
        let message = "container exited with restart policy rule".to_owned();
        return Verdict { is_true: true, reason: "RestartAllContainersStarted", message };
    }
    Verdict::no("", String::new())
}

fn condition(view: &PodView<'_>, context: &Context<'_>, type_: &str, verdict: Verdict) -> PodCondition {
    let status = if verdict.is_true { "True" } else { "False" };
    let before = context.last.conditions.iter().flatten().find(|c| c.type_ == type_);
    let unchanged = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
    PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: (!verdict.reason.is_empty()).then(|| verdict.reason.to_owned()),
        message: (!verdict.message.is_empty()).then_some(verdict.message),
        last_transition_time: Some(unchanged.unwrap_or_else(|| time(context.now))),
        last_probe_time: None,
        observed_generation: view.pod.metadata.generation,
    }
}

fn ready_to_start(view: &PodView<'_>) -> Verdict {
    let no = |message: &str| Verdict::no("PodSandboxNotReady", message.to_owned());
    match view.runtime.sandbox() {
        None => no("no pod sandbox exists"),
        Some(sandbox) if is_usable(view, sandbox) => Verdict::yes(),
        Some(sandbox) if !sandbox.ready => no("pod sandbox is not ready"),
        Some(sandbox) if sandbox.host_network != spec::host_network(view.pod) => {
            no("pod sandbox has changed network namespace mode")
        }
        Some(_) => no("pod sandbox has no IP address"),
    }
}

fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

/// `containers with X status: [...]` for what is unknown and what is not there yet.
fn complain(unknown: &[&str], unfinished: &[&str], word: &str) -> Option<String> {
    let mut parts = Vec::new();
    if !unknown.is_empty() {
        parts.push(format!("containers with unknown status: {}", list(unknown)));
    }
    if !unfinished.is_empty() {
        parts.push(format!("containers with {word} status: {}", list(unfinished)));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn initialized(view: &PodView<'_>, context: &Context<'_>, statuses: &Statuses, phase: &str) -> Verdict {
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for (name, role) in spec::roles(view.pod).filter(|(_, role)| matches!(role, Role::Init | Role::Sidecar)) {
        match spec::status_of(&statuses.init, name) {
            None => unknown.push(name),
            Some(status) if role == Role::Sidecar && status.started != Some(true) => incomplete.push(name),
            Some(status) if role == Role::Init && !status.ready => incomplete.push(name),
            Some(_) => {}
        }
    }
    if phase == "Succeeded" && unknown.is_empty() {
        return Verdict { is_true: true, reason: "PodCompleted", message: String::new() };
    }
    if statuses.app.iter().any(has_run) {
        return Verdict::yes();
    }
    match complain(&unknown, &incomplete, "incomplete") {
        // A pod that was initialized stays so when it starts over.
        Some(_) if was_true(context, "Initialized") => Verdict::yes(),
        Some(message) => Verdict::no("ContainersNotInitialized", message),
        None => Verdict::yes(),
    }
}

fn has_run(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some())
}

fn containers_ready(view: &PodView<'_>, statuses: &Statuses, phase: &str) -> Verdict {
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    for (name, role) in spec::roles(view.pod).filter(|(_, role)| matches!(role, Role::Sidecar | Role::App)) {
        let list = if role == Role::App { &statuses.app } else { &statuses.init };
        match spec::status_of(list, name) {
            None => unknown.push(name),
            Some(status) if !status.ready => unready.push(name),
            Some(_) => {}
        }
    }
    match phase {
        "Succeeded" if unknown.is_empty() => return Verdict::no("PodCompleted", String::new()),
        "Failed" => return Verdict::no("PodFailed", String::new()),
        _ => {}
    }
    match complain(&unknown, &unready, "unready") {
        Some(message) => Verdict::no("ContainersNotReady", message),
        None => Verdict::yes(),
    }
}

fn ready(view: &PodView<'_>, statuses: &Statuses, phase: &str, foreign: &[PodCondition]) -> Verdict {
    let containers = containers_ready(view, statuses, phase);
    if !containers.is_true {
        return containers;
    }
    let mut missing = Vec::new();
    for gate in spec::spec(view.pod).readiness_gates.iter().flatten() {
        match foreign.iter().find(|c| c.type_ == gate.condition_type) {
            None => missing.push(format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist.",
                gate.condition_type
            )),
            Some(condition) if condition.status != "True" => missing.push(format!(
                "the status of pod readiness gate \"{}\" is not \"True\", but {}",
                gate.condition_type, condition.status
            )),
            Some(_) => {}
        }
    }
    if missing.is_empty() { Verdict::yes() } else { Verdict::no("ReadinessGatesNotReady", missing.join(", ")) }
}
