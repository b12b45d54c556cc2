//! Kernel settings of a container (`linux.sysctl`): those that belong to one of its
//! namespaces, as runc has it, and no others.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use oci_spec::runtime::{Linux, LinuxNamespaceType};
use rustix::fs::{OFlags, fstatfs};

use super::path::Root;
use super::spec::has_namespace;
use crate::failure::{Failure, OrFail, Result};

/// `PROC_SUPER_MAGIC` of linux/magic.h.
pub(crate) const PROC_MAGIC: i64 = 0x9fa0;

const OF_IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Refuses what is not the container's own.
pub(crate) fn check(linux: &Linux) -> Result<()> {
    let has = |kind| has_namespace(linux, kind);
    for key in linux.sysctl().iter().flatten().map(|(key, _)| dotted(key)) {
        let (own, of) = if OF_IPC.contains(&key.as_str()) || key.starts_with("fs.mqueue.") {
            (has(LinuxNamespaceType::Ipc), "ipc")
        } else if is_network(&key) {
            (has(LinuxNamespaceType::Network), "network")
        } else if key == "kernel.domainname" {
            (has(LinuxNamespaceType::Uts), "uts")
        } else if key == "kernel.hostname" {
            return Err(Failure::invalid(
                "sysctl kernel.hostname: the spec's hostname is there for it",
            ));
        } else {
            return Err(Failure::invalid(format!(
                "sysctl {key} is not in a separate kernel namespace"
            )));
        };
        if !own {
            return Err(Failure::invalid(format!(
                "sysctl {key} is not allowed without a {of} namespace of the container's own"
            )));
        }
    }
    Ok(())
}

/// The network's settings, by the agent itself: the container is in the guest's
/// network, which a container with a user namespace may not change.
pub(crate) fn set_network(linux: &Linux) -> Result<()> {
    for (key, value) in of(linux, true) {
        let doing = || format!("set sysctl {key}");
        let mut file = OpenOptions::new()
            .write(true)
            .open(path_of(key))
            .or_fail(doing)?;
        file.write_all(value.as_bytes()).or_fail(doing)?;
    }
    Ok(())
}

/// The others, from inside the container and through its own /proc.
pub(crate) fn set(root: &Root, linux: &Linux) -> Result<()> {
    for (key, value) in of(linux, false) {
        let doing = || format!("set sysctl {key}");
        let path = path_of(key);
        let file = root.open(Path::new(&path), OFlags::WRONLY).or_fail(doing)?;
        // An image that puts files of its own at /proc/sys must not be taken for the
        // kernel.
        if fstatfs(&file).or_fail(doing)?.f_type != PROC_MAGIC {
            return Err(Failure::invalid(format!(
                "set sysctl {key}: /proc of the container is not the proc file system"
            )));
        }
        rustix::io::write(&file, value.as_bytes()).or_fail(doing)?;
    }
    Ok(())
}

fn of(linux: &Linux, network: bool) -> impl Iterator<Item = (&String, &String)> {
    let all = linux.sysctl().iter().flatten();
    all.filter(move |(key, _)| is_network(&dotted(key)) == network)
}

fn is_network(dotted: &str) -> bool {
    dotted.starts_with("net.")
}

/// The key with dots between its names: `net/ipv4/conf/eth0.1/forwarding` is another
/// way to write `net.ipv4.conf.eth0/1.forwarding` (sysctl.d(5)).
fn dotted(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(first) if key.as_bytes().get(first) == Some(&b'/') => swapped(key),
        _ => key.to_owned(),
    }
}

fn swapped(key: &str) -> String {
    let swap = |character| match character {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    key.chars().map(swap).collect()
}

fn path_of(key: &str) -> String {
    format!("/proc/sys/{}", swapped(&dotted(key)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_become_paths() {
        for (key, path) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            (
                "net.ipv4.conf.eth0/1.forwarding",
                "net/ipv4/conf/eth0.1/forwarding",
            ),
            (
                "net/ipv4/conf/eth0.1/forwarding",
                "net/ipv4/conf/eth0.1/forwarding",
            ),
        ] {
            assert_eq!(path_of(key), format!("/proc/sys/{path}"));
        }
    }

    #[test]
    fn only_settings_of_own_namespaces_are_taken() {
        let checked = |key: &str, kinds: &[&str]| {
            let namespaces: Vec<_> = kinds.iter().map(|kind| json!({ "type": kind })).collect();
            let linux = json!({ "sysctl": { key: "1" }, "namespaces": namespaces });
            check(&serde_json::from_value(linux).expect("a linux part"))
        };
        let all = ["ipc", "network", "uts"];
        for key in [
            "kernel.shmmax",
            "fs.mqueue.msg_max",
            "net.ipv4.ip_forward",
            "net/ipv4/ip_forward",
            "kernel.domainname",
        ] {
            assert_eq!(checked(key, &all), Ok(()), "{key}");
            checked(key, &[]).expect_err(key);
        }
        for key in [
            "vm.swappiness",
            "kernel.hostname",
            "kernel.core_pattern",
            "nets.x",
        ] {
            let failure = checked(key, &all).expect_err(key);
            assert!(failure.message.contains(key), "{failure}");
        }
    }
}
