//! Carrying out one operation of a plan.
//!
//! Each function does what the [`Op`] says and answers what it saw; none of them decides. An operation that reaches the
//! runtime answers with the runtime's own view, so that memory never holds what we merely hope.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::action::{Failure, ImageUse, KillReason, Op, Output};
use super::allocation::ResourceInfo;
use super::facilities::PodVolumes;
use super::images::{self, Image};
use super::resize::steps::Running;
use super::shared::Shared;
use super::spec;
use super::start_slot::StartSlot;
use crate::cri::{CriError, Known};
use crate::event::EventType;
use crate::ids::PodUid;
use crate::metrics::METRICS;

mod container;
mod hooks;
mod message;
mod resize;
mod sandbox;
mod stop;

pub use message::with_messages;
pub use stop::remove_log_directory;

/// What an operation gives to its worker besides its outcome.
#[derive(Debug, Default)]
pub enum Extra {
    /// Nothing.
    #[default]
    Nothing,
    /// Volumes are in place.
    Volumes(PodVolumes),
    /// An image is there; how long it was pulled, if it was.
    Image(ImageUse, Image, Option<Duration>),
    /// A place among the pods that are being started.
    Slot(StartSlot),
}

/// Snapshot that an operation works on.
#[derive(Clone)]
pub struct Context {
    /// Shared clients.
    pub shared: Arc<Shared>,
    /// What the runtime had of the pod before.
    pub known: Known,
    /// The pod as desired when the operation began.
    pub pod: Arc<Pod>,
    /// Its UID.
    pub uid: PodUid,
    /// Its volumes, once they are in place.
    pub volumes: Arc<PodVolumes>,
    /// The newest sandbox's configuration inputs: pod addresses.
    pub pod_ips: Vec<String>,
    /// The sandbox that containers are started in.
    pub sandbox: Option<crate::cri::SandboxView>,
    /// Image of the container that the operation is about.
    pub image: Option<Image>,
    /// Images of image volumes, by volume name.
    pub volume_images: BTreeMap<String, Image>,
    /// The running container that an ephemeral container looks at.
    pub target: Option<crate::ids::ContainerId>,
    /// The status as it was published last.
    pub status: Arc<PodStatus>,
    /// The container that is to be stopped.
    pub stopping: Option<crate::cri::ContainerView>,
    /// Running containers, for a resize.
    pub running: Vec<Running>,
}

impl Context {
    /// Records what was put into effect. That it cannot be written costs a repeated step after a restart, no more.
    fn record(&self, actuated: &ResourceInfo) {
        if let Err(error) = self.shared.actuated.set(&self.uid, actuated.clone()) {
            tracing::warn!(pod = %spec::key(&self.pod), %error, "cannot write down what was put into effect; a restart may repeat it");
        }
    }
}

/// Carries out an operation.
pub async fn execute(context: Context, op: Op) -> (Result<Output, Failure>, Extra) {
    let plain = |result| (result, Extra::Nothing);
    match op {
        Op::Inspect => plain(inspect(&context).await),
        Op::PrepareVolumes => volumes(&context).await,
        Op::CreateSandbox { attempt } => sandbox::create(&context, attempt).await,
        Op::EnsureImage { for_use, image: name } => image(&context, for_use, &name).await,
        Op::StartContainer { container, attempt, sandbox } => {
            plain(container::start(&context, &container, attempt, &sandbox).await)
        }
        Op::PreStop { id, container: name, grace_seconds } => {
            let stop = stop::Stop { id: &id, name: &name, grace_seconds, reason: &KillReason::PodTerminating };
            stop::announce(&context, &stop).await;
            plain(Ok(Output::Done))
        }
        Op::KillContainer { id, container: name, grace_seconds, is_announced, reason } => {
            let stop = stop::Stop { id: &id, name: &name, grace_seconds, reason: &reason };
            plain(stop::kill(&context, &stop, is_announced).await)
        }
        Op::Resize => plain(resize::resize(&context).await),
        Op::StopSandbox(id) => {
            let stopped = context.shared.runtime.stop_sandbox(&id).await;
            plain(stopped.map(|()| Output::SandboxStopped(id)).map_err(|e| failure("FailedKillPod", &e)))
        }
        Op::RemoveSandbox(id) => {
            // containerd refuses to remove a sandbox that it thinks is running; stopping a stopped one is cheap.
            let removed = async {
                context.shared.runtime.stop_sandbox(&id).await?;
                context.shared.runtime.remove_sandbox(&id).await
            };
            plain(removed.await.map(|()| Output::SandboxRemoved(id)).map_err(|e| failure("FailedSync", &e)))
        }
        Op::RemoveContainer(id) => plain(stop::remove_container(&context, id).await),
        Op::ForgetContainer(id) => plain(stop::forget_container(&context, id).await),
        Op::Release => plain(stop::release(&context).await),
        Op::FinishDeletion => {
            let finished = context.shared.sink.finish(&context.pod, &context.status).await;
            let failed = |message| Failure { reason: "FailedSync", message, container: None };
            plain(finished.map(|()| Output::Done).map_err(failed))
        }
        Op::RemoveLogs => plain(stop::remove_logs(&context).await),
    }
}

