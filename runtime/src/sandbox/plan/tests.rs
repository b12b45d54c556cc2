//! Golden tests: `testdata/<name>.json` is a bundle's `config.json`, and
//! `testdata/<name>.plan` what is planned for it. `LAZARET_BLESS=1` writes the
//! latter anew.

use super::*;
use crate::sandbox::cgroup::Setting;
use std::fmt::Write;
use std::fs;

const HOST: HostFacts = HostFacts { memory_mib: 16384 };
const DEFAULTS: Defaults = Defaults {
    vcpus: 1,
    memory_mib: 512,
};

/// A host with these paths and no others.
fn kind_of(path: &Path) -> io::Result<PathKind> {
    match path.to_str().unwrap_or_default() {
        "/srv/data" | "/bundle/relative" => Ok(PathKind::Directory),
        "/etc/hosts" => Ok(PathKind::File),
        "/run/docker.sock" => Ok(PathKind::Other("socket")),
        "/dev/sda" => Ok(PathKind::Other("device")),
        "/locked" => Err(io::ErrorKind::PermissionDenied.into()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

fn plan(spec: Value) -> Result<ContainerPlan, PlanError> {
    let id = ContainerId::new("c1").unwrap();
    plan_container(&id, spec, "lazaret", Path::new("/bundle"), kind_of)
}

fn golden(name: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sandbox/plan/testdata");
    let text = fs::read_to_string(dir.join(format!("{name}.json"))).unwrap();
    let spec: Value = serde_json::from_str(&text).unwrap();
    let VmPlan { vm, cgroup } = plan_vm(&spec, "lazaret", DEFAULTS, HOST).unwrap();
    let container = plan(spec).unwrap();
    let mut planned = String::new();
    writeln!(planned, "# microVM").unwrap();
    writeln!(planned, "{}", serde_json::to_string_pretty(&vm).unwrap()).unwrap();
    writeln!(planned, "# host cgroup").unwrap();
    for Setting { file, value } in &cgroup.settings {
        writeln!(planned, "{file} = {value}").unwrap();
    }
    writeln!(planned, "# root\n{}", container.root.display()).unwrap();
    writeln!(planned, "# host mounts\n{:#?}", container.mounts).unwrap();
    let spec = serde_json::to_string_pretty(&container.spec).unwrap();
    writeln!(planned, "# spec for the agent\n{spec}").unwrap();
    let path = dir.join(format!("{name}.plan"));
    if std::env::var_os("LAZARET_BLESS").is_some() {
        fs::write(&path, &planned).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap();
    assert!(planned == expected, "{} is now:\n{planned}", path.display());
}

#[test]
fn plain_container() {
    golden("plain");
}

#[test]
fn volumes_limits_and_annotations() {
    golden("volumes");
}

fn with(pointer: &str, value: Value) -> Value {
    let mut spec = serde_json::json!({
        "root": { "path": "rootfs" },
        "process": {},
        "mounts": [],
        "linux": { "resources": { "memory": {}, "cpu": {} } },
        "annotations": {},
    });
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    spec.pointer_mut(parent).unwrap()[key] = value;
    spec
}

fn bind(source: &str, options: &[&str]) -> Value {
    let mount = serde_json::json!({
        "type": "bind", "source": source, "destination": "/mnt", "options": options,
    });
    with("/mounts", Value::Array(vec![mount]))
}

#[test]
fn what_a_guest_cannot_do_is_named() {
    let hook = serde_json::json!({ "createRuntime": [{ "path": "/bin/true" }] });
    let netns = serde_json::json!([{ "type": "network", "path": "/run/netns/a" }]);
    for (spec, expected) in [
        (with("/hooks", hook), "hook \"createRuntime\""),
        (
            with("/windows", serde_json::json!({})),
            "\"windows\" section",
        ),
        (
            with("/linux/intelRdt", serde_json::json!({})),
            "linux.intelRdt",
        ),
        (
            with("/linux/namespaces", netns),
            "network namespace /run/netns/a",
        ),
        (bind("/srv/data", &["rbind", "rshared"]), "\"rshared\""),
        (bind("/run/docker.sock", &["rbind"]), "is a socket"),
        (bind("/dev/sda", &["bind"]), "is a device"),
        (bind("/none", &["bind"]), "/none does not exist"),
        (bind("/locked", &["bind"]), "cannot look at /locked"),
        (with("/root", Value::Null), "root.path"),
    ] {
        let err = plan(spec).unwrap_err().to_string();
        assert!(err.contains(expected), "{err}");
    }
}

#[test]
fn empty_hooks_and_new_namespaces_are_fine() {
    let namespaces = serde_json::json!([{ "type": "network" }, { "type": "pid" }]);
    plan(with("/linux/namespaces", namespaces)).unwrap();
    plan(with("/hooks", serde_json::json!({ "poststop": [] }))).unwrap();
}

fn sized(spec: &Value) -> Result<(u8, u32), String> {
    plan_vm(spec, "lazaret", DEFAULTS, HOST)
        .map(|plan| (plan.vm.vcpus, plan.vm.memory_mib))
        .map_err(|err| err.to_string())
}

#[test]
fn the_microvm_is_sized_by_annotation_then_limit_then_default() {
    let memory = |mib: u64| with("/linux/resources/memory/limit", (mib * MIB).into());
    let cpus = |quota: u64| {
        let cpu = serde_json::json!({ "quota": quota, "period": 100_000 });
        with("/linux/resources/cpu", cpu)
    };
    let unlimited = with("/linux/resources/memory/limit", (-1).into());
    let annotated = |name, value: &str| with(name, value.into());
    for (spec, expected) in [
        (with("/process/cwd", "/".into()), (1, 512)),
        (memory(256), (1, 352)),
        (unlimited, (1, 512)),
        (cpus(150_000), (2, 512)),
        (cpus(9_000_000), (32, 512)),
        (annotated("/annotations/dev.lazaret.vcpus", "4"), (4, 512)),
        (
            annotated("/annotations/dev.lazaret.memory-mib", "64"),
            (1, 64),
        ),
    ] {
        assert_eq!(sized(&spec), Ok(expected));
    }
}

#[test]
fn sizes_out_of_bounds_are_named() {
    for (name, value, expected) in [
        ("dev.lazaret.memory-mib", "63", "needs 64 MiB"),
        ("dev.lazaret.memory-mib", "16385", "this host has 16384 MiB"),
        ("dev.lazaret.vcpus", "0", "0 vcpus"),
        ("dev.lazaret.vcpus", "33", "33 vcpus"),
    ] {
        let err = sized(&with(&format!("/annotations/{name}"), value.into())).unwrap_err();
        assert!(err.contains(expected), "{err}");
    }
}
