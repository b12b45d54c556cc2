//! The shared directory and what is mounted below it, all of it in the sandbox
//! process's own mount namespace.
//!
//! The directory is bound onto itself with shared propagation, so that what is
//! mounted below it later reaches the VMM's jail, and read-only, so that a guest
//! can write into its containers' roots and volumes but not beside them, into
//! the host's memory.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, major, minor, mkdirat, open, openat};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change,
    mount_remount, unmount,
};
use thiserror::Error;

use super::id::ContainerId;
use super::mount_tree::{MountTree, Reach};
use super::plan::{BindOptions, HostMount, Mounted, PathKind, ReadOnly};
use super::store;

/// Names of a container's root file system below its directory, told apart by
/// the VMM: its guest remembers the first for good, the second for a second.
pub(super) const PRIVATE_ROOTFS: &str = "rootfs";
pub(super) const ENGINE_ROOTFS: &str = "engine-rootfs";

/// Longest options string mount(2) takes: a page less its terminator.
const MOUNT_DATA_MAX: usize = 4095;

#[derive(Debug, Error)]
pub enum MountError {
    #[error("cannot make {} the shared directory", path.display())]
    Shared { path: PathBuf, source: Errno },
    #[error("cannot make the mount point {}", path.display())]
    Target { path: PathBuf, source: Errno },
    #[error("mount at {destination}")]
    Volume {
        destination: String,
        source: Box<MountError>,
    },
    #[error("cannot mount {source_path} ({kind}) on {}", target.display())]
    Mount {
        kind: String,
        source_path: String,
        target: PathBuf,
        source: Errno,
    },
    #[error("mount options of {0} bytes are more than the {MOUNT_DATA_MAX} that mount(2) takes")]
    OptionsTooLong(usize),
    #[error("mount option {0:?} is not one of the kernel's")]
    Option(String),
    #[error("cannot unmount {}", path.display())]
    Unmount { path: PathBuf, source: Errno },
    #[error(transparent)]
    Remove(#[from] store::StoreError),
}

/// A container's root: an engine may mount more below it.
const ROOT: BindOptions = BindOptions {
    recursive: true,
    read_only: ReadOnly::No,
    follows_host: true,
};

/// A mount that makes a container's root, as containerd's Task API gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootMount {
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

/// The directory that virtio-fs exports.
#[derive(Debug)]
pub struct SharedDir {
    path: PathBuf,
    /// The directory below the read-only mount.
    writable: OwnedFd,
}

impl SharedDir {
    pub fn create(path: PathBuf) -> Result<Self, MountError> {
        Self::set_up(&path)
            .map(|writable| Self {
                path: path.clone(),
                writable,
            })
            .map_err(|source| MountError::Shared { path, source })
    }

    fn set_up(path: &Path) -> Result<OwnedFd, Errno> {
        rustix::fs::mkdir(path, Mode::from_raw_mode(0o755))?;
        let writable = open_dir(path)?;
        mount_bind(path, path)?;
        mount_change(path, MountPropagationFlags::SHARED)?;
        mount_remount(path, MountFlags::BIND | MountFlags::RDONLY, "")?;
        Ok(writable)
    }

    /// For the VMM.
    pub fn open(&self) -> Result<OwnedFd, MountError> {
        open_dir(&self.path).map_err(|source| MountError::Shared {
            path: self.path.clone(),
            source,
        })
    }

    /// Mounts a container's root and volumes. After an error nothing of them is
    /// left.
    pub fn mount_container(
        &self,
        id: &ContainerId,
        root: &Path,
        rootfs: &Path,
        root_mounts: &[RootMount],
        volumes: &[HostMount],
    ) -> Result<ContainerMounts, MountError> {
        let mut mounts = ContainerMounts {
            dir: self.path.join(id.as_str()),
            mounted: Vec::new(),
        };
        let result = self.fill(&mut mounts, id, root, rootfs, root_mounts, volumes);
        match result {
            Ok(()) => Ok(mounts),
            Err(err) => {
                if let Err(second) = self.unmount_container(mounts) {
                    tracing::warn!("after a failed mount: {:#}", crate::sandbox::Chain(&second));
                }
                Err(err)
            }
        }
    }

    fn fill(
        &self,
        mounts: &mut ContainerMounts,
        id: &ContainerId,
        root: &Path,
        rootfs: &Path,
        root_mounts: &[RootMount],
        volumes: &[HostMount],
    ) -> Result<(), MountError> {
        let below = Path::new(id.as_str());
        self.make_dir(below)?;
        self.make_dir(rootfs)?;
        let target = self.path.join(rootfs);
        if root_mounts.is_empty() {
            bind(root, &target, ROOT)?;
            mounts.mounted.push(target);
        } else {
            for mount in root_mounts {
                mount_root(mount, &target)?;
                mounts.mounted.push(target.clone());
            }
        }
        if !volumes.is_empty() {
            self.make_dir(&below.join("mounts"))?;
        }
        for volume in volumes {
            let mounted = self.mount_volume(volume);
            let target = mounted.map_err(|err| MountError::Volume {
                destination: volume.destination.clone(),
                source: Box::new(err),
            })?;
            mounts.mounted.push(target);
        }
        Ok(())
    }

