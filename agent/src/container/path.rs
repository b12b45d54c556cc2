//! Paths below a container's root. The container (or its image) controls every
//! symbolic link there, so each path is resolved by the kernel with the container's
//! root as its root (openat2 `RESOLVE_IN_ROOT`) and used as a descriptor from then on.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

use crate::failure::{Failure, OrFail, Result};

/// openat2 answers EAGAIN when something was renamed under it.
const RACE_RETRIES: usize = 128;

const DIR_MODE: Mode = Mode::from_raw_mode(0o755);

#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

impl Root {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The root of the calling process.
    pub(crate) fn of_process() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, "/", flags, Mode::empty()).or_fail(|| "open the root")?;
        Ok(Self(root))
    }

    /// Opens what the path leads to, symbolic links followed inside the root.
    pub(crate) fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let relative = normal_components(path).collect::<PathBuf>();
        let relative = if relative.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &relative
        };
        open_below(self.0.as_fd(), relative, flags, ResolveFlags::IN_ROOT)
    }

    /// An existing directory or file as a mere place (`O_PATH`).
    pub(crate) fn place(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        self.open(path, OFlags::PATH)
    }

    /// The directory of that path, made with all its parents where missing.
    pub(crate) fn make_dir_all(&self, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match self.open(path, flags) {
            Err(Errno::NOENT) => {}
            other => return other.or_fail(|| format!("open directory {}", path.display())),
        }
        let names: Vec<&OsStr> = normal_components(path).collect();
        let existing = (0..names.len())
            .rev()
            .find_map(|count| {
                let prefix: PathBuf = names[..count].iter().collect();
                match self.open(&prefix, flags) {
                    Err(Errno::NOENT) => None,
                    opened => Some(opened.map(|directory| (count, directory))),
                }
            })
            .unwrap_or(Err(Errno::NOENT));
        let (count, mut directory) =
            existing.or_fail(|| format!("open a parent of {}", path.display()))?;
        for name in &names[count..] {
            match mkdirat(&directory, *name, DIR_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => {
                    return Err(error).or_fail(|| format!("make directory {}", path.display()));
                }
            }
            // What was made just now is a directory; a link in its place is an attack.
            directory = open_below(
                directory.as_fd(),
                Path::new(name),
                flags,
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            )
            .or_fail(|| format!("open new directory {}", path.display()))?;
        }
        Ok(directory)
    }

    /// The file of that path as a place, made empty with its parents where missing.
    pub(crate) fn make_file(&self, path: &Path) -> Result<OwnedFd> {
        match self.place(path) {
            Err(Errno::NOENT) => {}
            other => return other.or_fail(|| format!("open {}", path.display())),
        }
        let (directory, name) = self.make_parent(path)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&directory, &name, flags, DIR_MODE) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).or_fail(|| format!("make file {}", path.display())),
        }
        open_below(
            directory.as_fd(),
            Path::new(&name),
            OFlags::PATH,
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
        .or_fail(|| format!("open new file {}", path.display()))
    }

    /// The directory that holds the path's last component, made where missing.
    pub(crate) fn make_parent(&self, path: &Path) -> Result<(OwnedFd, OsString)> {
        let mut names: Vec<&OsStr> = normal_components(path).collect();
        let name = names
            .pop()
            .ok_or_else(|| Failure::invalid(format!("path {} names no file", path.display())))?;
        let parent = self.make_dir_all(&names.iter().collect::<PathBuf>())?;
        Ok((parent, name.to_owned()))
    }
}

fn open_below(
    directory: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RACE_RETRIES {
        match openat2(
            directory,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        ) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Names of the path with `.` and `..` resolved by text, as OCI means its paths.
fn normal_components(path: &Path) -> impl Iterator<Item = &OsStr> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => {
                names.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names.into_iter()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::{fs, os::fd::AsRawFd};

    use super::*;

    fn root(directory: &Path) -> Root {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        Root(openat(CWD, directory, flags, Mode::empty()).expect("temporary directory opens"))
    }

    fn real_path(fd: &OwnedFd) -> PathBuf {
        fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).expect("descriptor has a path")
    }

    #[test]
    fn absolute_link_stays_inside_the_root() {
        let temp = tempfile::tempdir().expect("temporary directory");
        symlink("/etc", temp.path().join("link")).expect("link");
        let made = root(temp.path())
            .make_dir_all(Path::new("/link/deep"))
            .expect_err("the link dangles inside the root");
        assert!(made.message.contains("/link/deep"), "{made}");
        fs::create_dir(temp.path().join("etc")).expect("directory");
        let made = root(temp.path())
            .make_dir_all(Path::new("/link/deep"))
            .expect("the link leads to a directory of the root");
        assert_eq!(real_path(&made), temp.path().join("etc/deep"));
    }

    #[test]
    fn parent_components_do_not_climb_out() {
        let temp = tempfile::tempdir().expect("temporary directory");
        symlink("../../../../tmp", temp.path().join("up")).expect("link");
        fs::create_dir(temp.path().join("tmp")).expect("directory");
        let made = root(temp.path())
            .make_dir_all(Path::new("../../up/x"))
            .expect("made inside");
        assert_eq!(real_path(&made), temp.path().join("tmp/x"));
    }

    #[test]
    fn dangling_link_is_no_place_for_a_file() {
        let temp = tempfile::tempdir().expect("temporary directory");
        symlink("/nowhere/file", temp.path().join("file")).expect("link");
        root(temp.path())
            .make_file(Path::new("/file"))
            .expect_err("a dangling link is refused");
        assert!(!Path::new("/nowhere").exists());
    }

    #[test]
    fn existing_file_is_kept() {
        let temp = tempfile::tempdir().expect("temporary directory");
        fs::write(temp.path().join("hosts"), "x").expect("file");
        root(temp.path())
            .make_file(Path::new("/hosts"))
            .expect("opens");
        assert_eq!(fs::read(temp.path().join("hosts")).expect("file"), b"x");
    }
}
