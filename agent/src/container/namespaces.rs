//! Namespaces of a container stage: new ones, ones joined by path, and what is set
//! in them before the container sees them.
#![expect(
    unsafe_code,
    reason = "unshare is unsafe to call with CLONE_FILES only"
)]

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::system::{setdomainname, sethostname};
use rustix::thread::{
    ThreadNameSpaceType, UnshareFlags, move_into_link_name_space, move_into_thread_name_spaces,
    unshare_unsafe,
};

use super::credentials;
use super::input::Inherited;
use crate::failure::{Failure, OrFail, Result};

/// Enters the namespaces of the spec. The PID namespace was entered by birth, and the
/// network is the guest's own, which nothing but this sandbox has: `linux.namespaces`
/// names the place on the host that it is tied to. Mount comes last: paths to join
/// are the guest's.
pub(crate) fn enter(linux: &Linux) -> Result<()> {
    let wanted: Vec<_> = linux
        .namespaces()
        .iter()
        .flatten()
        .filter_map(|namespace| Some((flag(namespace.typ())?, namespace)))
        .collect();
    for (_, namespace) in &wanted {
        join(namespace)?;
    }
    let new = wanted
        .iter()
        .filter(|(_, namespace)| namespace.path().is_none())
        .fold(UnshareFlags::empty(), |all, (flag, _)| all | *flag);
    // SAFETY: none of the flags is CLONE_FILES, the one that descriptors depend on.
    unsafe { unshare_unsafe(new) }.or_fail(|| "make new namespaces")?;
    if new.contains(UnshareFlags::NEWTIME) {
        enter_new_time(linux)?;
    }
    Ok(())
}

/// A new time namespace waits for the children of who made it; offsets are set before
/// the first process is in it (`time_namespaces(7)`).
fn enter_new_time(linux: &Linux) -> Result<()> {
    let doing = || "set linux.timeOffsets";
    let mut lines = Vec::new();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        let (secs, nanos) = (offset.secs(), offset.nanosecs());
        let (secs, nanos) = (secs.unwrap_or_default(), nanos.unwrap_or_default());
        writeln!(lines, "{clock} {secs} {nanos}").or_fail(doing)?;
    }
    if !lines.is_empty() {
        fs::write("/proc/self/timens_offsets", lines).or_fail(doing)?;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let path = "/proc/self/ns/time_for_children";
    let namespace = openat(CWD, path, flags, Mode::empty()).or_fail(doing)?;
    move_into_link_name_space(namespace.as_fd(), None).or_fail(|| "enter the time namespace")
}

fn flag(kind: LinuxNamespaceType) -> Option<UnshareFlags> {
    Some(match kind {
        LinuxNamespaceType::Mount => UnshareFlags::NEWNS,
        LinuxNamespaceType::Cgroup => UnshareFlags::NEWCGROUP,
        LinuxNamespaceType::Uts => UnshareFlags::NEWUTS,
        LinuxNamespaceType::Ipc => UnshareFlags::NEWIPC,
        LinuxNamespaceType::Time => UnshareFlags::NEWTIME,
        LinuxNamespaceType::Pid | LinuxNamespaceType::User | LinuxNamespaceType::Network => {
            return None;
        }
    })
}

fn join(namespace: &LinuxNamespace) -> Result<()> {
    let Some(path) = namespace.path() else {
        return Ok(());
    };
    let doing = || format!("join the namespace {}", path.display());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::empty()).or_fail(doing)?;
    move_into_link_name_space(file.as_fd(), None).or_fail(doing)
}

/// Enters every namespace of a running container that a process is not born into.
pub(crate) fn enter_container(pidfd: BorrowedFd<'_>, inherited: &Inherited) -> Result<()> {
    let mut all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
    if inherited.has_time_namespace {
        all |= ThreadNameSpaceType::TIME;
    }
    if inherited.has_user_namespace {
        all |= ThreadNameSpaceType::USER;
    }
    move_into_thread_name_spaces(pidfd, all).or_fail(|| "join the container's namespaces")?;
    if inherited.has_user_namespace {
        credentials::become_root()?;
    }
    Ok(())
}

/// Host and domain name, allowed only where they are the container's own.
pub(crate) fn set_names(spec: &Spec, linux: &Linux) -> Result<()> {
    let has_uts = linux
        .namespaces()
        .iter()
        .flatten()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Uts);
    let named = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let (hostname, domainname) = (named(spec.hostname()), named(spec.domainname()));
    if (hostname.is_some() || domainname.is_some()) && !has_uts {
        return Err(Failure::invalid(
            "hostname and domainname need a uts namespace in linux.namespaces",
        ));
    }
    if let Some(name) = hostname {
        sethostname(name.as_bytes()).or_fail(|| format!("set hostname {name}"))?;
    }
    if let Some(name) = domainname {
        setdomainname(name.as_bytes()).or_fail(|| format!("set domainname {name}"))?;
    }
    Ok(())
}
