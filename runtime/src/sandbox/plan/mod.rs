//! From a container's spec to a microVM and what is mounted into it: pure
//! functions, so that `config.json` in and plan out is all there is to review.
//!
//! The spec crosses to the agent as it is but for paths. What cannot be done in
//! a microVM is an error that names it.

mod disks;
mod mount_flags;
mod overlay;
mod shared_memory;

use std::io;
use std::path::{Path, PathBuf};

use lazaret_protocol::{GUEST_SHARED_DIR, SHARED_TAG, ports};
use lazaret_vmm::config::{
    ConfigError, FsConfig, MAX_VCPUS, MIN_MEMORY_MIB, VmConfig, VsockConfig,
};
use serde_json::{Value, json};
use thiserror::Error;

use super::cgroup::{CgroupLimits, count_cpus, remove_host_limits};
use super::config::{
    AnnotationError, Annotations, Defaults, HostFacts, OCI_NAMESPACE, OWN_NAMESPACE,
};
use super::id::ContainerId;
use super::mounts::{ENGINE_ROOTFS, PRIVATE_ROOTFS};
use crate::hooks::HookKind;
use crate::network;

pub use disks::{Disk, DiskSource, GuestDisk, place};
pub use mount_flags::flags_of;
pub use shared_memory::fresh_tmpfs;

const MIB: u64 = 1024 * 1024;

/// What guest kernel and agent take beside the container, where the VM is sized
/// from the container's own limit.
const GUEST_OVERHEAD_MIB: u64 = 96;

/// What the VMM may take beside guest memory. Measured as [`SANDBOX_OVERHEAD_BYTES`]
/// was: 1 MiB of its own. The rest is room for page cache of files that it reads and
/// writes for the guest, so that this is not lost at once.
const VMM_OVERHEAD_BYTES: u64 = 128 * MIB;

/// Files that the guest may remember before it is made to forget some. Measured on ext4,
/// each takes 1.6 KiB of the host's memory, and half as much again where an overlay is
/// above it: at most half of [`VMM_OVERHEAD_BYTES`].
const REMEMBERED_FILES: u32 = 24 * 1024;

/// Threads of a VMM beside its vCPUs, with room.
const VMM_THREADS_MAX: u32 = 64;

/// What the sandbox process may take. Measured, as private pages in `smaps` and by the
/// cgroup's `memory.stat`, with 24 execs, a tree of thousands of files being read over
/// virtio-fs and downloads of 64 MiB: 1.4 MiB of its own (0.7 MiB idle), and for both
/// processes 1.2 MiB of kernel memory that cannot be reclaimed. Beside that its log of
/// at most 2 MiB, which is memory, and 64 KiB for each stream whose reader is slow: this
/// leaves room for some 180 of them.
const SANDBOX_OVERHEAD_BYTES: u64 = 16 * MIB;

/// Threads of the sandbox process, and processes of hooks that it runs.
const SANDBOX_THREADS_MAX: u32 = 64;

/// What the kernel takes for a period where none is given.
const DEFAULT_PERIOD_USEC: u64 = 100_000;

/// The guest's own CID; no other microVM sees it.
const GUEST_CID: u32 = 3;

/// virtio-fs serves at most this many requests at once.
const FS_THREADS_MAX: u8 = 4;

