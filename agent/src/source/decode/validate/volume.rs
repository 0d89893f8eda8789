//! Checks of `spec.volumes`.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, PodSpec, ProjectedVolumeSource, Volume};

use super::Report;

/// Names of the sources that a volume sets; a good one sets exactly one.
pub(in super::super) fn sources(v: &Volume) -> Vec<&'static str> {
    let set = [
        (v.aws_elastic_block_store.is_some(), "awsElasticBlockStore"),
        (v.azure_disk.is_some(), "azureDisk"),
        (v.azure_file.is_some(), "azureFile"),
        (v.cephfs.is_some(), "cephfs"),
        (v.cinder.is_some(), "cinder"),
        (v.config_map.is_some(), "configMap"),
        (v.csi.is_some(), "csi"),
        (v.downward_api.is_some(), "downwardAPI"),
        (v.empty_dir.is_some(), "emptyDir"),
        (v.ephemeral.is_some(), "ephemeral"),
        (v.fc.is_some(), "fc"),
        (v.flex_volume.is_some(), "flexVolume"),
        (v.flocker.is_some(), "flocker"),
        (v.gce_persistent_disk.is_some(), "gcePersistentDisk"),
        (v.git_repo.is_some(), "gitRepo"),
        (v.glusterfs.is_some(), "glusterfs"),
        (v.host_path.is_some(), "hostPath"),
        (v.image.is_some(), "image"),
        (v.iscsi.is_some(), "iscsi"),
        (v.nfs.is_some(), "nfs"),
        (v.persistent_volume_claim.is_some(), "persistentVolumeClaim"),
        (v.photon_persistent_disk.is_some(), "photonPersistentDisk"),
        (v.portworx_volume.is_some(), "portworxVolume"),
        (v.projected.is_some(), "projected"),
        (v.quobyte.is_some(), "quobyte"),
        (v.rbd.is_some(), "rbd"),
        (v.scale_io.is_some(), "scaleIO"),
        (v.secret.is_some(), "secret"),
        (v.storageos.is_some(), "storageos"),
        (v.vsphere_volume.is_some(), "vsphereVolume"),
    ];
    set.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect()
}

