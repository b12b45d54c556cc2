//! `lazaret-oci features`: what callers may rely on, as the runtime specification
//! lays it down. <https://github.com/opencontainers/runtime-spec/blob/v1.2.0/features.md>

use std::process::ExitCode;

use lazaret_protocol::features;
use oci_spec::runtime::Capability;
use serde_json::{Value, json};

use super::failure::Failure;
use super::state::print;
use crate::hooks::HookKind;

/// Print the features of this runtime as JSON
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

impl Args {
    #[expect(clippy::unused_self, reason = "one of the verbs")]
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let text = serde_json::to_string_pretty(&features()).expect("all keys are strings");
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": super::SPEC_VERSION,
        "hooks": HookKind::ALL.map(HookKind::name),
        "mountOptions": features::MOUNT_OPTIONS,
        "linux": {
            "namespaces": features::NAMESPACES,
            "capabilities": capabilities(),
            "cgroup": {
                "v1": false,
                "v2": true,
                "systemd": true,
                "systemdUser": false,
                "rdma": false,
            },
            "seccomp": {
                "enabled": true,
                "actions": features::SECCOMP_ACTIONS,
                "operators": features::SECCOMP_OPERATORS,
                "archs": features::SECCOMP_ARCHS,
                "knownFlags": features::SECCOMP_FLAGS,
                "supportedFlags": features::SECCOMP_FLAGS,
            },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": features::MOUNT_IDMAP } },
        },
        "annotations": {
            "dev.lazaret.version": env!("CARGO_PKG_VERSION"),
        },
        "potentiallyUnsafeConfigAnnotations": ["dev.lazaret."],
    })
}

/// Every capability that the kernel has, in its order.
fn capabilities() -> Vec<String> {
    const ALL: [Capability; 41] = [
        Capability::Chown,
        Capability::DacOverride,
        Capability::DacReadSearch,
        Capability::Fowner,
        Capability::Fsetid,
        Capability::Kill,
        Capability::Setgid,
        Capability::Setuid,
        Capability::Setpcap,
        Capability::LinuxImmutable,
        Capability::NetBindService,
        Capability::NetBroadcast,
        Capability::NetAdmin,
        Capability::NetRaw,
        Capability::IpcLock,
        Capability::IpcOwner,
        Capability::SysModule,
        Capability::SysRawio,
        Capability::SysChroot,
        Capability::SysPtrace,
        Capability::SysPacct,
        Capability::SysAdmin,
        Capability::SysBoot,
        Capability::SysNice,
        Capability::SysResource,
        Capability::SysTime,
        Capability::SysTtyConfig,
        Capability::Mknod,
        Capability::Lease,
        Capability::AuditWrite,
        Capability::AuditControl,
        Capability::Setfcap,
        Capability::MacOverride,
        Capability::MacAdmin,
        Capability::Syslog,
        Capability::WakeAlarm,
        Capability::BlockSuspend,
        Capability::AuditRead,
        Capability::Perfmon,
        Capability::Bpf,
        Capability::CheckpointRestore,
    ];
    let name = |capability: &Capability| {
        let bare = capability.to_string();
        let bare = bare.strip_prefix("CAP_").unwrap_or(&bare);
        format!("CAP_{bare}")
    };
    ALL.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Features;

    use super::*;

    #[test]
    fn the_document_is_what_the_specification_says_it_is() {
        let document = features();
        let read: Features = serde_json::from_value(document.clone()).unwrap();
        assert_eq!(read.oci_version_max(), super::super::SPEC_VERSION);
        assert_eq!(document["hooks"].as_array().unwrap().len(), 6);
    }

    #[test]
    fn capabilities_have_the_kernels_names() {
        let names = capabilities();
        assert_eq!(names[2], "CAP_DAC_READ_SEARCH");
        assert!(names.contains(&"CAP_SYS_ADMIN".to_owned()));
        assert_eq!(names[40], "CAP_CHECKPOINT_RESTORE");
    }

    #[test]
    fn no_name_is_listed_twice_or_out_of_order() {
        for list in [
            features::MOUNT_OPTIONS,
            features::NAMESPACES,
            features::SECCOMP_ACTIONS,
            features::SECCOMP_OPERATORS,
            features::SECCOMP_ARCHS,
            features::SECCOMP_FLAGS,
        ] {
            assert!(list.is_sorted_by(|a, b| a < b), "{list:?}");
        }
    }
}
