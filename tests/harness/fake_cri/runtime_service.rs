//! RuntimeService: each call records itself, suffers its faults, and is done by `sandboxes` or `containers`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::Empty;
use nodelet_proto::cri::runtime_service_server::RuntimeService;
use nodelet_proto::cri::*;
use tonic::{Request, Response, Status};

use super::events::EventStream;
use super::model::Container as ModelContainer;
use super::shared::{Rpc, Shared, lock};
use super::{containers, sandboxes};

type Answer<T> = Result<Response<T>, Status>;
type Nothing<T> = Empty<Result<T, Status>>;

/// The service of one fake.
pub(super) struct RuntimeFacade(pub(super) Arc<Shared>);

impl RuntimeFacade {
    fn about(&self, id: &str) -> Vec<String> {
        self.0.read(|model| model.names_of(id))
    }
}

fn refused(rpc: &str) -> Status {
    Status::unimplemented(format!("the fake has no {rpc}"))
}

fn condition(kind: &str, failure: Option<String>) -> RuntimeCondition {
    RuntimeCondition {
        r#type: kind.to_owned(),
        status: failure.is_none(),
        reason: failure.as_ref().map(|_| "NetworkPluginNotReady".to_owned()).unwrap_or_default(),
        message: failure.unwrap_or_default(),
    }
}

/// Usage of a process that does nothing: identity and time are right, the numbers are zero.
fn container_stats(container: &ModelContainer, now: i64) -> ContainerStats {
    let zero = || Some(UInt64Value { value: 0 });
    let attributes = ContainerAttributes {
        id: container.id.clone(),
        metadata: container.config.metadata.clone(),
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
    };
    let cpu = CpuUsage { timestamp: now, usage_core_nano_seconds: zero(), usage_nano_cores: zero(), psi: None };
    let memory = MemoryUsage { timestamp: now, working_set_bytes: zero(), ..Default::default() };
    ContainerStats { attributes: Some(attributes), cpu: Some(cpu), memory: Some(memory), ..Default::default() }
}

fn sandbox_stats(shared: &Shared, wanted: impl Fn(&PodSandboxStatus) -> bool) -> Vec<PodSandboxStats> {
    let now = shared.now();
    shared.read(|model| {
        let chosen = model.sandboxes.values().map(super::model::Sandbox::status).filter(wanted);
        let stats = chosen.map(|status| {
            let containers = model.containers_of(&status.id).map(|found| container_stats(found, now)).collect();
            let (id, metadata, labels) = (status.id.clone(), status.metadata, status.labels);
            let attributes = PodSandboxAttributes { id, metadata, labels, annotations: status.annotations };
            let linux = LinuxPodSandboxStats { containers, ..Default::default() };
            PodSandboxStats { attributes: Some(attributes), linux: Some(linux), windows: None }
        });
        stats.collect()
    })
}

