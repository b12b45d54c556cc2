//! What a process of a container may be and do: resource limits, identity and the
//! five capability sets, applied in the order in which each still has the right to
//! the next (capabilities(7), "Effect of user ID changes on capabilities").

use oci_spec::runtime::{
    Capabilities, LinuxCapabilities, PosixRlimit, PosixRlimitType, Process, User,
};
use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit, umask};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::failure::{Failure, OrFail, Result};

/// Capability numbers fit the 64 bits of the kernel's sets.
const CAPABILITY_LIMIT: u32 = 64;

/// The capability sets of a process; a set that the spec leaves out is empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sets {
    bounding: CapabilitySet,
    effective: CapabilitySet,
    inheritable: CapabilitySet,
    permitted: CapabilitySet,
    ambient: CapabilitySet,
}

impl Sets {
    pub(crate) fn of(process: &Process) -> Self {
        let list = process.capabilities().as_ref();
        let set = |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
            list.and_then(|list| of(list).as_ref())
                .map_or(CapabilitySet::empty(), to_set)
        };
        Self {
            bounding: set(LinuxCapabilities::bounding),
            effective: set(LinuxCapabilities::effective),
            inheritable: set(LinuxCapabilities::inheritable),
            permitted: set(LinuxCapabilities::permitted),
            ambient: set(LinuxCapabilities::ambient),
        }
    }

    fn apply(&self, kept: CapabilitySet) -> Result<()> {
        let sets = CapabilitySets {
            effective: self.effective | kept,
            permitted: self.permitted | kept,
            inheritable: self.inheritable,
        };
        set_capabilities(None, sets).or_fail(|| "set capabilities")
    }
}

/// Descriptors that a process may open where the spec does not say: what most
/// distributions give to a login, and not the agent's own limit.
const FILES_SOFT: u64 = 1024;
const FILES_HARD: u64 = 524_288;

/// Where the spec does not set it.
pub(crate) fn set_default_rlimits(limits: &[PosixRlimit]) -> Result<()> {
    let given = |limit: &PosixRlimit| limit.typ() == PosixRlimitType::RlimitNofile;
    if limits.iter().any(given) {
        return Ok(());
    }
    let own = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let files = Rlimit {
        current: Some(FILES_SOFT.min(own)),
        maximum: Some(FILES_HARD.min(own)),
    };
    setrlimit(Resource::Nofile, files).or_fail(|| "set the default rlimits")
}

/// Lets a process raise its limits to those of the spec, by the agent, as a container
/// with a user namespace may not raise them itself.
pub(crate) fn allow_rlimits(pid: Pid, limits: &[PosixRlimit]) -> Result<()> {
    for limit in limits {
        let resource = resource(limit.typ());
        let own = getrlimit(resource);
        if own.maximum.is_some_and(|maximum| maximum < limit.hard()) {
            let new = Rlimit {
                current: own.current,
                maximum: bound(limit.hard()),
            };
            prlimit(Some(pid), resource, new)
                .or_fail(|| format!("raise rlimit {}", limit.typ()))?;
        }
    }
    Ok(())
}

fn bound(value: u64) -> Option<u64> {
    (value != u64::MAX).then_some(value)
}

pub(crate) fn set_rlimits(limits: &[PosixRlimit]) -> Result<()> {
    for limit in limits {
        let new = Rlimit {
            current: bound(limit.soft()),
            maximum: bound(limit.hard()),
        };
        setrlimit(resource(limit.typ()), new).or_fail(|| format!("set rlimit {}", limit.typ()))?;
    }
    Ok(())
}

/// Gives up the agent's identity. Capabilities are kept over the change of user and
/// set at its end, when nothing needs the agent's any more; `kept` is given up by
/// [`drop_kept`] alone.
pub(crate) fn become_user(process: &Process, kept: CapabilitySet) -> Result<()> {
    let sets = Sets::of(process);
    drop_bounding(sets.bounding)?;
    set_keep_capabilities(true).or_fail(|| "keep capabilities over the change of user")?;
    change_ids(process.user())?;
    set_keep_capabilities(false).or_fail(|| "stop keeping capabilities")?;
    sets.apply(kept)?;
    // The kernel grants no others. What cannot be granted is no error, says the specification, and
    // runc's own `spec` proposes such a set.
    set_ambient(sets.ambient & sets.inheritable & sets.permitted)?;
    if let Some(mask) = process.user().umask() {
        umask(Mode::from_raw_mode(mask & 0o777));
    } else {
        umask(Mode::from_raw_mode(0o022));
    }
    Ok(())
}

/// Root of the user namespace that this process has just entered.
pub(crate) fn become_root() -> Result<()> {
    let doing = || "become root of the user namespace";
    set_thread_groups(&[]).or_fail(doing)?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).or_fail(doing)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).or_fail(doing)
}

/// Brings the capabilities to exactly those of the spec.
pub(crate) fn drop_kept(process: &Process) -> Result<()> {
    Sets::of(process).apply(CapabilitySet::empty())
}

