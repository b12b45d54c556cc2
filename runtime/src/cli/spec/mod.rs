//! From an image's configuration and the command line to an OCI specification
//! with Docker's defaults: a pure function, so that its result can be read.
//! <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md>

mod environment;
mod limits;
mod user;

pub use environment::{environment, read_env_file, read_env_flag};
pub use limits::{Cpus, Memory, check_limits};
pub use user::{ProcessUser, resolve as resolve_user};

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::storage::volume::Volume;

/// Docker's default capabilities.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Files that Docker makes for each container and binds into it.
pub const NETWORK_FILES: [&str; 3] = ["hostname", "hosts", "resolv.conf"];

/// The period that a CPU limit is counted in, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// Everything that a container's specification is made from.
#[derive(Debug, Clone)]
pub struct SpecInput {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub user: ProcessUser,
    pub terminal: bool,
    pub hostname: String,
    pub read_only: bool,
    pub volumes: Vec<Volume>,
    /// The host's directory with [`NETWORK_FILES`].
    pub directory: PathBuf,
    pub nano_cpus: u64,
    pub memory: u64,
    pub cgroup: String,
    pub log: PathBuf,
    pub auto_shutdown: bool,
}

/// The specification of a container.
pub fn spec(input: &SpecInput) -> Value {
    let mut annotations = json!({ "dev.lazaret.log-path": input.log });
    if input.auto_shutdown {
        annotations["dev.lazaret.auto-shutdown"] = json!("true");
    }
    json!({
        "ociVersion": oci_spec::runtime::VERSION,
        "process": process(&input.args, &input.env, &input.cwd, &input.user, input.terminal),
        "root": { "path": "rootfs", "readonly": input.read_only },
        "hostname": input.hostname,
        "mounts": mounts(input),
        "annotations": annotations,
        "linux": {
            "cgroupsPath": input.cgroup,
            "resources": resources(input),
            // The microVM's own network, with its loopback, is the container's.
            "namespaces": [
                { "type": "mount" },
                { "type": "uts" },
                { "type": "pid" },
                { "type": "ipc" },
                { "type": "cgroup" },
            ],
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
        },
    })
}

/// The `process` of a specification, or of an exec.
pub fn process(
    args: &[String],
    env: &[String],
    cwd: &str,
    user: &ProcessUser,
    terminal: bool,
) -> Value {
    // Only root starts with capabilities in effect; others may gain the
    // bounding ones through file capabilities.
    let effective: &[&str] = if user.uid == 0 { &CAPABILITIES } else { &[] };
    json!({
        "terminal": terminal,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids },
        "args": args,
        "env": env,
        "cwd": cwd,
        "capabilities": {
            "bounding": CAPABILITIES,
            "effective": effective,
            "permitted": effective,
        },
        "oomScoreAdj": 0,
        "noNewPrivileges": false,
    })
}

fn mounts(input: &SpecInput) -> Value {
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["ro", "nosuid", "noexec", "nodev"],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"],
        ),
    ];
    for name in NETWORK_FILES {
        let destination = format!("/etc/{name}");
        // A volume on the same place is what the user wants to see there.
        if !input
            .volumes
            .iter()
            .any(|volume| volume.destination.as_os_str() == &*destination)
        {
            let source = input.directory.join(name);
            let source = source.to_string_lossy();
            mounts.push(mount(&destination, "bind", &source, &["rbind", "rprivate"]));
        }
    }
    let mut volumes: Vec<&Volume> = input.volumes.iter().collect();
    // A mount below another must come after it.
    volumes.sort_by_key(|volume| volume.destination.components().count());
    mounts.extend(volumes.into_iter().map(|volume| {
        let mode = if volume.read_only { "ro" } else { "rw" };
        let (source, destination) = (
            volume.source.to_string_lossy(),
            volume.destination.to_string_lossy(),
        );
        mount(&destination, "bind", &source, &["rbind", "rprivate", mode])
    }));
    Value::Array(mounts)
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

fn resources(input: &SpecInput) -> Value {
    let mut resources = json!({});
    if input.nano_cpus > 0 {
        let quota = input.nano_cpus.saturating_mul(CPU_PERIOD) / 1_000_000_000;
        resources["cpu"] = json!({ "quota": quota, "period": CPU_PERIOD });
    }
    if input.memory > 0 {
        resources["memory"] = json!({ "limit": input.memory });
    }
    resources
}

#[cfg(test)]
mod tests;
