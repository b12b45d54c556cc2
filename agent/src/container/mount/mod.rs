//! One entry of the spec's `mounts`: made detached with the kernel's descriptor-based
//! mount calls, then attached to a destination that was resolved inside the root.

mod copy_up;
mod cover;
mod kernel;
mod options;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType, fstat, fstatfs, stat};
use rustix::io::Errno;

pub(crate) use cover::{make_read_only, mask, open_null};
pub(crate) use kernel::{
    Reach, attach, clone_tree, map_ids, new_file_system, set_attributes, set_propagation,
};
pub(crate) use options::{Attributes, MountOptions, Propagation};

use self::kernel::reconfigure;
use self::options::Bind;
use super::path::{Root, normal_components};
use super::sysctl::PROC_MAGIC;
use crate::failure::{Failure, OrFail, Result};

/// Files of /proc that may be covered, for file systems that show a container's own
/// figures there; the rest of /proc is what the container is judged by. As in runc.
const COVERABLE: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Where the guest has its own, for containers that may not mount another.
const GUEST_SYSFS: &str = "/sys";

/// Where the mount goes, from the container's root. As in runc, a relative path begins
/// there, too, and `..` is taken by text.
pub(crate) fn destination_of(mount: &Mount) -> PathBuf {
    let names = normal_components(mount.destination());
    Path::new("/").iter().chain(names).collect()
}

/// Refuses a mount by what the spec says of it, before anything is made.
pub(crate) fn check(mount: &Mount) -> Result<()> {
    let destination = destination_of(mount);
    if mount.destination().is_relative() {
        tracing::warn!(
            "the mount on {} has no absolute path",
            destination.display()
        );
    }
    if destination == Path::new("/") {
        return Err(Failure::invalid(format!(
            "mount destination {} is not below the root",
            destination.display()
        )));
    }
    if destination.starts_with("/proc") && !may_cover(&destination) {
        return Err(Failure::unsupported(format!(
            "a mount on {}",
            destination.display()
        )));
    }
    let maps = [mount.uid_mappings(), mount.gid_mappings()];
    let [uids, gids] = maps.map(|map| map.as_ref().is_some_and(|map| !map.is_empty()));
    if uids != gids {
        return Err(Failure::invalid(format!(
            "the mount on {} has only one of uidMappings and gidMappings",
            destination.display()
        )));
    }
    MountOptions::parse(mount.options().as_deref().unwrap_or_default()).map(drop)
}

/// /proc itself takes a whole proc file system, of which a bind is told from others
/// when it is made.
fn may_cover(destination: &Path) -> bool {
    let is_whole = destination == Path::new("/proc");
    is_whole || COVERABLE.iter().any(|path| destination == Path::new(path))
}

/// A mount that takes what the container is still to be given, and is made read-only
/// when its root is sealed.
#[derive(Debug)]
pub(crate) struct Unsealed {
    made: OwnedFd,
    destination: PathBuf,
}

impl Unsealed {
    pub(crate) fn seal(self) -> Result<()> {
        set_attributes(self.made.as_fd(), Attributes::READ_ONLY, Reach::One)
            .or_fail(|| format!("make {} read-only", self.destination.display()))
    }
}

/// Devices are made in the one, and other mounts' places in the others.
fn is_filled_before_use(destination: &Path, kind: &str) -> bool {
    destination == Path::new("/dev") || kind == "tmpfs"
}

/// Makes one mount of the spec below `root`; `prepared` is its source where the agent
/// has opened that already.
pub(crate) fn mount(
    root: &Root,
    mount: &Mount,
    prepared: Option<OwnedFd>,
) -> Result<Option<Unsealed>> {
    let destination = &destination_of(mount);
    let mut options = MountOptions::parse(mount.options().as_deref().unwrap_or_default())?;
    if options.remount {
        return remount(root, destination, &options).map(|()| None);
    }
    let kind = mount.typ().as_deref().unwrap_or("none");
    let is_bind = options.bind.is_some() || kind == "bind" || prepared.is_some();
    let is_sealed_later =
        !is_bind && options.attributes.is_read_only() && is_filled_before_use(destination, kind);
    if is_sealed_later {
        options.attributes = options.attributes.writable();
    }
    let (made, place) = if is_bind {
        bind(root, mount, &options, prepared)?
    } else {
        file_system(root, mount, kind, &options)?
    };
    let doing = || format!("mount {}", destination.display());
    check_place(&made, &place, destination).or_fail(doing)??;
    attach(made.as_fd(), place.as_fd()).or_fail(doing)?;
    for propagation in &options.propagation {
        set_propagation(made.as_fd(), *propagation).or_fail(doing)?;
    }
    Ok(is_sealed_later.then(|| Unsealed {
        made,
        destination: destination.clone(),
    }))
}

/// What the destination says by its name, its links must not undo.
fn check_place(
    made: &OwnedFd,
    place: &OwnedFd,
    destination: &Path,
) -> rustix::io::Result<Result<()>> {
    let on_proc = fstatfs(place)?.f_type == PROC_MAGIC;
    let is_proc = fstatfs(made)?.f_type == PROC_MAGIC;
    let fits = match destination.strip_prefix("/proc") {
        Ok(below) if below.as_os_str().is_empty() => is_proc,
        Ok(_) => true,
        Err(_) => !on_proc,
    };
    Ok(if fits {
        Ok(())
    } else {
        Err(Failure::unsupported(format!(
            "a mount on {}, which is of proc",
            destination.display()
        )))
    })
}

