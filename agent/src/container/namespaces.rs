//! Namespaces of a container stage: new ones, ones joined by path, and what is set
//! in them before the container sees them.
#![expect(
    unsafe_code,
    reason = "unshare is unsafe to call with CLONE_FILES only"
)]

use std::os::fd::{AsFd, BorrowedFd};

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::system::{setdomainname, sethostname};
use rustix::thread::{
    ThreadNameSpaceType, UnshareFlags, move_into_link_name_space, move_into_thread_name_spaces,
    unshare_unsafe,
};

use crate::failure::{Failure, OrFail, Result};
use crate::loopback;

/// Enters all namespaces of the spec but the PID namespace, in which this process
/// was born. Mount comes last: paths to join are the guest's.
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
    if new.contains(UnshareFlags::NEWNET) {
        loopback::up().or_fail(|| "bring the loopback up")?;
    }
    Ok(())
}

fn flag(kind: LinuxNamespaceType) -> Option<UnshareFlags> {
    Some(match kind {
        LinuxNamespaceType::Mount => UnshareFlags::NEWNS,
        LinuxNamespaceType::Cgroup => UnshareFlags::NEWCGROUP,
        LinuxNamespaceType::Uts => UnshareFlags::NEWUTS,
        LinuxNamespaceType::Ipc => UnshareFlags::NEWIPC,
        LinuxNamespaceType::Network => UnshareFlags::NEWNET,
        // The spec check refuses user and time namespaces.
        LinuxNamespaceType::Pid | LinuxNamespaceType::User | LinuxNamespaceType::Time => {
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

/// Enters every namespace of a running container (its PID namespace was entered by birth).
pub(crate) fn enter_container(pidfd: BorrowedFd<'_>) -> Result<()> {
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::NETWORK;
    move_into_thread_name_spaces(pidfd, all).or_fail(|| "join the container's namespaces")
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