    fn mount_volume(&self, volume: &HostMount) -> Result<PathBuf, MountError> {
        let target = self.path.join(&volume.target);
        match &volume.what {
            Mounted::Bind {
                source,
                kind,
                options,
            } => {
                match kind {
                    PathKind::Directory => self.make_dir(&volume.target)?,
                    PathKind::File
                    | PathKind::BlockDevice
                    | PathKind::GuestDevice(_)
                    | PathKind::Other(_) => self.make_file(&volume.target)?,
                }
                bind(source, &target, *options)?;
            }
            Mounted::Overlay { options, read_only } => {
                self.make_dir(&volume.target)?;
                mount_overlay(options, *read_only, &target)?;
            }
        }
        Ok(target)
    }

    fn make_dir(&self, below: &Path) -> Result<(), MountError> {
        mkdirat(&self.writable, below, Mode::from_raw_mode(0o755)).map_err(|source| {
            MountError::Target {
                path: self.path.join(below),
                source,
            }
        })
    }

    fn make_file(&self, below: &Path) -> Result<(), MountError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&self.writable, below, flags, Mode::from_raw_mode(0o644))
            .map(drop)
            .map_err(|source| MountError::Target {
                path: self.path.join(below),
                source,
            })
    }

    /// Unmounts what [`mount_container`](Self::mount_container) has mounted and
    /// removes the mount points: all that it can. Returns what failed first.
    pub fn unmount_container(&self, mounts: ContainerMounts) -> Result<(), MountError> {
        let mut result = Ok(());
        for path in mounts.mounted.into_iter().rev() {
            let unmounted = unmount(&path, UnmountFlags::DETACH);
            result = result.and(unmounted.map_err(|source| MountError::Unmount { path, source }));
        }
        let below = Path::new(mounts.dir.file_name().unwrap_or_default());
        result.and(self.remove_below(below))
    }

    /// The mount points go through the writable side, one known level after the
    /// other: only empty directories and files are removed.
    fn remove_below(&self, below: &Path) -> Result<(), MountError> {
        for name in ["mounts", PRIVATE_ROOTFS, ENGINE_ROOTFS] {
            let dir = below.join(name);
            if name == "mounts" {
                for entry in self.entries(&dir)? {
                    self.remove(&dir.join(entry))?;
                }
            }
            self.remove(&dir)?;
        }
        self.remove(below)
    }

    fn entries(&self, below: &Path) -> Result<Vec<PathBuf>, MountError> {
        let list = || -> Result<Vec<PathBuf>, Errno> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let dir = match openat(&self.writable, below, flags, Mode::empty()) {
                Err(Errno::NOENT) => return Ok(Vec::new()),
                result => result?,
            };
            let mut names = Vec::new();
            for entry in rustix::fs::Dir::new(dir)? {
                let name = String::from_utf8_lossy(entry?.file_name().to_bytes()).into_owned();
                if name != "." && name != ".." {
                    names.push(name.into());
                }
            }
            Ok(names)
        };
        list().map_err(|source| MountError::Target {
            path: self.path.join(below),
            source,
        })
    }

    fn remove(&self, below: &Path) -> Result<(), MountError> {
        use rustix::fs::{AtFlags, unlinkat};
        let result = match unlinkat(&self.writable, below, AtFlags::REMOVEDIR) {
            Err(Errno::NOTDIR) => unlinkat(&self.writable, below, AtFlags::empty()),
            result => result,
        };
        match result {
            Err(source) if source != Errno::NOENT => Err(MountError::Target {
                path: self.path.join(below),
                source,
            }),
            _ => Ok(()),
        }
    }

    /// Takes the directory's own mount away, with whatever is still below it.
    pub fn unmount(&self) -> Result<(), MountError> {
        match unmount(&self.path, UnmountFlags::DETACH) {
            Err(source) if source != Errno::INVAL => Err(MountError::Unmount {
                path: self.path.clone(),
                source,
            }),
            _ => Ok(()),
        }
    }
}

/// What is mounted for one container.
#[derive(Debug)]
pub struct ContainerMounts {
    dir: PathBuf,
    mounted: Vec<PathBuf>,
}

fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty())
}