#[derive(Debug, Error)]
pub enum PlanError {
    #[error("config.json: {0}")]
    Spec(&'static str),
    #[error("{0} cannot be honoured by a microVM")]
    Unsupported(String),
    #[error("mount at {destination}: {source_path} does not exist on the host")]
    MountSourceMissing {
        destination: String,
        source_path: PathBuf,
    },
    #[error(
        "mount at {destination}: {source_path} is a {kind}, and only files and directories \
         can be mounted into a microVM"
    )]
    MountSourceKind {
        destination: String,
        source_path: PathBuf,
        kind: &'static str,
    },
    #[error("mount at {destination}: cannot look at {source_path}")]
    MountSource {
        destination: String,
        source_path: PathBuf,
        source: io::Error,
    },
    #[error(
        "mount at {destination}: {source_path} is a {kind}, and a file system lies on a block \
         device or in an image file"
    )]
    NoDisk {
        destination: String,
        source_path: PathBuf,
        kind: &'static str,
    },
    #[error(
        "device {path} is character device {major}:{minor} of the host, which a microVM has no \
         way to use: its devices are its own"
    )]
    HostDevice {
        path: String,
        major: u64,
        minor: u64,
    },
    #[error("{asked} MiB of memory asked for, a microVM needs {MIN_MEMORY_MIB} MiB or more")]
    MemoryBelowMinimum { asked: u64 },
    #[error("{asked} MiB of memory asked for, this host has {host} MiB")]
    MemoryAboveHost { asked: u64, host: u32 },
    #[error(transparent)]
    Vm(#[from] ConfigError),
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
}

/// What a path of the host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    File,
    Directory,
    /// A device that every guest has itself, under this path.
    GuestDevice(&'static str),
    BlockDevice,
    /// Anything else, by its name.
    Other(&'static str),
}

impl PathKind {
    fn name(self) -> &'static str {
        match self {
            Self::File => "regular file",
            Self::Directory => "directory",
            Self::BlockDevice => "block device",
            Self::GuestDevice(path) => path,
            Self::Other(name) => name,
        }
    }
}

/// The microVM of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmPlan {
    pub vm: VmConfig,
    pub cgroup: CgroupLimits,
}

/// A container of a sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerPlan {
    /// As the agent gets it.
    pub spec: Value,
    pub mounts: Vec<HostMount>,
    /// What is put into block slots, and then named in the spec by [`place`].
    pub disks: Vec<Disk>,
    /// Root directory on the host that is bound to the container's place, where
    /// the engine has given no mounts for it.
    pub root: PathBuf,
    /// The container's place for it, below the shared directory.
    pub rootfs: PathBuf,
    pub terminal: bool,
    pub annotations: Annotations,
}

/// What the host mounts into the shared directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostMount {
    /// In the container, to name it by.
    pub destination: String,
    /// Below the shared directory.
    pub target: PathBuf,
    pub what: Mounted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mounted {
    /// A file or directory of the host.
    Bind {
        source: PathBuf,
        kind: PathKind,
        options: BindOptions,
    },
    /// Directories of the host, merged.
    Overlay {
        options: Vec<String>,
        read_only: bool,
    },
}

/// How it is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindOptions {
    pub recursive: bool,
    pub read_only: ReadOnly,
    /// Whether what the host mounts below the source later is seen.
    pub follows_host: bool,
}

/// Which mounts of a bound tree cannot be written to, whatever the guest tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOnly {
    No,
    /// The one that is bound, and not those below.
    Mount,
    Tree,
}

impl BindOptions {
    /// Of options of a mount in the spec; the last of several that exclude each other
    /// counts, as in the guest.
    pub(super) fn of(options: &[&str]) -> Self {
        let last = |names: &[&str]| options.iter().rfind(|option| names.contains(option));
        let read_only = if last(&["rro", "rrw"]) == Some(&"rro") {
            ReadOnly::Tree
        } else if last(&["ro", "rw"]) == Some(&"ro") {
            ReadOnly::Mount
        } else {
            ReadOnly::No
        };
        let propagation = ["private", "rprivate", "unbindable", "runbindable"];
        let all = [&propagation[..], &["slave", "rslave"]].concat();
        Self {
            recursive: !options.contains(&"bind"),
            read_only,
            // As in runc, also where nothing is said of it.
            follows_host: last(&all).is_none_or(|last| !propagation.contains(last)),
        }
    }
}