/// Types of hostPath; empty means no check.
const HOST_PATH_TYPES: [&str; 8] =
    ["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];

pub(super) fn check(report: &mut Report, spec: &PodSpec) {
    let mut names = BTreeSet::new();
    for (i, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = format!("spec.volumes[{i}]");
        report.dns_label(format!("{path}.name"), &volume.name);
        if !names.insert(&volume.name) {
            report.add(format!("{path}.name"), format!("{:?} is used by two volumes", volume.name));
        }
        let found = sources(volume);
        if found.len() > 1 {
            report.add(&path, format!("expected one source, found {}", found.join(" and ")));
        }
        source(report, &path, volume);
    }
}

fn source(report: &mut Report, path: &str, volume: &Volume) {
    if let Some(host) = &volume.host_path {
        let at = format!("{path}.hostPath");
        if host.path.is_empty() {
            report.required(format!("{at}.path"));
        } else if host.path.split('/').any(|part| part == "..") {
            report.add(format!("{at}.path"), format!("must not contain '..', found {:?}", host.path));
        }
        report.one_of(format!("{at}.type"), host.type_.as_deref(), &HOST_PATH_TYPES);
    }
    if let Some(map) = &volume.config_map {
        let at = format!("{path}.configMap");
        if map.name.is_empty() {
            report.required(format!("{at}.name"));
        }
        mode(report, &format!("{at}.defaultMode"), map.default_mode);
        items(report, &at, map.items.as_deref());
    }
    if let Some(secret) = &volume.secret {
        let at = format!("{path}.secret");
        if secret.secret_name.as_deref().unwrap_or_default().is_empty() {
            report.required(format!("{at}.secretName"));
        }
        mode(report, &format!("{at}.defaultMode"), secret.default_mode);
        items(report, &at, secret.items.as_deref());
    }
    if let Some(downward) = &volume.downward_api {
        mode(report, &format!("{path}.downwardAPI.defaultMode"), downward.default_mode);
        downward_items(report, &format!("{path}.downwardAPI"), downward.items.as_deref());
    }
    if let Some(empty) = &volume.empty_dir {
        let sized = empty.medium.as_deref().and_then(|medium| medium.strip_prefix("HugePages-"));
        match sized {
            Some(size) if crate::quantity::Quantity::parse(size).is_ok() => {}
            _ => report.one_of(
                format!("{path}.emptyDir.medium"),
                empty.medium.as_deref(),
                &["", "Memory", "HugePages", "HugePages-2Mi"],
            ),
        }
        if let Some(limit) = &empty.size_limit {
            super::container::quantity(report, &format!("{path}.emptyDir.sizeLimit"), limit);
        }
    }
    if let Some(source) = &volume.projected {
        projected(report, &format!("{path}.projected"), source);
    }
}

fn projected(report: &mut Report, path: &str, source: &ProjectedVolumeSource) {
    mode(report, &format!("{path}.defaultMode"), source.default_mode);
    for (i, p) in source.sources.iter().flatten().enumerate() {
        let at = format!("{path}.sources[{i}]");
        let set = [
            (p.cluster_trust_bundle.is_some(), "clusterTrustBundle"),
            (p.config_map.is_some(), "configMap"),
            (p.downward_api.is_some(), "downwardAPI"),
            (p.pod_certificate.is_some(), "podCertificate"),
            (p.secret.is_some(), "secret"),
            (p.service_account_token.is_some(), "serviceAccountToken"),
        ];
        let found = set.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect::<Vec<_>>();
        match found.as_slice() {
            [_] => {}
            [] => report.add(&at, "expected a source such as configMap, secret, downwardAPI or serviceAccountToken"),
            many => report.add(&at, format!("expected one source, found {}", many.join(" and "))),
        }
        if let Some(map) = &p.config_map {
            if map.name.is_empty() {
                report.required(format!("{at}.configMap.name"));
            }
            items(report, &format!("{at}.configMap"), map.items.as_deref());
        }
        if let Some(secret) = &p.secret {
            if secret.name.is_empty() {
                report.required(format!("{at}.secret.name"));
            }
            items(report, &format!("{at}.secret"), secret.items.as_deref());
        }
        if let Some(downward) = &p.downward_api {
            downward_items(report, &format!("{at}.downwardAPI"), downward.items.as_deref());
        }
        if let Some(token) = &p.service_account_token {
            relative(report, &format!("{at}.serviceAccountToken.path"), &token.path);
            if let Some(seconds) = token.expiration_seconds.filter(|s| *s < 600) {
                let path = format!("{at}.serviceAccountToken.expirationSeconds");
                report.add(path, format!("expected at least 600 (10 minutes), found {seconds}"));
            }
        }
    }
}

fn mode(report: &mut Report, path: &str, mode: Option<i32>) {
    if let Some(mode) = mode.filter(|m| !(0..=0o777).contains(m)) {
        report.add(path, format!("expected a mode from 0000 to 0777 (octal, or decimal 0 to 511), found {mode}"));
    }
}

fn items(report: &mut Report, path: &str, items: Option<&[KeyToPath]>) {
    for (i, item) in items.unwrap_or_default().iter().enumerate() {
        let at = format!("{path}.items[{i}]");
        if item.key.is_empty() {
            report.required(format!("{at}.key"));
        }
        relative(report, &format!("{at}.path"), &item.path);
        mode(report, &format!("{at}.mode"), item.mode);
    }
}

fn downward_items(report: &mut Report, path: &str, items: Option<&[DownwardAPIVolumeFile]>) {
    for (i, item) in items.unwrap_or_default().iter().enumerate() {
        let at = format!("{path}.items[{i}]");
        relative(report, &format!("{at}.path"), &item.path);
        mode(report, &format!("{at}.mode"), item.mode);
        match (&item.field_ref, &item.resource_field_ref) {
            (Some(_), Some(_)) => report.add(&at, "expected fieldRef or resourceFieldRef, found both"),
            (None, None) => report.add(&at, "expected fieldRef or resourceFieldRef"),
            (Some(field), None) => {
                super::container::field_path(report, &format!("{at}.fieldRef.fieldPath"), &field.field_path, true);
            }
            (None, Some(resource)) => {
                if resource.container_name.as_deref().unwrap_or_default().is_empty() {
                    report.required(format!("{at}.resourceFieldRef.containerName"));
                }
                super::container::resource_name(report, &format!("{at}.resourceFieldRef.resource"), &resource.resource);
            }
        }
    }
}

/// A path inside a volume: not absolute, not climbing out.
pub(super) fn relative(report: &mut Report, path: &str, value: &str) {
    if value.is_empty() {
        report.required(path);
    } else if value.starts_with('/') || value.split('/').any(|part| part == "..") {
        report.add(path, format!("expected a relative path without '..', found {value:?}"));
    } else if value.starts_with("..") {
        report.add(path, format!("must not begin with '..', found {value:?}"));
    }
}
