//! Refuses, by name and before anything is made, each setting of the OCI spec that
//! this agent cannot honour. What this lets through is applied in full.

use std::collections::HashMap;

use oci_spec::runtime::{Hooks, Linux, LinuxNamespaceType, Mount, Process, Spec};

use crate::failure::{Failure, Result};

pub(crate) fn check(spec: &Spec) -> Result<()> {
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| Failure::invalid("the spec has no process"))?;
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(|| Failure::invalid("the spec has no linux part"))?;
    refuse("solaris", spec.solaris().is_some())?;
    refuse("windows", spec.windows().is_some())?;
    refuse("vm", spec.vm().is_some())?;
    refuse("zos", spec.zos().is_some())?;
    check_hooks(spec.hooks().as_ref())?;
    for mount in spec.mounts().iter().flatten() {
        check_mount(mount)?;
    }
    check_process(process)?;
    check_linux(linux)
}

pub(crate) fn check_process(process: &Process) -> Result<()> {
    let named = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    refuse("process.apparmorProfile", named(process.apparmor_profile()))?;
    refuse("process.selinuxLabel", named(process.selinux_label()))?;
    refuse("process.ioPriority", process.io_priority().is_some())?;
    refuse("process.scheduler", process.scheduler().is_some())?;
    refuse(
        "process.execCPUAffinity",
        process.exec_cpu_affinity().is_some(),
    )?;
    refuse("process.commandLine", named(process.command_line()))?;
    refuse("process.user.username", named(process.user().username()))?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Failure::invalid("process.args is empty"));
    }
    Ok(())
}

fn check_linux(linux: &Linux) -> Result<()> {
    let some = |list: Option<usize>| list.is_some_and(|length| length > 0);
    let named = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    for namespace in linux.namespaces().iter().flatten() {
        match namespace.typ() {
            LinuxNamespaceType::User => return Err(Failure::unsupported("a user namespace")),
            LinuxNamespaceType::Time => return Err(Failure::unsupported("a time namespace")),
            LinuxNamespaceType::Mount if namespace.path().is_some() => {
                return Err(Failure::unsupported("joining a mount namespace"));
            }
            _ => {}
        }
    }
    let has_mount = linux
        .namespaces()
        .iter()
        .flatten()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Mount);
    if !has_mount {
        return Err(Failure::unsupported(
            "a container without a mount namespace",
        ));
    }
    refuse(
        "linux.uidMappings",
        some(linux.uid_mappings().as_ref().map(Vec::len)),
    )?;
    refuse(
        "linux.gidMappings",
        some(linux.gid_mappings().as_ref().map(Vec::len)),
    )?;
    refuse("linux.seccomp", linux.seccomp().is_some())?;
    refuse("linux.mountLabel", named(linux.mount_label()))?;
    refuse("linux.intelRdt", linux.intel_rdt().is_some())?;
    refuse("linux.memoryPolicy", linux.memory_policy().is_some())?;
    refuse("linux.personality", linux.personality().is_some())?;
    refuse(
        "linux.timeOffsets",
        some(linux.time_offsets().as_ref().map(HashMap::len)),
    )?;
    refuse(
        "linux.netDevices",
        some(linux.net_devices().as_ref().map(HashMap::len)),
    )
}

fn check_mount(mount: &Mount) -> Result<()> {
    let mapped = mount.uid_mappings().is_some() || mount.gid_mappings().is_some();
    refuse(
        &format!(
            "an id mapping of the mount on {}",
            mount.destination().display()
        ),
        mapped,
    )?;
    // A mount inside /proc could make the container believe anything of itself; only
    // whole proc file systems have a place there.
    let inside_proc = mount.destination().starts_with("/proc")
        && mount.destination().as_path() != std::path::Path::new("/proc");
    refuse(
        &format!("a mount on {}", mount.destination().display()),
        inside_proc,
    )
}

fn check_hooks(hooks: Option<&Hooks>) -> Result<()> {
    let Some(hooks) = hooks else { return Ok(()) };
    let kinds = [
        ("hooks.prestart", hooks.prestart()),
        ("hooks.createRuntime", hooks.create_runtime()),
        ("hooks.createContainer", hooks.create_container()),
        ("hooks.startContainer", hooks.start_container()),
        ("hooks.poststart", hooks.poststart()),
        ("hooks.poststop", hooks.poststop()),
    ];
    for (name, list) in kinds {
        refuse(name, list.as_ref().is_some_and(|list| !list.is_empty()))?;
    }
    Ok(())
}

fn refuse(setting: &str, present: bool) -> Result<()> {
    if present {
        Err(Failure::unsupported(setting))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Code;

    fn checked(json: serde_json::Value) -> Result<()> {
        check(&serde_json::from_value(json).expect("a spec"))
    }

    fn spec() -> serde_json::Value {
        serde_json::json!({
            "ociVersion": "1.2.0",
            "root": { "path": "/r" },
            "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["true"] },
            "linux": { "namespaces": [{ "type": "mount" }] },
        })
    }

    #[test]
    fn plain_spec_is_accepted() {
        assert_eq!(checked(spec()), Ok(()));
    }

    #[test]
    fn unsupported_settings_are_named() {
        let cases = [
            ("/process/apparmorProfile", serde_json::json!("x")),
            (
                "/linux/seccomp",
                serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW" }),
            ),
            ("/linux/mountLabel", serde_json::json!("x")),
            (
                "/hooks",
                serde_json::json!({ "poststop": [{ "path": "/bin/true" }] }),
            ),
        ];
        for (pointer, value) in cases {
            let mut spec = spec();
            let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
            spec.pointer_mut(parent)
                .and_then(serde_json::Value::as_object_mut)
                .expect("an object")
                .insert(key.to_owned(), value);
            let failure = checked(spec).expect_err(pointer);
            assert_eq!(failure.code, Code::Unimplemented, "{pointer}");
            assert!(failure.message.contains(key), "{pointer}: {failure}");
        }
    }
}