/// Sizes the microVM for the container that makes the sandbox.
pub fn plan_vm(
    spec: &Value,
    namespace: &str,
    defaults: Defaults,
    host: HostFacts,
) -> Result<VmPlan, PlanError> {
    let annotations = Annotations::of(spec, namespace)?;
    let resources = &spec["linux"]["resources"];
    let vcpus = annotations
        .vcpus
        .or_else(|| cpus_of(&resources["cpu"]))
        .unwrap_or(defaults.vcpus);
    let memory_mib = memory_mib(spec, &annotations, defaults, host)?;
    let mut host_ports = vec![ports::READY, ports::LOG];
    let (mut net_slots, mut block_slots) = (0, 1);
    if has_network(namespace) {
        host_ports.push(ports::DNS);
        net_slots = network::SLOTS;
        block_slots = super::disks::SLOTS;
    }
    let vm = VmConfig {
        vcpus,
        memory_mib,
        kernel_args: String::new(),
        vsock: VsockConfig {
            guest_cid: GUEST_CID,
            host_ports,
        },
        fs: FsConfig {
            tag: SHARED_TAG.to_owned(),
            threads: vcpus.clamp(1, FS_THREADS_MAX),
            dax_window_mib: 0,
            remembered_files: REMEMBERED_FILES,
        },
        net_slots,
        block_slots,
    };
    vm.validate()?;
    let cgroup = host_limits(&vm, resources, namespace == OCI_NAMESPACE);
    Ok(VmPlan { vm, cgroup })
}

/// Limits of the host's cgroup, for the VMM and, where it is `shared`, the sandbox
/// process.
fn host_limits(vm: &VmConfig, resources: &Value, shared: bool) -> CgroupLimits {
    let mut memory_max = u64::from(vm.memory_mib) * MIB * 65 / 64 + VMM_OVERHEAD_BYTES;
    let mut pids_max = VMM_THREADS_MAX + u32::from(vm.vcpus);
    if shared {
        memory_max += SANDBOX_OVERHEAD_BYTES;
        pids_max += SANDBOX_THREADS_MAX;
    }
    let mut limits = CgroupLimits::default();
    limits.set("memory.max", memory_max.to_string());
    limits.set("pids.max", pids_max.to_string());
    let given = CgroupLimits::of_resources(resources);
    limits.settings.extend(given.settings);
    limits.cpu_period = given.cpu_period;
    limits
}

/// Whether the containers of an engine's namespace have a network on the host.
pub fn has_network(namespace: &str) -> bool {
    namespace == OCI_NAMESPACE
}

fn memory_mib(
    spec: &Value,
    annotations: &Annotations,
    defaults: Defaults,
    host: HostFacts,
) -> Result<u32, PlanError> {
    let limit = spec["linux"]["resources"]["memory"]["limit"]
        .as_i64()
        .and_then(|limit| u64::try_from(limit).ok())
        .filter(|limit| *limit > 0);
    let asked = match (annotations.memory_mib, limit) {
        (Some(mib), _) => u64::from(mib),
        // A limit is a bound, which may be above all there is.
        (None, Some(limit)) => limit
            .div_ceil(MIB)
            .saturating_add(GUEST_OVERHEAD_MIB)
            .min(host.memory_mib.into()),
        (None, None) => u64::from(defaults.memory_mib),
    };
    if asked < u64::from(MIN_MEMORY_MIB) {
        return Err(PlanError::MemoryBelowMinimum { asked });
    }
    u32::try_from(asked)
        .ok()
        .filter(|mib| *mib <= host.memory_mib)
        .ok_or(PlanError::MemoryAboveHost {
            asked,
            host: host.memory_mib,
        })
}

/// As many processors as the time that is given fills, or as there are to run on.
fn cpus_of(cpu: &Value) -> Option<u8> {
    let quota = cpu["quota"].as_i64().unwrap_or_default();
    let period = cpu["period"].as_u64().filter(|period| *period > 0);
    let count = match u64::try_from(quota) {
        Ok(quota @ 1..) => quota.div_ceil(period.unwrap_or(DEFAULT_PERIOD_USEC)),
        _ => count_cpus(cpu["cpus"].as_str()?)?.into(),
    };
    let count = u8::try_from(count).unwrap_or(MAX_VCPUS);
    Some(count.clamp(1, MAX_VCPUS))
}

