//! nodelet: the work of kubelet and kube-proxy in one process.
//!
//! `ARCHITECTURE.md` has the bird's eye view, the code map and the invariants. This essay lists everything that runs.
//!
//! ```text
//!  source ──SourceUpdate──► pod::manager ──Message──► pod::worker (one a pod) ──► execute ──► cri · volume · cgroup
//!                              ▲  ▲  ▲                    │ PodStatus
//!   cri::events ── runtime_health │  └── objects          ▼
//!                     probe ──────┘                    app::board ──PodUpdate──► alone ──WatchEvent──► service::programmer
//!                                                         └──► control (get, describe, logs)
//! ```
//!
//! # Tasks
//! All are started by [`app`], in the order of what they need, and end when the shutdown token is cancelled.
//!
//! | task | takes in | gives out |
//! |---|---|---|
//! | signals ([`task::cancel_on_signal`]) | SIGTERM, SIGINT | cancels the token |
//! | runtime events (`cri::events`) | CRI or containerd event stream | `RuntimeEvent` to the next |
//! | runtime health (`app::runtime_health`) | those events, `Status` of the runtime | the events, to the manager; the health |
//! | manager (`pod::manager`) | sources, runtime events, UIDs whose probes or objects changed, "has published", "holds less" | `Message` to workers; what pods are allocated |
//! | look (`pod::manager`), one at a time | the runtime's lists, directories, cgroups and logs of pods | orphans, and the pods of events that name none, to the manager |
//! | worker (`pod::worker`), one a pod | `Message`, outcomes, its timer | operations; `PodStatus`; journal; events |
//! | operation (`pod::execute`), many a worker | one `Op` | an outcome to its worker; it is never cancelled, except a pull |
//! | probe (`probe::worker`), one a probe | its timer, pod address, startup gate | a result, and the pod's UID when it changed |
//! | recorder (`app::record_events`) | `Event` of everybody | log line, ring of the newest for `describe` |
//! | static pods (`source::static_pods`), with a `staticPodPath` | inotify, files | pods |
//! | addresses (`app::addresses`) | rtnetlink, the own Node | host addresses of pods, addresses of NodePorts |
//! | network check (`app::network`), once | the runtime's sandboxes, CNI's cache | CHECK and GC of the CNI chain |
//! | limits ([`eviction`]), idle without pods that have one | sizes of volumes, logs and layers, every ten seconds | evictions, to the manager |
//! | garbage ([`garbage`]) | every five minutes: images, containers, which images pods name; `nodelet gc` | `RemoveImage`, events of the node; a full check by the manager |
//! | kills ([`node::oom`]), where `/dev/kmsg` can be read | the kernel's log | counts by container; events of the node |
//! | node allocatable (`app::enforce`), while pods use more than they may | a timer | limits of `kubepods` |
//! | log rotation ([`logs::rotate`]) | which containers run (`app::board`), sizes of their logs | renamed and compressed files, `ReopenContainerLog` |
//! | control ([`control::serve`]) | connections on the Unix socket; a task each | answers from the board and from log files |
//! | spare memory ([`memory`]) | every minute: what the allocator holds and nobody uses | free pages, to the kernel |
//! | health ([`health::serve`]), up to three | HTTP | what [`health`] lists |
//! | checks of Services ([`health::checks`]), and one a port and address | HTTP; ports of the index, addresses | 200 or 503 |
//!
//! A call to the runtime runs in a task of its own (`cri::client`), so that a caller that gives up does not cut it off midway.
//! Statuses have no task: `app::board` takes them in under a lock and calls its listeners.
//!
//! # Tasks of a node alone
//! | task | takes in | gives out |
//! |---|---|---|
//! | manifests (`source::manifest_dir`) | inotify, files | pods, Services, UIDs whose objects changed |
//! | forwarder (in `app::run_alone`) | the source's bounded channel | the manager's |
//! | joiner ([`alone`]) | `ServiceUpdate`, `PodUpdate` | Services and EndpointSlices to the index; `alone.json`; events |
//!
//! # Tasks of a joined node
//! Started by `app::joined`; each ends when its handle is dropped.
//!
//! | task | takes in | gives out |
//! |---|---|---|
//! | watch (`api::watch`), one a resource | pods of this node, Services, EndpointSlices, ServiceCIDRs, the own Node | `WatchEvent` to its sink |
//! | watch of an object (`api::objects`) | a ConfigMap or Secret that a pod here uses | UIDs of the pods that use it |
//! | writer (`api::status_writer`), one a pod with work | the newest status | PATCH of the difference, DELETE at the end |
//! | event sender ([`api::events`]) | `Event` from the recorder, dropped when full | events at the API server |
//! | heartbeat and lease ([`node`]), apart | facts, runtime health, own Node, timers | POST and PATCH of the Node; the lease |
//! | kubelet API ([`server::serve`]), a task a connection, one a stream, one a pod whose volumes are being measured | TLS on 10250; plain on `readOnlyPort`, where asked for | answers from the board, the runtime, log files, cgroups, volumes |
//! | network configuration (`app::joined`) | pod CIDRs of the own Node | the conflist, where there is none |
//! | routes ([`node::routes`]), with our conflist only | all Nodes | routes to other nodes' pod CIDRs |
//! | images (`app::node_extras`) | a timer | images for the node status |
//! | mirrors (`source::static_pods::mirror`) | static pods, mirrors, the own Node | mirror pods at the API server |
//! | serving certificate ([`api::bootstrap::serving`]), with `serverTLSBootstrap` | addresses of the own Node, the certificate's life | requests, files that the kubelet API reads |
//! | rotation ([`api::bootstrap`]) | the certificate's life | the next certificate; new connections |
//! | eligibility (`app::service_half`) | the own Node | what 10256 tells load balancers, the zone, pod CIDRs of mode NodeCIDR |
//!
//! # Threads
//! | thread | why it is one |
//! |---|---|
//! | two workers of tokio | all tasks above; none of them blocks |
//! | `services` (`service::programmer`) | netlink blocks; it alone writes our nftables tables. Sinks wake it through a condition variable |
//! | `nft-events` (`service::programmer`) | waits for commits of other programs; ends with the process |
//! | blocking threads of tokio | volumes, cgroups, log removal, manifest reads: calls that may hang. Each ends a second after its work |
//!
//! # Limits
//! Channels that carry wakes are unbounded and their consumers fold repeats (workers drain their inbox in one turn); channels
//! that carry data from outside (manifests, runtime events, events) are bounded, and the sender waits or drops and says so.

// Shared vocabulary.
pub mod event;
pub mod ids;
pub mod metrics;
pub mod objects;
pub mod quantity;
pub mod selector;
pub mod watch;

// Edges: the API server, the runtime, people.
pub mod api;
pub mod cli;
pub mod config;
pub mod control;
pub mod cri;
pub mod health;
pub mod logs;
pub mod source;

// Domains.
pub mod alone;
pub mod cgroup;
pub mod eviction;
pub mod garbage;
pub mod nft;
pub mod node;
pub mod pod;
pub mod probe;
pub mod server;
pub mod service;
pub mod volume;

// Wiring.
pub mod app;
pub mod memory;
pub mod task;
