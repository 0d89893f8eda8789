//! The environment of a container. Pure: everything that it is made of is given.
//!
//! Order and precedence are kubelet's: `envFrom`, then `env` with `$(VAR)` expansion over what was defined before, then
//! Service variables for names that are still free.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVarSource, FileKeySelector, ObjectFieldSelector, Pod, Secret,
};

use super::expand::expand;
use super::spec;
use crate::ids::ObjectKey;
use crate::objects::{ObjectRef, ServiceEnv};
use crate::quantity::{Format, Quantity};

mod file;

/// What environment values may be taken from.
#[derive(Clone, Default)]
pub struct Sources {
    /// ConfigMaps that were found, by name.
    pub config_maps: BTreeMap<String, Arc<ConfigMap>>,
    /// Secrets that were found, by name.
    pub secrets: BTreeMap<String, Arc<Secret>>,
    /// Files of volumes that variables are taken from, by volume and path below it; the error says why one cannot be read.
    pub files: BTreeMap<(String, String), Result<String, String>>,
    /// Services of the namespace and `default/kubernetes`.
    pub services: Vec<ServiceEnv>,
    /// Pod addresses, primary first.
    pub pod_ips: Vec<String>,
    /// Node addresses, primary first.
    pub host_ips: Vec<String>,
    /// Name of the node.
    pub node_name: String,
    /// Allocatable resources of the node, the default of absent limits.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// Why an environment cannot be made; kubelet's `CreateContainerConfigError`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// A referenced object is not there.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// The key.
        key: String,
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Namespace of the pod.
        namespace: String,
        /// Name of the object.
        name: String,
    },
    /// A field path that has no value here.
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    /// A resource that is not one of cpu, memory, ephemeral-storage and huge pages.
    #[error("unsupported container resource: {0}")]
    Resource(String),
    /// A source that this agent does not implement.
    #[error("environment variable {0}: valueFrom has no source that this node agent supports")]
    Unsupported(String),
    /// A file of variables that cannot be read.
    #[error("couldn't parse env file: {0}")]
    File(String),
    /// A file of variables has no such key.
    #[error("environment variable key \"{key}\" not found in file \"{path}\" of volume \"{volume}\"")]
    NoFileKey {
        /// The key.
        key: String,
        /// Path below the volume.
        path: String,
        /// The volume.
        volume: String,
    },
}

/// The ConfigMaps and Secrets that the environment of a container refers to.
pub fn object_refs(namespace: &str, container: &Container) -> Vec<ObjectRef> {
    let map = |name: &str| ObjectRef::ConfigMap(ObjectKey::new(namespace, name));
    let secret = |name: &str| ObjectRef::Secret(ObjectKey::new(namespace, name));
    let mut refs = Vec::new();
    for from in container.env_from.iter().flatten() {
        refs.extend(from.config_map_ref.as_ref().map(|r| map(&r.name)));
        refs.extend(from.secret_ref.as_ref().map(|r| secret(&r.name)));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        refs.extend(source.config_map_key_ref.as_ref().map(|r| map(&r.name)));
        refs.extend(source.secret_key_ref.as_ref().map(|r| secret(&r.name)));
    }
    refs
}

/// The files of volumes that the environment of a container refers to (KEP-3721): volume and path below it.
pub fn file_refs(container: &Container) -> Vec<(String, String)> {
    let sources = container.env.iter().flatten().filter_map(|e| e.value_from.as_ref());
    sources.filter_map(|s| s.file_key_ref.as_ref()).map(|f| (f.volume_name.clone(), f.path.clone())).collect()
}

/// Variables in the order in which they were defined, each name once.
#[derive(Default)]
struct Variables {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Variables {
    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }
}

/// Computes the environment of a container.
pub fn resolve(pod: &Pod, container: &Container, sources: &Sources) -> Result<Vec<(String, String)>, EnvError> {
    let services = service_variables(pod, &sources.services);
    let mut variables = Variables::default();
    add_env_from(container, sources, &mut variables)?;
    for env in container.env.iter().flatten() {
        let value = match (&env.value, &env.value_from) {
            (Some(text), _) if !text.is_empty() => {
                let lookup = |name: &str| variables.get(name).or_else(|| services.get(name).map(String::as_str));
                Some(expand(text, lookup))
            }
            (_, Some(source)) => from_source(pod, container, &env.name, source, sources)?,
            (_, None) => Some(String::new()),
        };
        // An optional reference to something absent leaves the variable undefined.
        if let Some(value) = value {
            variables.set(env.name.clone(), value);
        }
    }
    for (name, value) in services {
        if variables.get(&name).is_none() {
            variables.set(name, value);
        }
    }
    let Variables { order, mut values } = variables;
    Ok(order
        .into_iter()
        .map(|name| {
            let value = values.remove(&name).unwrap_or_default();
            (name, value)
        })
        .collect())
}