fn failure(reason: &'static str, error: &CriError) -> Failure {
    Failure { reason, message: error.text(), container: None }
}

async fn inspect(context: &Context) -> Result<Output, Failure> {
    match context.shared.runtime.inspect_pod(&context.uid, &context.known).await {
        Ok(runtime) => Ok(Output::Inspected(with_messages(runtime).await)),
        Err(error) => Err(failure("FailedSync", &error)),
    }
}

async fn volumes(context: &Context) -> (Result<Output, Failure>, Extra) {
    if context.sandbox.is_some() {
        // The sandbox of an adopted pod was made by an earlier agent: its class has to be told of the pod's share again.
        if let Err(error) = context.shared.facilities.ensure_cgroup(&context.pod).await {
            tracing::warn!(pod = %spec::key(&context.pod), %error, "the pod's cgroup is not as it should be");
        }
    }
    match context.shared.facilities.ensure_volumes(&context.pod).await {
        Ok(volumes) => (Ok(Output::Done), Extra::Volumes(volumes)),
        Err(message) => {
            context.shared.event(&context.pod, None, EventType::Warning, "FailedMount", message.clone());
            (Err(Failure { reason: "FailedMount", message, container: None }), Extra::Nothing)
        }
    }
}

/// Gets an image. Events of a container's image are the container's, those of an image volume are the pod's.
async fn image(context: &Context, for_use: ImageUse, image: &str) -> (Result<Output, Failure>, Extra) {
    let (shared, pod) = (&context.shared, &context.pod);
    let (subject, policy) = match &for_use {
        ImageUse::Container(name) => {
            let found = spec::find(pod, name).and_then(|found| found.container.image_pull_policy);
            (Some(name.as_str()), found)
        }
        ImageUse::Volume(name) => (None, spec::volume_pull_policy(pod, name)),
    };
    let secrets = || container::pull_secrets(context).boxed();
    let tell = |kind, reason, text: String| match reason {
        // Which secrets there are is the pod's affair.
        "FailedToRetrieveImagePullSecret" => shared.event(pod, None, kind, reason, text),
        _ => shared.event(pod, subject, kind, reason, text),
    };
    let request = images::Request {
        pod,
        image,
        policy: policy.as_deref().unwrap_or_else(|| spec::default_pull_policy(image)),
        secrets: &secrets,
        tell: &tell,
    };
    match shared.images.ensure(&request).await {
        Ok((found, pulled)) => {
            if let Some(pulled) = pulled {
                METRICS.pods.pulled(pulled.total, pulled.size);
            }
            (Ok(Output::Done), Extra::Image(for_use, found, pulled.map(|pulled| pulled.total)))
        }
        Err(failed) => {
            shared.event(pod, subject, EventType::Warning, "Failed", format!("Error: {}", failed.reason));
            (Err(failed), Extra::Nothing)
        }
    }
}
