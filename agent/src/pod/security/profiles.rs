//! seccomp and AppArmor profiles. Pure.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SeccompProfile};
use nodelet_proto::cri;
use nodelet_proto::cri::security_profile::ProfileType;

use super::{SecurityError, Settings, unknown};
use crate::pod::spec;

/// Annotation of pods that are older than the field (static pods have it still), followed by the container's name.
const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

pub(super) fn profile(profile_type: ProfileType, localhost_ref: String) -> cri::SecurityProfile {
    cri::SecurityProfile { profile_type: profile_type.into(), localhost_ref }
}

pub(super) fn seccomp(
    wanted: Option<&SeccompProfile>,
    privileged: bool,
    settings: &Settings,
) -> Result<cri::SecurityProfile, SecurityError> {
    let Some(wanted) = wanted else {
        let strict = settings.seccomp_default && !privileged;
        let default = if strict { ProfileType::RuntimeDefault } else { ProfileType::Unconfined };
        return Ok(profile(default, String::new()));
    };
    let allowed = "RuntimeDefault, Unconfined, Localhost with localhostProfile";
    match (wanted.type_.as_str(), wanted.localhost_profile.as_deref()) {
        ("RuntimeDefault", _) => Ok(profile(ProfileType::RuntimeDefault, String::new())),
        ("Unconfined", _) => Ok(profile(ProfileType::Unconfined, String::new())),
        ("Localhost", Some(path)) if is_beneath(path) => {
            Ok(profile(ProfileType::Localhost, format!("{}/{path}", settings.seccomp_root)))
        }
        ("Localhost", other) => Err(unknown("seccompProfile.localhostProfile", other.unwrap_or_default(), allowed)),
        (other, _) => Err(unknown("seccompProfile.type", other, allowed)),
    }
}

/// A relative path that stays below its root.
fn is_beneath(path: &str) -> bool {
    use std::path::{Component, Path};
    !path.is_empty()
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// The AppArmor profile of a container: its own, its annotation's, the pod's.
fn apparmor_of<'a>(pod: &'a Pod, container: &'a Container) -> Option<Cow<'a, AppArmorProfile>> {
    let own = container.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    let annotation = || pod.metadata.annotations.as_ref()?.get(&format!("{ANNOTATION}{}", container.name));
    let of_pod = || spec::spec(pod).security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    own.map(Cow::Borrowed)
        .or_else(|| annotation().map(|text| Cow::Owned(of_annotation(text))))
        .or_else(|| of_pod().map(Cow::Borrowed))
}

/// What is not one of the three forms is kept as it is, and then refused as an unknown type.
fn of_annotation(text: &str) -> AppArmorProfile {
    let of = |type_: &str, name: Option<&str>| AppArmorProfile {
        type_: type_.to_owned(),
        localhost_profile: name.map(str::to_owned),
    };
    match (text, text.strip_prefix("localhost/")) {
        ("runtime/default", _) => of("RuntimeDefault", None),
        ("unconfined", _) => of("Unconfined", None),
        (_, Some(name)) => of("Localhost", Some(name)),
        (other, None) => of(other, None),
    }
}

/// Types of all AppArmor profiles that a pod asks for. Any but `Unconfined` needs a kernel that enforces it.
pub fn apparmor_profiles(pod: &Pod) -> Vec<String> {
    let spec = spec::spec(pod);
    let regular = spec.init_containers.iter().flatten().chain(&spec.containers);
    regular.filter_map(|container| Some(apparmor_of(pod, container)?.type_.clone())).collect()
}

pub(super) fn apparmor(pod: &Pod, container: &Container) -> Result<Option<cri::SecurityProfile>, SecurityError> {
    let Some(wanted) = apparmor_of(pod, container) else { return Ok(None) };
    let allowed = "RuntimeDefault, Unconfined, Localhost with localhostProfile";
    match (wanted.type_.as_str(), wanted.localhost_profile.as_deref().map(str::trim)) {
        ("RuntimeDefault", _) => Ok(Some(profile(ProfileType::RuntimeDefault, String::new()))),
        ("Unconfined", _) => Ok(Some(profile(ProfileType::Unconfined, String::new()))),
        ("Localhost", Some(name)) if !name.is_empty() => Ok(Some(profile(ProfileType::Localhost, name.to_owned()))),
        ("Localhost", _) => Err(unknown("appArmorProfile.localhostProfile", "", allowed)),
        (other, _) => Err(unknown("appArmorProfile.type", other, allowed)),
    }
}
