//! `/dev/shm` where the engine has mounted a tmpfs on the host for it (podman, Docker's
//! `--ipc=shareable`). It is nobody else's, for a microVM shares no IPC namespace: the
//! guest has a tmpfs of its own, whose pages are the guest's memory, not the VMM's, and
//! shared between processes as memory is.

use std::fs::read_dir;
use std::io;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, stat, statfs, statx};
use serde_json::{Value, json};

const PLACE: [&str; 2] = ["dev", "shm"];

/// The host's own, which podman's `--ipc=host` binds.
const OF_THE_HOST: &str = "/dev/shm";

const TMPFS_MAGIC: i64 = 0x0102_1994;

/// What a bind mount says and a tmpfs does not.
const OF_A_BIND: [&str; 10] = [
    "bind",
    "rbind",
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
];

/// Its size in bytes if `source` is a tmpfs that was made for this container. One with
/// something in it was not, nor is a directory of one.
pub fn fresh_tmpfs(source: &Path) -> Option<u64> {
    look(source).ok().flatten()
}

fn look(source: &Path) -> io::Result<Option<u64>> {
    let found = statfs(source)?;
    if found.f_type != TMPFS_MAGIC {
        return Ok(None);
    }
    let status = statx(CWD, source, AtFlags::empty(), StatxFlags::BASIC_STATS)?;
    let is_whole = status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    let device = stat(source)?.st_dev;
    let is_the_hosts = stat(OF_THE_HOST).is_ok_and(|host| host.st_dev == device);
    if !is_whole || is_the_hosts || read_dir(source)?.next().is_some() {
        return Ok(None);
    }
    let block = u64::try_from(found.f_bsize).map_err(io::Error::other)?;
    Ok(Some(found.f_blocks.saturating_mul(block)))
}

/// As the agent takes a destination: from the root, and `..` by text.
pub(super) fn is_at(destination: &str) -> bool {
    let mut names = Vec::new();
    for component in Path::new(destination).components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => drop(names.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names == PLACE
}

/// Makes a tmpfs of a bind mount.
pub(super) fn make_tmpfs(mount: &mut Value, bytes: u64) {
    let own = mount["options"].as_array().cloned().unwrap_or_default();
    let is_kept = |option: &Value| {
        let option = option.as_str();
        option.is_none_or(|option| !OF_A_BIND.contains(&option))
    };
    let size = [json!("mode=1777"), json!(format!("size={bytes}"))];
    mount["type"] = "tmpfs".into();
    mount["source"] = "shm".into();
    mount["options"] = own.into_iter().filter(is_kept).chain(size).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destination_is_the_same_however_it_is_written() {
        for same in ["/dev/shm", "dev/shm/", "//dev/./shm", "/dev/pts/../shm"] {
            assert!(is_at(same), "{same}");
        }
        for other in ["/dev", "/dev/shm/below", "/run/shm", ""] {
            assert!(!is_at(other), "{other}");
        }
    }
}
