//! Profiles and labels of the host's security modules (`AppArmor`, `SELinux`), of which
//! the guest's kernel has none.
//!
//! An engine on a host with such a module gives each container its default profile or
//! label, whether its user has asked for one or not. It says: confine this container as
//! containers are confined, away from the host and from each other. The microVM does
//! that, with a kernel of the container's own, so the defaults are honoured by it. Any
//! other name is a policy that somebody has written for this container; nothing here
//! enforces it, and it is refused by name.

use oci_spec::runtime::Spec;

use crate::failure::{Failure, Result};

/// Annotation by which a caller agrees to do without such a policy in the guest.
const IGNORE_LSM: &str = "dev.lazaret.ignore-lsm";

/// Default profiles of Docker, containerd, CRI-O and nerdctl; `unconfined` asks for none.
const DEFAULT_PROFILES: [&str; 5] = [
    "docker-default",
    "cri-containerd.apparmor.d",
    "crio-default",
    "nerdctl-default",
    "unconfined",
];

/// Podman and buildah: `containers-default-` and a version.
const PODMAN_PREFIX: &str = "containers-default-";

/// Types of container-selinux that engines give to processes: plain, of a microVM, with
/// an init, and unconfined.
const DEFAULT_DOMAINS: [&str; 4] = [
    "container_t",
    "container_kvm_t",
    "container_init_t",
    "spc_t",
];

/// And to files.
const DEFAULT_FILE_TYPES: [&str; 2] = ["container_file_t", "container_ro_file_t"];

/// A property of the spec that names a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    Profile,
    Label,
    MountLabel,
}

/// What becomes of policies that nothing enforces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lsm {
    Refuse,
    Ignore,
}

impl Lsm {
    pub(crate) fn of(spec: &Spec) -> Self {
        let annotations = spec.annotations().as_ref();
        match annotations.and_then(|all| all.get(IGNORE_LSM)) {
            Some(value) if value == "true" => Self::Ignore,
            _ => Self::Refuse,
        }
    }

    pub(crate) fn check(self, setting: Setting, value: Option<&String>) -> Result<()> {
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            return Ok(());
        };
        let name = setting.name();
        if setting.is_default(value) {
            tracing::info!("{name} {value:?}: the microVM is what confines the container");
            return Ok(());
        }
        if self == Self::Ignore {
            tracing::warn!("{name} {value:?} is not enforced, as {IGNORE_LSM} allows");
            return Ok(());
        }
        Err(Failure::unsupported(format!(
            "{name} {value:?} (of such policies only the defaults of engines are met, by the \
             microVM itself; its kernel has no such module: {}, or do without by annotation \
             {IGNORE_LSM}=true)",
            setting.way_out()
        )))
    }
}

impl Setting {
    fn name(self) -> &'static str {
        match self {
            Self::Profile => "process.apparmorProfile",
            Self::Label => "process.selinuxLabel",
            Self::MountLabel => "linux.mountLabel",
        }
    }

    fn way_out(self) -> &'static str {
        match self {
            Self::Profile => "use --security-opt apparmor=unconfined",
            Self::Label | Self::MountLabel => "use --security-opt label=disable",
        }
    }

    fn is_default(self, value: &str) -> bool {
        match self {
            Self::Profile => DEFAULT_PROFILES.contains(&value) || is_podmans(value),
            Self::Label => has_type(value, &DEFAULT_DOMAINS),
            Self::MountLabel => has_type(value, &DEFAULT_FILE_TYPES),
        }
    }
}

fn is_podmans(profile: &str) -> bool {
    let version = profile.strip_prefix(PODMAN_PREFIX);
    version.is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
}

/// `user:role:type:level`, where the level sets containers apart from each other, as
/// microVMs are anyway.
fn has_type(label: &str, types: &[&str]) -> bool {
    let mut parts = label.splitn(4, ':');
    let kind = parts.nth(2);
    kind.is_some_and(|kind| types.contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_refused(setting: Setting, value: &str) -> bool {
        Lsm::Refuse.check(setting, Some(&value.to_owned())).is_err()
    }

    #[test]
    fn what_engines_give_to_every_container_is_met_by_the_microvm() {
        for profile in [
            "",
            "unconfined",
            "docker-default",
            "containers-default-0.62.2",
            "cri-containerd.apparmor.d",
        ] {
            assert!(!is_refused(Setting::Profile, profile), "{profile}");
        }
        for label in [
            "",
            "system_u:system_r:container_t:s0:c123,c456",
            "system_u:system_r:container_kvm_t:s0:c1,c2",
            "unconfined_u:system_r:spc_t:s0-s0:c0.c1023",
        ] {
            assert!(!is_refused(Setting::Label, label), "{label}");
        }
        let files = "system_u:object_r:container_file_t:s0:c123,c456";
        assert!(!is_refused(Setting::MountLabel, files));
    }

    #[test]
    fn policies_of_somebodys_own_are_refused_with_their_names() {
        for profile in [
            "own-profile",
            "docker-default2",
            "containers-default-",
            "containers-default-strict",
        ] {
            assert!(is_refused(Setting::Profile, profile), "{profile}");
        }
        for label in ["container_t", "u:r:own_t:s0", "u:r:t:container_t"] {
            assert!(is_refused(Setting::Label, label), "{label}");
        }
        assert!(is_refused(Setting::MountLabel, "u:r:container_t:s0"));
        let value = "own-profile".to_owned();
        let failure = Lsm::Refuse.check(Setting::Profile, Some(&value));
        let text = failure.expect_err("refused").to_string();
        for part in ["process.apparmorProfile", "own-profile", IGNORE_LSM] {
            assert!(text.contains(part), "{text}");
        }
        assert!(Lsm::Ignore.check(Setting::Profile, Some(&value)).is_ok());
    }
}