fn bind(
    root: &Root,
    mount: &Mount,
    options: &MountOptions,
    prepared: Option<OwnedFd>,
) -> Result<(OwnedFd, OwnedFd)> {
    let destination = &destination_of(mount);
    if let Some((key, _)) = options.parameters.first() {
        return Err(Failure::unsupported(format!(
            "option {key} of the bind mount on {}",
            destination.display()
        )));
    }
    let made = match prepared {
        Some(made) => made,
        None => open_source(mount, options)?,
    };
    let doing = || format!("bind on {}", destination.display());
    let is_directory = fstat(&made)
        .map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
        .or_fail(doing)?;
    let place = if is_directory {
        root.make_dir_all(destination)?
    } else {
        root.make_file(destination)?
    };
    set_all_attributes(made.as_fd(), options).or_fail(doing)?;
    Ok((made, place))
}

/// A detached copy of what a bind mount shows.
pub(crate) fn open_source(mount: &Mount, options: &MountOptions) -> Result<OwnedFd> {
    let destination = mount.destination();
    let source = mount.source().as_ref().ok_or_else(|| {
        Failure::invalid(format!(
            "bind mount on {} has no source",
            destination.display()
        ))
    })?;
    let reach = match options.bind {
        Some(Bind::Recursive) => Reach::Tree,
        Some(Bind::Single) | None => Reach::One,
    };
    clone_tree(CWD, source, reach)
        .or_fail(|| format!("bind {} on {}", source.display(), destination.display()))
}

fn file_system(
    root: &Root,
    mount: &Mount,
    kind: &str,
    options: &MountOptions,
) -> Result<(OwnedFd, OwnedFd)> {
    let destination = &destination_of(mount);
    let doing = || format!("mount {}", destination.display());
    // Version 1 hierarchies do not exist in the guest; engines ask by the old name.
    let kind = if kind == "cgroup" { "cgroup2" } else { kind };
    let is_new = matches!(root.place(destination), Err(Errno::NOENT));
    let place = root.make_dir_all(destination)?;
    let mut parameters = options.parameters.clone();
    if kind == "tmpfs" && !is_new && !parameters.iter().any(|(key, _)| key == "mode") {
        // A tmpfs keeps the mode of the directory it covers, as in other runtimes. Where
        // there was none it is open to all, which is the kernel's default.
        let covered = fstat(&place).or_fail(|| format!("look at {}", destination.display()))?;
        let mode = format!("{:o}", covered.st_mode & 0o7777);
        parameters.push(("mode".to_owned(), Some(mode)));
    }
    let source = mount.source().as_deref().unwrap_or(Path::new(kind));
    if options.attributes.is_read_only() && is_block_device(source) {
        // The file system itself must not write either.
        parameters.push(("ro".to_owned(), None));
    }
    let made = match new_file_system(kind, source, &parameters) {
        Err(_) if kind == "sysfs" && parameters.is_empty() && sysfs_is_forbidden() => {
            // It belongs to the network, which is the guest's: its own is shown.
            clone_tree(CWD, Path::new(GUEST_SYSFS), Reach::Tree).or_fail(doing)?
        }
        made => made.map_err(|text| Failure::internal(format!("{}: {text}", doing())))?,
    };
    if options.copy_up {
        if kind != "tmpfs" {
            return Err(Failure::invalid(format!(
                "{}: tmpcopyup is for tmpfs",
                doing()
            )));
        }
        copy_up::copy(&place, &made, &parameters)
            .map_err(|failure| Failure::new(failure.code, format!("{}: {failure}", doing())))?;
    }
    set_all_attributes(made.as_fd(), options).or_fail(doing)?;
    Ok((made, place))
}

/// Whether this process is root of a user namespace that does not own the network.
fn sysfs_is_forbidden() -> bool {
    matches!(kernel::probe("sysfs"), Err(Errno::PERM))
}

fn is_block_device(source: &Path) -> bool {
    stat(source).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice)
}

/// Changes the mount that is at the destination already.
fn remount(root: &Root, destination: &Path, options: &MountOptions) -> Result<()> {
    let doing = || format!("remount {}", destination.display());
    let place = root.place(destination).or_fail(doing)?;
    if !options.parameters.is_empty() {
        reconfigure(place.as_fd(), &options.parameters)
            .map_err(|text| Failure::internal(format!("{}: {text}", doing())))?;
    }
    set_all_attributes(place.as_fd(), options).or_fail(doing)?;
    for propagation in &options.propagation {
        set_propagation(place.as_fd(), *propagation).or_fail(doing)?;
    }
    Ok(())
}

fn set_all_attributes(mount: BorrowedFd<'_>, options: &MountOptions) -> std::io::Result<()> {
    set_attributes(mount, options.attributes, Reach::One)?;
    set_attributes(mount, options.recursive_attributes, Reach::Tree)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(destination: &str, kind: &str) -> Result<()> {
        let mount = json!({ "destination": destination, "type": kind, "source": "x" });
        check(&serde_json::from_value(mount).expect("a mount"))
    }

    #[test]
    fn proc_is_covered_only_where_a_container_could_not_be_fooled() {
        for path in ["/proc", "/proc/cpuinfo", "proc/uptime", "/proc/../data"] {
            assert_eq!(checked(path, "bind"), Ok(()), "{path}");
        }
        for path in [
            "/proc/self",
            "/proc/sys",
            "/proc/1/attr",
            "/proc/cpuinfo/x",
            "proc/sys",
            "/data/../proc/sys",
            "/",
            "",
            "data/..",
        ] {
            checked(path, "bind").expect_err(path);
        }
    }

    #[test]
    fn id_mappings_come_in_pairs() {
        let map = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
        let mount = json!({ "destination": "/m", "source": "/s", "uidMappings": map });
        check(&serde_json::from_value(mount).expect("a mount")).expect_err("no gidMappings");
    }
}