#[tonic::async_trait]
impl RuntimeService for RuntimeFacade {
    type GetContainerEventsStream = EventStream;
    type StreamPodSandboxesStream = Nothing<StreamPodSandboxesResponse>;
    type StreamContainersStream = Nothing<StreamContainersResponse>;
    type StreamContainerStatsStream = Nothing<StreamContainerStatsResponse>;
    type StreamPodSandboxStatsStream = Nothing<StreamPodSandboxStatsResponse>;
    type StreamPodSandboxMetricsStream = Nothing<StreamPodSandboxMetricsResponse>;

    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        let version = lock(&self.0.options).version.clone();
        let answer = VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "containerd".to_owned(),
            runtime_version: version,
            runtime_api_version: "v1".to_owned(),
        };
        self.0.call(Rpc::Version, Vec::new(), async { Ok(answer) }).await
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let request = request.into_inner();
        let metadata = request.config.as_ref().and_then(|config| config.metadata.as_ref());
        let about = metadata.map(|metadata| metadata.name.clone()).into_iter().collect();
        self.0.call(Rpc::RunPodSandbox, about, sandboxes::run(Arc::clone(&self.0), request)).await
    }

    async fn stop_pod_sandbox(&self, request: Request<StopPodSandboxRequest>) -> Answer<StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.0.call(Rpc::StopPodSandbox, self.about(&id), sandboxes::stop(Arc::clone(&self.0), id)).await
    }

    async fn remove_pod_sandbox(&self, request: Request<RemovePodSandboxRequest>) -> Answer<RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        self.0.call(Rpc::RemovePodSandbox, self.about(&id), sandboxes::remove(Arc::clone(&self.0), id)).await
    }

    async fn pod_sandbox_status(&self, request: Request<PodSandboxStatusRequest>) -> Answer<PodSandboxStatusResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let (shared, about) = (Arc::clone(&self.0), self.about(&id));
        let work = async move {
            let status = Some(shared.read(|model| model.sandbox(&id).map(super::model::Sandbox::status))?);
            Ok(PodSandboxStatusResponse { status, ..Default::default() })
        };
        self.0.call(Rpc::PodSandboxStatus, about, work).await
    }

    async fn list_pod_sandbox(&self, request: Request<ListPodSandboxRequest>) -> Answer<ListPodSandboxResponse> {
        let (shared, filter) = (Arc::clone(&self.0), request.into_inner().filter);
        let work = async move { Ok(ListPodSandboxResponse { items: sandboxes::list(&shared, filter) }) };
        self.0.call(Rpc::ListPodSandbox, Vec::new(), work).await
    }

    async fn create_container(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        let request = request.into_inner();
        let metadata = request.config.as_ref().and_then(|config| config.metadata.as_ref());
        let mut about = self.about(&request.pod_sandbox_id);
        about.extend(metadata.map(|metadata| metadata.name.clone()));
        self.0.call(Rpc::CreateContainer, about, containers::create(Arc::clone(&self.0), request)).await
    }

    async fn start_container(&self, request: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        let id = request.into_inner().container_id;
        self.0.call(Rpc::StartContainer, self.about(&id), containers::start(Arc::clone(&self.0), id)).await
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let request = request.into_inner();
        let (shared, about) = (Arc::clone(&self.0), self.about(&request.container_id));
        let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        let work = async move {
            containers::stop(&shared, &request.container_id, grace).await;
            Ok(StopContainerResponse {})
        };
        self.0.call(Rpc::StopContainer, about, work).await
    }

    async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        self.0.call(Rpc::RemoveContainer, self.about(&id), containers::remove(Arc::clone(&self.0), id)).await
    }

    async fn list_containers(&self, request: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        let (shared, filter) = (Arc::clone(&self.0), request.into_inner().filter);
        let work = async move { Ok(ListContainersResponse { containers: containers::list(&shared, filter) }) };
        self.0.call(Rpc::ListContainers, Vec::new(), work).await
    }

    async fn container_status(&self, request: Request<ContainerStatusRequest>) -> Answer<ContainerStatusResponse> {
        let id = request.into_inner().container_id;
        let (shared, about) = (Arc::clone(&self.0), self.about(&id));
        let work = async move {
            let status = shared.read(|model| {
                let container = model.container(&id)?;
                let mut status = container.status();
                // The name that the image has now, as containerd tells it.
                let tag = model.images.get(&container.image_id).and_then(|image| image.repo_tags.first());
                status.image = tag.map(|tag| ImageSpec { image: tag.clone(), ..Default::default() }).or(status.image);
                Ok::<_, Status>(status)
            })?;
            Ok(ContainerStatusResponse { status: Some(status), ..Default::default() })
        };
        self.0.call(Rpc::ContainerStatus, about, work).await
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let (shared, about) = (Arc::clone(&self.0), self.about(&request.container_id));
        let work = async move {
            shared.update(|model| {
                let id = model.container(&request.container_id)?.id.clone();
                if let Some(container) = model.container_mut(&id) {
                    container.resources = request.linux;
                }
                Ok(UpdateContainerResourcesResponse {})
            })
        };
        self.0.call(Rpc::UpdateContainerResources, about, work).await
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let id = request.into_inner().container_id;
        let (shared, about) = (Arc::clone(&self.0), self.about(&id));
        let work = async move {
            let log = shared.read(|model| {
                let container = model.container(&id)?;
                match container.state() {
                    ContainerState::ContainerRunning => Ok(Arc::clone(&container.log)),
                    _ => Err(Status::unknown("container is not running")),
                }
            })?;
            lock(&log).open().map_err(|error| Status::unknown(error.to_string()))?;
            Ok(ReopenContainerLogResponse {})
        };
        self.0.call(Rpc::ReopenContainerLog, about, work).await
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let request = request.into_inner();
        let about = self.about(&request.container_id);
        self.0.call(Rpc::ExecSync, about, containers::exec(Arc::clone(&self.0), request)).await
    }

    async fn container_stats(&self, request: Request<ContainerStatsRequest>) -> Answer<ContainerStatsResponse> {
        let id = request.into_inner().container_id;
        let (shared, about) = (Arc::clone(&self.0), self.about(&id));
        let work = async move {
            let now = shared.now();
            let stats = shared.read(|model| model.container(&id).map(|found| container_stats(found, now)))?;
            Ok(ContainerStatsResponse { stats: Some(stats) })
        };
        self.0.call(Rpc::ContainerStats, about, work).await
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let (shared, filter) = (Arc::clone(&self.0), request.into_inner().filter.unwrap_or_default());
        let work = async move {
            let now = shared.now();
            let (id, pod_sandbox_id, label_selector) = (filter.id, filter.pod_sandbox_id, filter.label_selector);
            let wanted = ContainerFilter { id, pod_sandbox_id, label_selector, state: None };
            let ids: Vec<_> = containers::list(&shared, Some(wanted)).into_iter().map(|found| found.id).collect();
            let stats = shared.read(|model| {
                let chosen = ids.iter().filter_map(|id| model.container(id).ok());
                chosen.map(|container| container_stats(container, now)).collect()
            });
            Ok(ListContainerStatsResponse { stats })
        };
        self.0.call(Rpc::ListContainerStats, Vec::new(), work).await
    }

    async fn pod_sandbox_stats(&self, request: Request<PodSandboxStatsRequest>) -> Answer<PodSandboxStatsResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let (shared, about) = (Arc::clone(&self.0), self.about(&id));
        let work = async move {
            let id = shared.read(|model| model.sandbox(&id).map(|found| found.id.clone()))?;
            Ok(PodSandboxStatsResponse { stats: sandbox_stats(&shared, |status| status.id == id).pop() })
        };
        self.0.call(Rpc::PodSandboxStats, about, work).await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let (shared, filter) = (Arc::clone(&self.0), request.into_inner().filter.unwrap_or_default());
        let work = async move {
            let stats = sandbox_stats(&shared, |status| {
                (filter.id.is_empty() || status.id == filter.id)
                    && super::model::selects(&filter.label_selector, &status.labels)
            });
            Ok(ListPodSandboxStatsResponse { stats })
        };
        self.0.call(Rpc::ListPodSandboxStats, Vec::new(), work).await
    }

    async fn update_runtime_config(
        &self,
        _: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        self.0.call(Rpc::UpdateRuntimeConfig, Vec::new(), async { Ok(UpdateRuntimeConfigResponse {}) }).await
    }

    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        let failure = lock(&self.0.options).network_failure.clone();
        let conditions = vec![condition("RuntimeReady", None), condition("NetworkReady", failure)];
        let handlers = ["", "runc"].map(|name| RuntimeHandler { name: name.to_owned(), features: None });
        let answer = StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            runtime_handlers: handlers.into(),
            ..Default::default()
        };
        self.0.call(Rpc::Status, Vec::new(), async { Ok(answer) }).await
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        let driver = lock(&self.0.options).cgroup_driver;
        let work = async move {
            let driver = driver.ok_or_else(|| Status::unimplemented("unknown method RuntimeConfig"))?;
            Ok(RuntimeConfigResponse { linux: Some(LinuxRuntimeConfiguration { cgroup_driver: driver as i32 }) })
        };
        self.0.call(Rpc::RuntimeConfig, Vec::new(), work).await
    }

    async fn get_container_events(&self, _: Request<GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        let shared = Arc::clone(&self.0);
        let work = async move {
            if lock(&shared.options).has_events {
                Ok(shared.events.stream())
            } else {
                Err(Status::unimplemented("unknown method GetContainerEvents"))
            }
        };
        self.0.call(Rpc::GetContainerEvents, Vec::new(), work).await
    }

    async fn stream_pod_sandboxes(
        &self,
        _: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        Err(refused("StreamPodSandboxes"))
    }

    async fn stream_containers(&self, _: Request<StreamContainersRequest>) -> Answer<Self::StreamContainersStream> {
        Err(refused("StreamContainers"))
    }

    async fn stream_container_stats(
        &self,
        _: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        Err(refused("StreamContainerStats"))
    }

    async fn stream_pod_sandbox_stats(
        &self,
        _: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        Err(refused("StreamPodSandboxStats"))
    }

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        Err(refused("StreamPodSandboxMetrics"))
    }

    async fn exec(&self, _: Request<ExecRequest>) -> Answer<ExecResponse> {
        Err(refused("Exec"))
    }

    async fn attach(&self, _: Request<AttachRequest>) -> Answer<AttachResponse> {
        Err(refused("Attach"))
    }

    async fn port_forward(&self, _: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        Err(refused("PortForward"))
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(refused("CheckpointContainer"))
    }

    async fn checkpoint_pod(&self, _: Request<CheckpointPodRequest>) -> Answer<CheckpointPodResponse> {
        Err(refused("CheckpointPod"))
    }

    async fn restore_pod(&self, _: Request<RestorePodRequest>) -> Answer<RestorePodResponse> {
        Err(refused("RestorePod"))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        Err(refused("ListMetricDescriptors"))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        Err(refused("ListPodSandboxMetrics"))
    }

    async fn update_pod_sandbox_resources(
        &self,
        _: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        Err(refused("UpdatePodSandboxResources"))
    }
}