fn drop_bounding(keep: CapabilitySet) -> Result<()> {
    for number in 0..CAPABILITY_LIMIT {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // The first number that this kernel does not know.
            Err(Errno::INVAL) => break,
            Err(error) => {
                return Err(error).or_fail(|| format!("drop capability {number}"));
            }
        }
    }
    Ok(())
}

fn change_ids(user: &User) -> Result<()> {
    let groups: Vec<Gid> = user
        .additional_gids()
        .iter()
        .flatten()
        .map(|&gid| gid_of(gid))
        .collect::<Result<_>>()?;
    set_thread_groups(&groups).or_fail(|| "set additional groups")?;
    let gid = gid_of(user.gid())?;
    set_thread_res_gid(gid, gid, gid).or_fail(|| format!("become group {}", user.gid()))?;
    if user.uid() == u32::MAX {
        return Err(Failure::invalid("user id 4294967295 is no user"));
    }
    let uid = Uid::from_raw(user.uid());
    set_thread_res_uid(uid, uid, uid).or_fail(|| format!("become user {}", user.uid()))
}

/// The all-ones id means "unchanged" to the kernel, which must not be asked for.
fn gid_of(gid: u32) -> Result<Gid> {
    if gid == u32::MAX {
        return Err(Failure::invalid("group id 4294967295 is no group"));
    }
    Ok(Gid::from_raw(gid))
}

fn set_ambient(wanted: CapabilitySet) -> Result<()> {
    clear_ambient_capability_set().or_fail(|| "clear ambient capabilities")?;
    for capability in wanted.iter() {
        configure_capability_in_ambient_set(capability, true)
            .or_fail(|| format!("raise ambient capability {capability:?}"))?;
    }
    Ok(())
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

fn to_set(list: &Capabilities) -> CapabilitySet {
    list.iter()
        .map(|&capability| to_flag(capability))
        .fold(CapabilitySet::empty(), |all, one| all | one)
}

fn to_flag(capability: oci_spec::runtime::Capability) -> CapabilitySet {
    use oci_spec::runtime::Capability as C;
    match capability {
        C::AuditControl => CapabilitySet::AUDIT_CONTROL,
        C::AuditRead => CapabilitySet::AUDIT_READ,
        C::AuditWrite => CapabilitySet::AUDIT_WRITE,
        C::BlockSuspend => CapabilitySet::BLOCK_SUSPEND,
        C::Bpf => CapabilitySet::BPF,
        C::CheckpointRestore => CapabilitySet::CHECKPOINT_RESTORE,
        C::Chown => CapabilitySet::CHOWN,
        C::DacOverride => CapabilitySet::DAC_OVERRIDE,
        C::DacReadSearch => CapabilitySet::DAC_READ_SEARCH,
        C::Fowner => CapabilitySet::FOWNER,
        C::Fsetid => CapabilitySet::FSETID,
        C::IpcLock => CapabilitySet::IPC_LOCK,
        C::IpcOwner => CapabilitySet::IPC_OWNER,
        C::Kill => CapabilitySet::KILL,
        C::Lease => CapabilitySet::LEASE,
        C::LinuxImmutable => CapabilitySet::LINUX_IMMUTABLE,
        C::MacAdmin => CapabilitySet::MAC_ADMIN,
        C::MacOverride => CapabilitySet::MAC_OVERRIDE,
        C::Mknod => CapabilitySet::MKNOD,
        C::NetAdmin => CapabilitySet::NET_ADMIN,
        C::NetBindService => CapabilitySet::NET_BIND_SERVICE,
        C::NetBroadcast => CapabilitySet::NET_BROADCAST,
        C::NetRaw => CapabilitySet::NET_RAW,
        C::Perfmon => CapabilitySet::PERFMON,
        C::Setgid => CapabilitySet::SETGID,
        C::Setfcap => CapabilitySet::SETFCAP,
        C::Setpcap => CapabilitySet::SETPCAP,
        C::Setuid => CapabilitySet::SETUID,
        C::SysAdmin => CapabilitySet::SYS_ADMIN,
        C::SysBoot => CapabilitySet::SYS_BOOT,
        C::SysChroot => CapabilitySet::SYS_CHROOT,
        C::SysModule => CapabilitySet::SYS_MODULE,
        C::SysNice => CapabilitySet::SYS_NICE,
        C::SysPacct => CapabilitySet::SYS_PACCT,
        C::SysPtrace => CapabilitySet::SYS_PTRACE,
        C::SysRawio => CapabilitySet::SYS_RAWIO,
        C::SysResource => CapabilitySet::SYS_RESOURCE,
        C::SysTime => CapabilitySet::SYS_TIME,
        C::SysTtyConfig => CapabilitySet::SYS_TTY_CONFIG,
        C::Syslog => CapabilitySet::SYSLOG,
        C::WakeAlarm => CapabilitySet::WAKE_ALARM,
    }
}
