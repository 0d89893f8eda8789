//! How a volume is mounted into a container: propagation and recursive read-only. Pure.
//!
//! Source: `VolumeMount` of the core API, KEP-659 (propagation) and KEP-3857 (recursive read-only), with kubelet's texts.

use k8s_openapi::api::core::v1::VolumeMount;
use nodelet_proto::cri;

/// What `mountPropagation` comes to.
pub fn propagation(mode: Option<&str>) -> Result<cri::MountPropagation, String> {
    match mode {
        None | Some("None") => Ok(cri::MountPropagation::PropagationPrivate),
        Some("HostToContainer") => Ok(cri::MountPropagation::PropagationHostToContainer),
        Some("Bidirectional") => Ok(cri::MountPropagation::PropagationBidirectional),
        Some(other) => {
            Err(format!("unknown mountPropagation \"{other}\"; allowed are None, HostToContainer, Bidirectional"))
        }
    }
}

/// Whether mounts below a read-only volume are read-only too; `is_supported` is what the runtime handler can do.
pub fn recursive_read_only(mount: &VolumeMount, is_supported: bool) -> Result<bool, String> {
    let name = &mount.name;
    let mode = match mount.recursive_read_only.as_deref() {
        None | Some("Disabled") => return Ok(false),
        Some(mode) => mode,
    };
    if mount.read_only != Some(true) {
        return Err(format!("volume {name:?} requested recursive read-only mode, but it is not read-only"));
    }
    if let Some(propagation) = mount.mount_propagation.as_deref().filter(|propagation| *propagation != "None") {
        return Err(format!(
            "volume {name:?} requested recursive read-only mode, but it is not compatible with propagation {propagation:?}"
        ));
    }
    match (mode, is_supported) {
        ("IfPossible", supported) => Ok(supported),
        ("Enabled", true) => Ok(true),
        ("Enabled", false) => {
            Err(format!("volume {name:?} requested recursive read-only mode, but it is not supported by the runtime"))
        }
        (other, _) => Err(format!("unknown recursive read-only mode {other:?}")),
    }
}

/// The same for a status, where a mount that cannot be made counts as not recursive.
pub fn recursive_read_only_status(mount: &VolumeMount, is_supported: bool) -> Option<String> {
    let is_recursive = recursive_read_only(mount, is_supported).unwrap_or(false);
    mount.read_only.filter(|read_only| *read_only)?;
    Some(if is_recursive { "Enabled" } else { "Disabled" }.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(mode: Option<&str>, read_only: bool, propagation: Option<&str>) -> VolumeMount {
        VolumeMount {
            name: "v".into(),
            read_only: Some(read_only),
            recursive_read_only: mode.map(str::to_owned),
            mount_propagation: propagation.map(str::to_owned),
            ..VolumeMount::default()
        }
    }

    #[test]
    fn recursive_read_only_is_what_was_asked_for_or_an_error_but_never_less() {
        for (mode, supported, expected) in [
            (None, true, false),
            (Some("Disabled"), true, false),
            (Some("IfPossible"), true, true),
            (Some("IfPossible"), false, false),
            (Some("Enabled"), true, true),
        ] {
            let mount = mount(mode, true, None);
            assert_eq!(recursive_read_only(&mount, supported), Ok(expected), "{mode:?} {supported}");
            let shown = if expected { "Enabled" } else { "Disabled" };
            assert_eq!(recursive_read_only_status(&mount, supported).as_deref(), Some(shown));
        }
        for (mount, text) in [
            (mount(Some("Enabled"), true, None), "it is not supported by the runtime"),
            (mount(Some("Enabled"), false, None), "it is not read-only"),
            (mount(Some("IfPossible"), false, None), "it is not read-only"),
            (
                mount(Some("Enabled"), true, Some("HostToContainer")),
                "not compatible with propagation \"HostToContainer\"",
            ),
            (mount(Some(""), true, None), "unknown recursive read-only mode \"\""),
            (mount(Some("enabled"), true, None), "unknown recursive read-only mode \"enabled\""),
        ] {
            let error = recursive_read_only(&mount, false).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        assert_eq!(recursive_read_only_status(&mount(None, false, None), true), None);
    }

    #[test]
    fn propagation_is_known_or_refused() {
        for (mode, expected) in [
            (None, cri::MountPropagation::PropagationPrivate),
            (Some("None"), cri::MountPropagation::PropagationPrivate),
            (Some("HostToContainer"), cri::MountPropagation::PropagationHostToContainer),
            (Some("Bidirectional"), cri::MountPropagation::PropagationBidirectional),
        ] {
            assert_eq!(propagation(mode), Ok(expected));
        }
        for unknown in ["", "none", "Shared"] {
            assert!(propagation(Some(unknown)).is_err(), "{unknown}");
        }
    }
}
