//! Device nodes, links and the console below the container's /dev
//! (runtime-spec config-linux.md, "Default Devices").

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Uid, chmodat, chownat, fstat, makedev, mknodat, statat,
    symlinkat,
};
use rustix::io::Errno;

use super::mount::{Reach, attach, clone_tree, destination_of};
use super::path::{Root, normal_components};
use crate::failure::{Code, Failure, OrFail, Result};

const DEFAULT_NODES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

const DEFAULT_MODE: u32 = 0o666;

struct Node {
    path: PathBuf,
    kind: FileType,
    device: u64,
    mode: u32,
    owner: (u32, u32),
}

/// Populates /dev, unless the spec binds a ready one there. What the spec has for the path of a
/// default device is made in its place.
pub(crate) fn populate(root: &Root, mounts: &[Mount], devices: &[LinuxDevice]) -> Result<()> {
    let bound = mounts
        .iter()
        .any(|mount| destination_of(mount) == Path::new("/dev") && is_bind(mount));
    if bound {
        return Ok(());
    }
    for (path, major, minor) in DEFAULT_NODES {
        if devices.iter().any(|device| are_same(device.path(), path)) {
            continue;
        }
        make_node(
            root,
            mounts,
            &Node {
                path: path.into(),
                kind: FileType::CharacterDevice,
                device: makedev(major, minor),
                mode: DEFAULT_MODE,
                owner: (0, 0),
            },
        )?;
    }
    for device in devices {
        make_node(root, mounts, &Node::of(device)?)?;
    }
    for (target, path) in LINKS {
        let (directory, name) = root.make_parent(Path::new(path))?;
        match symlinkat(target, &directory, &name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).or_fail(|| format!("link {path}")),
        }
    }
    Ok(())
}

fn are_same(one: &Path, other: impl AsRef<Path>) -> bool {
    normal_components(one).eq(normal_components(other.as_ref()))
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount
            .options()
            .iter()
            .flatten()
            .any(|option| option == "bind" || option == "rbind")
}

impl Node {
    fn of(device: &LinuxDevice) -> Result<Self> {
        let path = device.path().clone();
        let kind = match device.typ() {
            LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::P => FileType::Fifo,
            LinuxDeviceType::A => {
                return Err(Failure::invalid(format!(
                    "device {} has no type",
                    path.display()
                )));
            }
        };
        let number = |value: i64| {
            u32::try_from(value).map_err(|_| {
                Failure::invalid(format!(
                    "device number {value} of {} is out of range",
                    path.display()
                ))
            })
        };
        let device_number = if kind == FileType::Fifo {
            0
        } else {
            makedev(number(device.major())?, number(device.minor())?)
        };
        Ok(Self {
            kind,
            device: device_number,
            mode: device.file_mode().unwrap_or(DEFAULT_MODE) & 0o7777,
            owner: (
                device.uid().unwrap_or_default(),
                device.gid().unwrap_or_default(),
            ),
            path,
        })
    }
}

fn make_node(root: &Root, mounts: &[Mount], node: &Node) -> Result<()> {
    let is_mounted_on = || {
        mounts
            .iter()
            .any(|mount| are_same(mount.destination(), &node.path))
    };
    let doing = || format!("make device {}", node.path.display());
    let (directory, name) = root.make_parent(&node.path)?;
    let mode = Mode::from_raw_mode(node.mode);
    match mknodat(&directory, &name, node.kind, mode, node.device) {
        Ok(()) => {}
        // Whatever it is, it is what the spec wants to be there.
        Err(Errno::EXIST) if is_mounted_on() => return Ok(()),
        Err(Errno::EXIST) => return use_existing(root, directory.as_fd(), &name, node),
        // Root of a user namespace makes no devices: the guest's own is shown.
        Err(Errno::PERM) => return bind_guests(root, node),
        Err(error) => return Err(error).or_fail(doing),
    }
    // mknod is subject to the umask; the spec's mode is not.
    chmodat(&directory, &name, mode, AtFlags::empty()).or_fail(doing)?;
    let (uid, gid) = node.owner;
    chownat(
        &directory,
        &name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::SYMLINK_NOFOLLOW,
    )
    .or_fail(doing)
}

fn bind_guests(root: &Root, node: &Node) -> Result<()> {
    let doing = || format!("show the guest's device {}", node.path.display());
    let guests = clone_tree(CWD, &node.path, Reach::One).or_fail(doing)?;
    let stat = fstat(&guests).or_fail(doing)?;
    if FileType::from_raw_mode(stat.st_mode) != node.kind || stat.st_rdev != node.device {
        return Err(another_thing(node));
    }
    let place = root.make_file(&node.path)?;
    attach(guests.as_fd(), place.as_fd()).or_fail(doing)
}

/// A node that an image or an earlier entry has made must be the one asked for. A file in its place
/// is where an earlier container on the same root had the guest's device, or an image without rights
/// to make devices meant one to be.
fn use_existing(
    root: &Root,
    directory: BorrowedFd<'_>,
    name: &std::ffi::OsStr,
    node: &Node,
) -> Result<()> {
    let doing = || format!("look at device {}", node.path.display());
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).or_fail(doing)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => bind_guests(root, node),
        kind if kind == node.kind && stat.st_rdev == node.device => Ok(()),
        _ => Err(another_thing(node)),
    }
}

fn another_thing(node: &Node) -> Failure {
    let message = format!(
        "{} is there already and is another thing",
        node.path.display()
    );
    Failure::new(Code::FailedPrecondition, message)
}

/// Shows the terminal of the container as its /dev/console.
pub(crate) fn bind_console(root: &Root, terminal: BorrowedFd<'_>) -> Result<()> {
    let place = root.make_file(Path::new("/dev/console"))?;
    let made = clone_tree(terminal, Path::new(""), Reach::One).or_fail(|| "open the console")?;
    attach(made.as_fd(), place.as_fd()).or_fail(|| "mount /dev/console")
}
