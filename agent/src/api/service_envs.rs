//! The Services that pod environments name. Fed by whoever watches Services; read by `api::objects`.
//!
//! A pod sees the Services of its namespace and `default/kubernetes`; a Service of the pod's own namespace wins over
//! that one when both are called `kubernetes`, as with kubelet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::ids::ObjectKey;
use crate::objects::ServiceEnv;
use crate::watch::{WatchEvent, WatchSink};

#[derive(Default)]
struct State {
    services: BTreeMap<ObjectKey, ServiceEnv>,
    listed: BTreeSet<ObjectKey>,
}

/// All Services that have a ClusterIP.
pub struct ServiceEnvs {
    state: Mutex<State>,
    synced: watch::Sender<bool>,
}

impl Default for ServiceEnvs {
    fn default() -> Self {
        Self { state: Mutex::default(), synced: watch::Sender::new(false) }
    }
}

impl ServiceEnvs {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in one event about a Service; `None` as its content means that it has no ClusterIP.
    pub fn handle(&self, event: WatchEvent<(ObjectKey, Option<ServiceEnv>)>) {
        let mut state = self.lock();
        match event {
            WatchEvent::Restart => state.listed.clear(),
            WatchEvent::InitApply((key, service)) => {
                state.listed.insert(key.clone());
                state.set(key, service);
            }
            WatchEvent::InitDone => {
                let listed = std::mem::take(&mut state.listed);
                state.services.retain(|key, _| listed.contains(key));
                drop(state);
                self.synced.send_replace(true);
            }
            WatchEvent::Apply((key, service)) => state.set(key, service),
            WatchEvent::Delete((key, _)) => state.set(key, None),
        }
    }

    /// The Services that a pod of this namespace sees, by name. Waits for the first complete list.
    pub async fn of_namespace(&self, namespace: &str) -> Vec<ServiceEnv> {
        // The sender is part of self, so it cannot be closed.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
        let state = self.lock();
        let own = state.services.iter().filter(|(key, _)| &*key.namespace == namespace);
        let mut services: BTreeMap<&str, &ServiceEnv> = own.map(|(key, service)| (&*key.name, service)).collect();
        if let Some(service) = state.services.get(&ObjectKey::new("default", "kubernetes")) {
            services.entry("kubernetes").or_insert(service);
        }
        services.into_values().cloned().collect()
    }
}

impl State {
    fn set(&mut self, key: ObjectKey, service: Option<ServiceEnv>) {
        match service {
            Some(service) => self.services.insert(key, service),
            None => self.services.remove(&key),
        };
    }
}

/// A sink that turns Services of any type into environments with a function.
pub struct ServiceEnvSink<K> {
    envs: std::sync::Arc<ServiceEnvs>,
    convert: fn(&K) -> (ObjectKey, Option<ServiceEnv>),
}

impl<K> ServiceEnvSink<K> {
    /// Feeds `envs`.
    pub fn new(envs: std::sync::Arc<ServiceEnvs>, convert: fn(&K) -> (ObjectKey, Option<ServiceEnv>)) -> Self {
        Self { envs, convert }
    }
}

impl<K: 'static> WatchSink<K> for ServiceEnvSink<K> {
    fn handle(&mut self, event: WatchEvent<K>) {
        let convert = self.convert;
        self.envs.handle(match event {
            WatchEvent::Restart => WatchEvent::Restart,
            WatchEvent::InitApply(service) => WatchEvent::InitApply(convert(&service)),
            WatchEvent::InitDone => WatchEvent::InitDone,
            WatchEvent::Apply(service) => WatchEvent::Apply(convert(&service)),
            WatchEvent::Delete(service) => WatchEvent::Delete(convert(&service)),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(namespace: &str, name: &str, ip: &str) -> (ObjectKey, Option<ServiceEnv>) {
        let env = ServiceEnv { name: name.into(), cluster_ip: ip.into(), ports: Vec::new() };
        (ObjectKey::new(namespace, name), Some(env))
    }

    #[tokio::test]
    async fn a_pod_sees_its_namespace_and_the_api_server() {
        let envs = ServiceEnvs::default();
        envs.handle(WatchEvent::Restart);
        for service in [service("default", "kubernetes", "1"), service("default", "x", "2"), service("a", "y", "3")] {
            envs.handle(WatchEvent::InitApply(service));
        }
        envs.handle(WatchEvent::InitDone);
        let ips = async |namespace: &str| {
            let services = envs.of_namespace(namespace).await;
            services.into_iter().map(|service| service.cluster_ip).collect::<String>()
        };
        assert_eq!(ips("a").await, "13");
        envs.handle(WatchEvent::Apply(service("a", "kubernetes", "4")));
        assert_eq!(ips("a").await, "43", "the namespace's own Service wins");
        envs.handle(WatchEvent::Restart);
        envs.handle(WatchEvent::InitApply(service("default", "x", "2")));
        envs.handle(WatchEvent::InitDone);
        assert_eq!((ips("a").await, ips("default").await), (String::new(), "2".to_owned()));
    }
}
