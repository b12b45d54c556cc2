//! Refuses, by name and before anything is made, each setting of the OCI spec that
//! this agent cannot honour. What this lets through is applied in full.
//!
//! Hooks of the host's side are not for the agent to judge: the host has run them, or
//! will. `linux.cgroupsPath` likewise names a place on the host.

use std::collections::HashMap;

use oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceType, LinuxPersonality, Process, Spec,
};

use super::environment::Environment;
use super::security_module::{Lsm, Setting};
use super::user_namespace::Mappings;
use super::{mount, sysctl};
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
    for entry in spec.mounts().iter().flatten() {
        mount::check(entry)?;
    }
    let lsm = Lsm::of(spec);
    check_process(process, lsm)?;
    lsm.check(Setting::MountLabel, linux.mount_label().as_ref())?;
    check_linux(linux)?;
    sysctl::check(linux)
}

pub(crate) fn check_process(process: &Process, lsm: Lsm) -> Result<()> {
    lsm.check(Setting::Profile, process.apparmor_profile().as_ref())?;
    lsm.check(Setting::Label, process.selinux_label().as_ref())?;
    let named = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    refuse("process.commandLine", named(process.command_line()))?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(Failure::invalid("process.args is empty"));
    }
    Environment::of(process)?;
    let limits = process.rlimits().as_deref().unwrap_or_default();
    for (place, limit) in limits.iter().enumerate() {
        if limits
            .iter()
            .take(place)
            .any(|other| other.typ() == limit.typ())
        {
            return Err(Failure::invalid(format!(
                "process.rlimits has {} twice",
                limit.typ()
            )));
        }
    }
    Ok(())
}

fn check_linux(linux: &Linux) -> Result<()> {
    check_namespaces(linux)?;
    refuse("linux.intelRdt", linux.intel_rdt().is_some())?;
    refuse("linux.memoryPolicy", linux.memory_policy().is_some())?;
    refuse("linux.netDevices", is_filled(linux.net_devices().as_ref()))?;
    let flags = linux.personality().as_ref().map(LinuxPersonality::flags);
    refuse(
        "linux.personality.flags",
        flags.is_some_and(|flags| flags.as_ref().is_some_and(|list| !list.is_empty())),
    )
}

fn check_namespaces(linux: &Linux) -> Result<()> {
    let all = linux.namespaces().as_deref().unwrap_or_default();
    for (place, namespace) in all.iter().enumerate() {
        let kind = namespace.typ();
        if all.iter().take(place).any(|other| other.typ() == kind) {
            return Err(Failure::invalid(format!(
                "linux.namespaces has {kind} twice"
            )));
        }
        let unjoinable = [
            LinuxNamespaceType::Mount,
            LinuxNamespaceType::User,
            LinuxNamespaceType::Time,
        ];
        if namespace.path().is_some() && unjoinable.contains(&kind) {
            return Err(Failure::unsupported(format!("joining a {kind} namespace")));
        }
    }
    if !has_namespace(linux, LinuxNamespaceType::Mount) {
        return Err(Failure::unsupported(
            "a container without a mount namespace",
        ));
    }
    Mappings::of(linux)?;
    if is_filled(linux.time_offsets().as_ref()) && !has_namespace(linux, LinuxNamespaceType::Time) {
        return Err(Failure::invalid(
            "linux.timeOffsets needs a time namespace in linux.namespaces",
        ));
    }
    Ok(())
}

pub(crate) fn has_namespace(linux: &Linux, kind: LinuxNamespaceType) -> bool {
    let mut all = linux.namespaces().iter().flatten();
    all.any(|namespace: &LinuxNamespace| namespace.typ() == kind)
}

fn is_filled<T>(map: Option<&HashMap<String, T>>) -> bool {
    map.is_some_and(|map| !map.is_empty())
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
    use serde_json::{Value, json};

    use super::*;
    use crate::failure::Code;

    fn checked(json: Value) -> Result<()> {
        check(&serde_json::from_value(json).expect("a spec"))
    }

    fn spec() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "root": { "path": "/r" },
            "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["true"] },
            "linux": { "namespaces": [{ "type": "mount" }] },
        })
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut spec = spec();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        spec.pointer_mut(parent)
            .and_then(Value::as_object_mut)
            .expect("an object")
            .insert(key.to_owned(), value);
        spec
    }

    #[test]
    fn plain_spec_is_accepted() {
        assert_eq!(checked(spec()), Ok(()));
    }

    #[test]
    fn unsupported_settings_are_named() {
        let cases = [
            ("/process/apparmorProfile", json!("own-profile")),
            ("/process/selinuxLabel", json!("u:r:own_t:s0")),
            ("/linux/mountLabel", json!("x")),
            ("/linux/intelRdt", json!({ "closID": "x" })),
            ("/linux/netDevices", json!({ "eth0": {} })),
            (
                "/linux/personality",
                json!({ "domain": "LINUX", "flags": ["x"] }),
            ),
            ("/vm", json!({ "kernel": { "path": "/k" } })),
        ];
        for (pointer, value) in cases {
            let failure = checked(with(pointer, value)).expect_err(pointer);
            let key = pointer.rsplit('/').next().expect("a key");
            assert_eq!(failure.code, Code::Unimplemented, "{pointer}");
            assert!(failure.message.contains(key), "{pointer}: {failure}");
        }
    }

    #[test]
    fn hooks_of_the_hosts_side_are_left_to_it() {
        let hook = json!([{ "path": "/bin/true" }]);
        let hooks = json!({ "prestart": hook, "createRuntime": hook, "createContainer": hook,
                            "poststart": hook, "poststop": hook });
        assert_eq!(checked(with("/hooks", hooks)), Ok(()));
    }

    #[test]
    fn what_says_a_thing_twice_is_invalid() {
        let limit = json!({ "type": "RLIMIT_NOFILE", "soft": 1, "hard": 1 });
        let namespaces = json!([{ "type": "mount" }, { "type": "uts" }, { "type": "uts" }]);
        for (pointer, value) in [
            ("/process/rlimits", json!([limit, limit])),
            ("/linux/namespaces", namespaces),
            ("/linux/timeOffsets", json!({ "monotonic": { "secs": 1 } })),
        ] {
            let failure = checked(with(pointer, value)).expect_err(pointer);
            assert_eq!(failure.code, Code::InvalidArgument, "{pointer}");
        }
    }
}