/// After an error the target is what it was.
fn bind(source: &Path, target: &Path, options: BindOptions) -> Result<(), MountError> {
    let reach = if options.recursive {
        Reach::Tree
    } else {
        Reach::One
    };
    let bound = MountTree::copy(source, reach).and_then(|tree| {
        if !options.follows_host {
            tree.make_private()?;
        }
        match options.read_only {
            ReadOnly::No => {}
            ReadOnly::Mount => tree.make_read_only(Reach::One)?,
            ReadOnly::Tree => tree.make_read_only(Reach::Tree)?,
        }
        tree.attach(target)
    });
    bound.map_err(|err| MountError::Mount {
        kind: "bind".to_owned(),
        source_path: source.display().to_string(),
        target: target.to_owned(),
        source: err,
    })
}

fn mount_root(root: &RootMount, target: &Path) -> Result<(), MountError> {
    let words: Vec<&str> = root.options.iter().map(String::as_str).collect();
    let recursive = words.contains(&"rbind");
    if root.kind == "bind" || recursive || words.contains(&"bind") {
        let options = BindOptions {
            recursive,
            ..BindOptions::of(&words)
        };
        return bind(Path::new(&root.source), target, options);
    }
    let (flags, data) = parse_options(&root.options)?;
    mount_new(&root.source, &root.kind, flags, &data, target).map_err(|source| MountError::Mount {
        kind: root.kind.clone(),
        source_path: root.source.clone(),
        target: target.to_owned(),
        source,
    })
}

/// Its options say what is mounted.
fn mount_overlay(options: &[String], read_only: bool, target: &Path) -> Result<(), MountError> {
    let (mut flags, data) = parse_options(options)?;
    flags.set(MountFlags::RDONLY, read_only);
    mount_new("overlay", "overlay", flags, &data, target).map_err(|source| MountError::Mount {
        kind: "overlay".to_owned(),
        source_path: data,
        target: target.to_owned(),
        source,
    })
}

/// A file system that is mounted for the first time has its flags before it is attached.
fn mount_new(
    source: &str,
    kind: &str,
    flags: MountFlags,
    data: &str,
    target: &Path,
) -> Result<(), Errno> {
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    mount(source, target, kind, flags, data.as_c_str())
}

/// Splits options into mount(2)'s flags and what is the file system's own.
fn parse_options(options: &[String]) -> Result<(MountFlags, String), MountError> {
    let mut flags = MountFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for option in options {
        match option.as_str() {
            "rw" | "defaults" | "exec" | "dev" | "suid" | "async" => {}
            "ro" => flags |= MountFlags::RDONLY,
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            // Handled by mount(8) or by containerd itself; never by a kernel.
            "loop" | "remount" => return Err(MountError::Option(option.clone())),
            own => data.push(own),
        }
    }
    let data = data.join(",");
    if data.len() > MOUNT_DATA_MAX {
        return Err(MountError::OptionsTooLong(data.len()));
    }
    Ok((flags, data))
}

/// What is at a host path, links followed.
pub fn kind_of(path: &Path) -> io::Result<PathKind> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let meta = std::fs::metadata(path)?;
    let kind = meta.file_type();
    if let Some(path) = guest_device(meta.rdev()).filter(|_| kind.is_char_device()) {
        return Ok(PathKind::GuestDevice(path));
    }
    Ok(if kind.is_dir() {
        PathKind::Directory
    } else if kind.is_file() {
        PathKind::File
    } else if kind.is_socket() {
        PathKind::Other("socket")
    } else if kind.is_fifo() {
        PathKind::Other("FIFO")
    } else if kind.is_block_device() {
        PathKind::BlockDevice
    } else if kind.is_char_device() {
        PathKind::Other("character device")
    } else {
        PathKind::Other("special file")
    })
}

/// Engines bind `/dev/null` over what a container is not to see.
fn guest_device(number: u64) -> Option<&'static str> {
    match (major(number), minor(number)) {
        (1, 3) => Some("/dev/null"),
        (1, 5) => Some("/dev/zero"),
        (1, 7) => Some("/dev/full"),
        (1, 8) => Some("/dev/random"),
        (1, 9) => Some("/dev/urandom"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[&str]) -> Vec<String> {
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn flags_are_parted_from_the_file_systems_own_options() {
        let (flags, data) =
            parse_options(&options(&["ro", "nodev", "lowerdir=/a:/b", "index=off"])).unwrap();
        assert_eq!(flags, MountFlags::RDONLY | MountFlags::NODEV);
        assert_eq!(data, "lowerdir=/a:/b,index=off");
    }

    #[test]
    fn what_only_mount8_does_is_refused() {
        let err = parse_options(&options(&["loop"])).unwrap_err();
        assert!(err.to_string().contains("loop"));
    }

    #[test]
    fn too_many_layers_are_said_so() {
        let long = format!("lowerdir={}", "/layer:".repeat(700));
        assert!(matches!(
            parse_options(&[long]),
            Err(MountError::OptionsTooLong(_))
        ));
    }
}