/// Rewrites a container's spec for the guest. `kind_of` looks at a host path, `flags_of`
/// at the mount that it is on; `fresh_tmpfs` gives the size of one that was made for the
/// container.
pub fn plan_container(
    id: &ContainerId,
    mut spec: Value,
    namespace: &str,
    bundle: &Path,
    kind_of: impl Fn(&Path) -> io::Result<PathKind>,
    flags_of: impl Fn(&Path) -> Vec<&'static str>,
    fresh_tmpfs: impl Fn(&Path) -> Option<u64>,
) -> Result<ContainerPlan, PlanError> {
    let annotations = Annotations::of(&spec, namespace)?;
    if has_network(namespace) {
        forget_network_path(&mut spec);
    }
    refuse_what_a_guest_cannot_do(&spec, namespace)?;
    let terminal = spec["process"]["terminal"].as_bool().unwrap_or(false);
    if spec["process"].is_object() && spec["process"]["user"].is_null() {
        spec["process"]["user"] = json!({ "uid": 0, "gid": 0 });
    }

    if let Some(resources) = spec.pointer_mut("/linux/resources") {
        remove_host_limits(resources);
    }

    let root = spec["root"]["path"]
        .as_str()
        .ok_or(PlanError::Spec("root.path is missing"))?;
    let root = bundle.join(root);
    let rootfs = Path::new(id.as_str()).join(rootfs_name(namespace));
    spec["root"]["path"] = guest_path(&rootfs).into();

    let disks = disks::plan(&mut spec, bundle, &kind_of)?;
    // Containers of a pod have `/dev/shm` in common.
    let is_alone = namespace == OCI_NAMESPACE;
    let mut mounts = Vec::new();
    if let Some(list) = spec.get_mut("mounts").and_then(Value::as_array_mut) {
        for mount in list {
            let target = format!("{id}/mounts/{}", mounts.len());
            match plan_mount(mount, bundle, target.into(), &kind_of)? {
                Source::Guest => {}
                Source::GuestDevice(path) => mount["source"] = path.into(),
                Source::Host(host_mount) => {
                    match &host_mount.what {
                        Mounted::Bind { source, .. } => {
                            mount_flags::inherit(mount, &flags_of(source));
                            if is_alone
                                && shared_memory::is_at(&host_mount.destination)
                                && let Some(bytes) = fresh_tmpfs(source)
                            {
                                shared_memory::make_tmpfs(mount, bytes);
                                continue;
                            }
                        }
                        Mounted::Overlay { .. } => overlay::make_bind(mount),
                    }
                    mount["source"] = guest_path(&host_mount.target).into();
                    mounts.push(host_mount);
                }
            }
        }
    }
    Ok(ContainerPlan {
        spec,
        mounts,
        disks,
        root,
        rootfs,
        terminal,
        annotations,
    })
}

/// Says by its name how long the guest may remember what it has seen in a root
/// file system: an engine keeps its hands on it (`docker cp`), the `lazaret`
/// command does not.
fn rootfs_name(namespace: &str) -> &'static str {
    if namespace == OWN_NAMESPACE {
        PRIVATE_ROOTFS
    } else {
        ENGINE_ROOTFS
    }
}

fn guest_path(below_shared: &Path) -> String {
    format!("{GUEST_SHARED_DIR}/{}", below_shared.display())
}