fn add_env_from(container: &Container, sources: &Sources, variables: &mut Variables) -> Result<(), EnvError> {
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.clone().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            match sources.config_maps.get(&reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        add_named(variables, format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::NotFound { kind: "configmap", name: reference.name.clone() }),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match sources.secrets.get(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        add_named(variables, format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::NotFound { kind: "secret", name: reference.name.clone() }),
            }
        }
    }
    Ok(())
}

/// Keys that cannot be a variable name are left out: since 1.34 anything printable without `=` can.
fn add_named(variables: &mut Variables, name: String, value: String) {
    let valid = !name.is_empty() && name.chars().all(|c| (' '..='~').contains(&c) && c != '=');
    if valid {
        variables.set(name, value);
    }
}

fn from_source(
    pod: &Pod,
    container: &Container,
    name: &str,
    source: &EnvVarSource,
    sources: &Sources,
) -> Result<Option<String>, EnvError> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(field) = &source.field_ref {
        return field_value(pod, field, sources).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        let target = match resource.container_name.as_deref().filter(|n| !n.is_empty()) {
            Some(other) => spec::find(pod, other).map(|f| f.container),
            None => Some(container.clone()),
        };
        let target = target.unwrap_or_else(|| container.clone());
        let divisor = resource.divisor.as_ref().and_then(|d| Quantity::parse(&d.0).ok());
        return resource_value(&target, &resource.resource, divisor, &sources.allocatable).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        let optional = key.optional == Some(true);
        let Some(map) = sources.config_maps.get(&key.name) else {
            return missing(optional, EnvError::NotFound { kind: "configmap", name: key.name.clone() });
        };
        return match map.data.as_ref().and_then(|data| data.get(&key.key)) {
            Some(value) => Ok(Some(value.clone())),
            None => missing(optional, no_key(&key.key, "ConfigMap", namespace, &key.name)),
        };
    }
    if let Some(key) = &source.secret_key_ref {
        let optional = key.optional == Some(true);
        let Some(secret) = sources.secrets.get(&key.name) else {
            return missing(optional, EnvError::NotFound { kind: "secret", name: key.name.clone() });
        };
        return match secret.data.as_ref().and_then(|data| data.get(&key.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None => missing(optional, no_key(&key.key, "Secret", namespace, &key.name)),
        };
    }
    if let Some(file) = &source.file_key_ref {
        return from_file(file, sources);
    }
    Err(EnvError::Unsupported(name.to_owned()))
}

fn from_file(file: &FileKeySelector, sources: &Sources) -> Result<Option<String>, EnvError> {
    let (volume, path) = (file.volume_name.clone(), file.path.clone());
    let content = match sources.files.get(&(volume.clone(), path.clone())) {
        Some(Ok(content)) => content,
        Some(Err(error)) => return Err(EnvError::File(error.clone())),
        None => return Err(EnvError::File(format!("cannot find the volume \"{volume}\" referenced by FileKeyRef"))),
    };
    let value = file::value(content, &file.key).map_err(|error| EnvError::File(error.to_string()))?;
    // As under kubelet an empty value is none.
    match value.filter(|value| !value.is_empty()) {
        Some(value) => Ok(Some(value)),
        None => missing(file.optional == Some(true), EnvError::NoFileKey { key: file.key.clone(), path, volume }),
    }
}

fn missing(optional: bool, error: EnvError) -> Result<Option<String>, EnvError> {
    if optional { Ok(None) } else { Err(error) }
}

fn no_key(key: &str, kind: &'static str, namespace: String, name: &str) -> EnvError {
    EnvError::NoKey { key: key.to_owned(), kind, namespace, name: name.to_owned() }
}

/// `metadata.labels['x']` and `metadata.annotations['x']`.
fn subscript<'a>(path: &'a str, field: &str) -> Option<&'a str> {
    path.strip_prefix(field)?.strip_prefix("['")?.strip_suffix("']")
}

