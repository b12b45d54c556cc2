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

/// What is on removable media is neither a program nor a device.
fn flags_of(path: &Path) -> Vec<&'static str> {
    if path.starts_with("/media") {
        vec!["nodev", "noexec"]
    } else {
        Vec::new()
    }
}

/// A host with these paths and no others.
fn kind_of(path: &Path) -> io::Result<PathKind> {
    match path.to_str().unwrap_or_default() {
        "/srv/data" | "/bundle/relative" | "/media/stick" | "/src" | "/run/shm" => {
            Ok(PathKind::Directory)
        }
        "/etc/hosts" | "/srv/disk.img" | "/srv/tools.erofs" => Ok(PathKind::File),
        "/run/docker.sock" => Ok(PathKind::Other("socket")),
        "/dev/sda" => Ok(PathKind::BlockDevice),
        "/locked" => Err(io::ErrorKind::PermissionDenied.into()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// An engine's `/dev/shm` of 48 MiB.
fn fresh_tmpfs(path: &Path) -> Option<u64> {
    (path == Path::new("/run/shm")).then_some(48 * MIB)
}

/// What the guest calls the disks that it is given, in turn.
const GUEST_DISKS: [&str; 4] = ["vda", "vdb", "vdc", "vdd"];

fn in_guest(name: &str) -> GuestDisk {
    let letter = u64::from(name.as_bytes()[2] - b'a');
    GuestDisk {
        path: format!("/dev/{name}"),
        major: 254,
        minor: 16 * letter,
    }
}

fn plan(spec: Value) -> Result<ContainerPlan, PlanError> {
    plan_in("lazaret", spec)
}

fn plan_in(namespace: &str, spec: Value) -> Result<ContainerPlan, PlanError> {
    let id = ContainerId::new("c1").unwrap();
    plan_container(
        &id,
        spec,
        namespace,
        Path::new("/bundle"),
        kind_of,
        flags_of,
        fresh_tmpfs,
    )
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
    for Setting { file, value, .. } in &cgroup.settings {
        writeln!(planned, "{file} = {value}").unwrap();
    }
    writeln!(planned, "# root\n{}", container.root.display()).unwrap();
    writeln!(planned, "# host mounts\n{:#?}", container.mounts).unwrap();
    let mut guest_spec = container.spec;
    if !container.disks.is_empty() {
        writeln!(planned, "# disks\n{:#?}", container.disks).unwrap();
        place(
            &mut guest_spec,
            &container.disks,
            &GUEST_DISKS.map(in_guest),
        );
    }
    let spec = serde_json::to_string_pretty(&guest_spec).unwrap();
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

#[test]
fn disks_for_mounts_and_devices() {
    golden("disks");
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
        (bind("/dev/sda", &["bind"]), "is a block device"),
        (bind("/none", &["bind"]), "/none does not exist"),
        (bind("/locked", &["bind"]), "cannot look at /locked"),
        (with("/root", Value::Null), "root.path"),
    ] {
        let err = plan(spec).unwrap_err().to_string();
        assert!(err.contains(expected), "{err}");
    }
}

#[test]
fn what_is_no_disk_is_named() {
    let mount = |kind: &str, source: &str| {
        let mount = serde_json::json!({
            "type": kind, "source": source, "destination": "/mnt",
        });
        with("/mounts", Value::Array(vec![mount]))
    };
    let kvm = serde_json::json!([{ "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 }]);
    for (spec, expected) in [
        (mount("ext4", "/srv/data"), "/srv/data is a directory"),
        (mount("xfs", "/run/docker.sock"), "is a socket"),
        (mount("erofs", "/none"), "/none does not exist"),
        (
            with("/linux/devices", kvm),
            "/dev/kvm is character device 10:232",
        ),
    ] {
        let err = plan(spec).unwrap_err().to_string();
        assert!(err.contains(expected), "{err}");
    }
}

#[test]
fn same_disk_twice_is_one_disk() {
    let device =
        |path: &str| serde_json::json!({ "path": path, "type": "b", "major": 8, "minor": 0 });
    let devices = serde_json::json!([device("/dev/sda"), device("/dev/disk")]);
    let mut planned = plan(with("/linux/devices", devices)).unwrap();
    assert_eq!(planned.disks.len(), 1);
    assert!(!planned.disks[0].read_only);
    place(&mut planned.spec, &planned.disks, &[in_guest("vdb")]);
    for at in [0, 1] {
        let device = &planned.spec["linux"]["devices"][at];
        assert_eq!(
            (&device["major"], &device["minor"]),
            (&254.into(), &16.into())
        );
    }
}

#[test]
fn container_with_all_devices_has_those_of_the_guest() {
    let device = |kind: &str, major, minor| serde_json::json!({ "path": "/dev/x", "type": kind, "major": major, "minor": minor });
    let listed = [device("c", 1, 3), device("b", 8, 0), device("c", 10, 232)];
    let mut spec = with("/linux/devices", listed.into());
    spec["linux"]["resources"]["devices"] = serde_json::json!([{ "allow": true, "access": "rwm" }]);
    let planned = plan(spec).unwrap();
    assert!(planned.disks.is_empty());
    let devices = planned.spec["linux"]["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 1, "{devices:?}");
}

#[test]
fn empty_hooks_and_new_namespaces_are_fine() {
    let namespaces = serde_json::json!([{ "type": "network" }, { "type": "pid" }]);
    plan(with("/linux/namespaces", namespaces)).unwrap();
    plan(with("/hooks", serde_json::json!({ "poststop": [] }))).unwrap();
}

#[test]
fn the_last_of_options_that_exclude_each_other_counts() {
    let of = |options: &str| BindOptions::of(&options.split(' ').collect::<Vec<_>>());
    for (options, read_only) in [
        ("rbind", ReadOnly::No),
        ("rbind ro", ReadOnly::Mount),
        ("rbind ro rw", ReadOnly::No),
        ("rbind rro", ReadOnly::Tree),
        ("rbind rw rro", ReadOnly::Tree),
        ("rbind ro rro rrw", ReadOnly::Mount),
    ] {
        assert_eq!(of(options).read_only, read_only, "{options}");
    }
    for (options, follows_host) in [
        ("rbind", true),
        ("rbind rprivate", false),
        ("rbind rslave", true),
        ("rbind slave private", false),
        ("rbind private rslave", true),
        ("rbind unbindable", false),
    ] {
        assert_eq!(of(options).follows_host, follows_host, "{options}");
    }
    assert!(of("rbind ro").recursive && !of("bind ro").recursive);
}

#[test]
fn volumes_have_the_flags_of_their_source() {
    for (source, own, all) in [
        (
            "/media/stick",
            &["rbind", "exec"][..],
            &["nodev", "noexec", "rbind", "exec"][..],
        ),
        ("/src", &["rbind"], &["rbind"]),
    ] {
        let planned = plan(bind(source, own)).unwrap();
        assert_eq!(planned.spec["mounts"][0]["options"], serde_json::json!(all));
    }
}

fn overlay(options: &[&str]) -> Value {
    let mount = serde_json::json!({
        "type": "overlay", "source": "/run/merge", "destination": "/mnt", "options": options,
    });
    with("/mounts", Value::Array(vec![mount]))
}

#[test]
fn overlays_are_the_hosts_and_bound_by_the_guest() {
    let writable = [
        "lowerdir=/srv/a\\:b",
        "upperdir=/run/upper",
        "workdir=/run/work",
    ];
    let read_only = ["lowerdir=/srv/data:/run/lower"];
    let label = ["context=\"system_u:object_r:container_file_t:s0:c1", "c2\""];
    for (of_host, of_guest, is_read_only) in [
        (&writable[..], &["private"][..], false),
        (&read_only, &["private", "ro", "nosuid", "nodev"], true),
        (&read_only, &["rw", "rro", "ridmap"], true),
        (&[&writable[..], &label, &["sync"]].concat(), &[], false),
    ] {
        let planned = plan(overlay(&[of_host, of_guest].concat())).unwrap();
        let expected = HostMount {
            destination: "/mnt".to_owned(),
            target: "c1/mounts/0".into(),
            what: Mounted::Overlay {
                options: of_host.iter().map(ToString::to_string).collect(),
                read_only: is_read_only,
            },
        };
        assert_eq!(planned.mounts, [expected]);
        let mount = &planned.spec["mounts"][0];
        assert_eq!(mount["type"], "bind");
        assert_eq!(mount["source"], "/run/lazaret/shared/c1/mounts/0");
        assert_eq!(mount["options"], serde_json::json!(of_guest));
    }
    // Of what the guest has mounted before.
    let remount = overlay(&["remount", "ro"]);
    let planned = plan(remount.clone()).unwrap();
    assert_eq!(planned.mounts, []);
    assert_eq!(planned.spec["mounts"], remount["mounts"]);
}

#[test]
fn shared_memory_of_an_engine_is_the_guests_own() {
    let shm = |source: &str, destination: &str| {
        let mount = serde_json::json!({
            "type": "bind", "source": source, "destination": destination,
            "options": ["bind", "rprivate", "nosuid", "noexec", "nodev"],
        });
        with("/mounts", Value::Array(vec![mount]))
    };
    let planned = plan_in("oci", shm("/run/shm", "/dev/shm/")).unwrap();
    let expected = serde_json::json!([{
        "type": "tmpfs", "source": "shm", "destination": "/dev/shm/",
        "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=50331648"],
    }]);
    assert_eq!(planned.spec["mounts"], expected);
    assert_eq!(planned.mounts, []);
    // Whatever else is put there, that tmpfs elsewhere, and what a pod's containers share.
    for (namespace, spec) in [
        ("oci", shm("/srv/data", "/dev/shm")),
        ("oci", shm("/run/shm", "/mnt")),
        ("k8s.io", shm("/run/shm", "/dev/shm")),
    ] {
        let planned = plan_in(namespace, spec.clone()).unwrap();
        assert_eq!(planned.mounts.len(), 1, "{namespace} {spec}");
        let mount = &planned.spec["mounts"][0];
        assert_eq!(mount["type"], "bind");
        assert_eq!(mount["source"], "/run/lazaret/shared/c1/mounts/0");
        assert_eq!(mount["options"], spec["mounts"][0]["options"]);
    }
}

#[test]
fn a_process_without_a_user_is_roots() {
    let planned = plan(with("/process/cwd", "/".into())).unwrap();
    let root = serde_json::json!({ "uid": 0, "gid": 0 });
    assert_eq!(planned.spec["process"]["user"], root);
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
        // As much as there is.
        (memory(64 * 1024), (1, 16 * 1024)),
        (memory(i64::MAX as u64 / MIB), (1, 16 * 1024)),
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