/// Where what is mounted comes from.
enum Source {
    Guest,
    GuestDevice(&'static str),
    Host(HostMount),
}

/// Bind mounts and overlays are of something of the host; other mounts are the guest's
/// own.
fn plan_mount(
    mount: &Value,
    bundle: &Path,
    target: PathBuf,
    kind_of: &impl Fn(&Path) -> io::Result<PathKind>,
) -> Result<Source, PlanError> {
    let options: Vec<&str> = mount["options"]
        .as_array()
        .map(|options| options.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let has = |name: &str| options.contains(&name);
    let is_bind = mount["type"] == "bind" || has("bind") || has("rbind");
    if !is_bind && !overlay::is_overlay(mount, &options) {
        return Ok(Source::Guest);
    }
    let destination = mount["destination"]
        .as_str()
        .ok_or(PlanError::Spec("a mount has no destination"))?
        .to_owned();
    if !is_bind {
        return Ok(Source::Host(HostMount {
            destination,
            target,
            what: overlay::of(&options),
        }));
    }
    for propagation in ["shared", "rshared"] {
        if has(propagation) {
            return Err(PlanError::Unsupported(format!(
                "mount propagation {propagation:?} of the mount at {destination}"
            )));
        }
    }
    let source = mount["source"]
        .as_str()
        .ok_or(PlanError::Spec("a bind mount has no source"))?;
    let source_path = bundle.join(source);
    match kind_of(&source_path) {
        Ok(kind @ (PathKind::BlockDevice | PathKind::Other(_))) => {
            Err(PlanError::MountSourceKind {
                destination,
                source_path,
                kind: kind.name(),
            })
        }
        Ok(PathKind::GuestDevice(path)) => Ok(Source::GuestDevice(path)),
        Ok(kind) => Ok(Source::Host(HostMount {
            destination,
            target,
            what: Mounted::Bind {
                source: source_path,
                kind,
                options: BindOptions::of(&options),
            },
        })),
        Err(source) => Err(PlanError::look(destination, source_path, source)),
    }
}

impl PlanError {
    /// A mount's source cannot be looked at.
    fn look(destination: String, source_path: PathBuf, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::NotFound {
            return Self::MountSourceMissing {
                destination,
                source_path,
            };
        }
        Self::MountSource {
            destination,
            source_path,
            source,
        }
    }
}

/// The network namespace of the spec is where the sandbox process lives; in the guest
/// there is one as well, which means nothing to a path of the host.
fn forget_network_path(spec: &mut Value) {
    let namespaces = spec.pointer_mut("/linux/namespaces");
    let namespaces = namespaces.and_then(Value::as_array_mut);
    for namespace in namespaces.into_iter().flatten() {
        if namespace["type"] == "network"
            && let Some(namespace) = namespace.as_object_mut()
        {
            namespace.remove("path");
        }
    }
}

/// Hooks that somebody runs: `lazaret-oci` those of the host's side, the sandbox
/// process and the agent the two others.
fn is_run(hook: &str, namespace: &str) -> bool {
    let hook = HookKind::ALL.into_iter().find(|kind| kind.name() == hook);
    match hook {
        Some(HookKind::CreateContainer | HookKind::StartContainer) => true,
        Some(_) => namespace == OCI_NAMESPACE,
        None => false,
    }
}

fn refuse_what_a_guest_cannot_do(spec: &Value, namespace: &str) -> Result<(), PlanError> {
    let unsupported = |what: String| Err(PlanError::Unsupported(what));
    for platform in ["solaris", "windows", "vm", "zos"] {
        if spec.get(platform).is_some_and(|value| !value.is_null()) {
            return unsupported(format!("the {platform:?} section of config.json"));
        }
    }
    if let Some(hooks) = spec["hooks"].as_object() {
        for (name, list) in hooks {
            if list.as_array().is_some_and(|list| !list.is_empty()) && !is_run(name, namespace) {
                return unsupported(format!("hook {name:?}"));
            }
        }
    }
    let linux = &spec["linux"];
    if linux.get("intelRdt").is_some_and(|rdt| !rdt.is_null()) {
        return unsupported("linux.intelRdt".to_owned());
    }
    for joined in linux["namespaces"].as_array().into_iter().flatten() {
        if let Some(path) = joined["path"].as_str().filter(|path| !path.is_empty()) {
            let kind = joined["type"].as_str().unwrap_or("unnamed");
            return unsupported(format!("joining the host's {kind} namespace {path}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