/// The value of a field of the downward API.
pub fn field_value(pod: &Pod, field: &ObjectFieldSelector, sources: &Sources) -> Result<String, EnvError> {
    let meta = &pod.metadata;
    let path = field.field_path.as_str();
    if let Some(key) = subscript(path, "metadata.labels") {
        return Ok(meta.labels.as_ref().and_then(|l| l.get(key)).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        return Ok(meta.annotations.as_ref().and_then(|a| a.get(key)).cloned().unwrap_or_default());
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let first = |ips: &[String]| ips.first().cloned().unwrap_or_default();
    match path {
        "metadata.name" => Ok(text(&meta.name)),
        "metadata.namespace" => Ok(text(&meta.namespace)),
        "metadata.uid" => Ok(text(&meta.uid)),
        "spec.nodeName" => Ok(sources.node_name.clone()),
        "spec.serviceAccountName" => Ok(text(&spec::spec(pod).service_account_name)),
        "spec.restartPolicy" => Ok(spec::restart_policy(pod).to_owned()),
        "status.hostIP" => Ok(first(&sources.host_ips)),
        "status.hostIPs" => Ok(sources.host_ips.join(",")),
        "status.podIP" => Ok(first(&sources.pod_ips)),
        "status.podIPs" => Ok(sources.pod_ips.join(",")),
        other => Err(EnvError::Field(other.to_owned())),
    }
}

/// The value of a resource of a container, divided by `divisor` and rounded up.
pub fn resource_value(
    container: &Container,
    resource: &str,
    divisor: Option<Quantity>,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<String, EnvError> {
    let unsupported = || EnvError::Resource(resource.to_owned());
    let (list, name) = resource.split_once('.').ok_or_else(unsupported)?;
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    let resources = container.resources.as_ref();
    let amounts = match list {
        "limits" if known => resources.and_then(|r| r.limits.as_ref()),
        "requests" if known => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(unsupported()),
    };
    let stated = amounts.and_then(|a| a.get(name)).and_then(|q| Quantity::parse(&q.0).ok());
    let zero = Quantity::from_units(0, Format::DecimalSi);
    let amount = match stated {
        Some(amount) if !amount.is_zero() => amount,
        // A container without a limit may use what the node can give.
        _ if list == "limits" => allocatable.get(name).copied().unwrap_or(zero),
        _ => zero,
    };
    let one = Quantity::from_units(1, Format::DecimalSi);
    let divisor = divisor.filter(|d| !d.is_zero()).unwrap_or(one);
    let divide = |value: i64, by: i64| if by == 0 { value } else { (value + by - 1).div_euclid(by) };
    Ok(if name == "cpu" {
        divide(amount.milli_value(), divisor.milli_value()).to_string()
    } else {
        divide(amount.value(), divisor.value()).to_string()
    })
}

/// `X_SERVICE_HOST` and friends, in the style that Docker links had.
/// Source: `pkg/kubelet/envvars` of k8s.io/kubernetes; `enableServiceLinks: false` leaves only those of `kubernetes`.
fn service_variables(pod: &Pod, services: &[ServiceEnv]) -> BTreeMap<String, String> {
    let links = spec::spec(pod).enable_service_links.unwrap_or(true);
    let mut variables = BTreeMap::new();
    for service in services {
        if (!links && service.name != "kubernetes") || service.cluster_ip.is_empty() || service.ports.is_empty() {
            continue;
        }
        let prefix = env_name(&service.name);
        let host = &service.cluster_ip;
        let bracketed = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        variables.insert(format!("{prefix}_SERVICE_HOST"), host.clone());
        for (index, port) in service.ports.iter().enumerate() {
            let number = port.port;
            if index == 0 {
                variables.insert(format!("{prefix}_SERVICE_PORT"), number.to_string());
                let url = format!("{}://{bracketed}:{number}", port.protocol.to_lowercase());
                variables.insert(format!("{prefix}_PORT"), url);
            }
            if !port.name.is_empty() {
                variables.insert(format!("{prefix}_SERVICE_PORT_{}", env_name(&port.name)), number.to_string());
            }
            let link = format!("{prefix}_PORT_{number}_{}", port.protocol.to_uppercase());
            let protocol = port.protocol.to_lowercase();
            variables.insert(link.clone(), format!("{protocol}://{bracketed}:{number}"));
            variables.insert(format!("{link}_PROTO"), protocol);
            variables.insert(format!("{link}_PORT"), number.to_string());
            variables.insert(format!("{link}_ADDR"), host.clone());
        }
    }
    variables
}

fn env_name(name: &str) -> String {
    name.replace('-', "_").to_uppercase()
}

#[cfg(test)]
mod tests;
