//! Paths below a container's root. The container (or its image) controls every
//! symbolic link there, so each path is resolved by the kernel with the container's
//! root as its root (openat2 `RESOLVE_IN_ROOT`) and used as a descriptor from then on.
//!
//! What is missing is made where the links of its path lead, by their text: images
//! have links to what only a mount brings. The kernel follows no link then, so that
//! neither a wrong text nor one that has changed leads out of the root.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;

use crate::failure::{Failure, OrFail, Result};

/// openat2 answers EAGAIN when something was renamed under it.
const RACE_RETRIES: usize = 128;

/// Links in one path, as the kernel counts them.
const LINKS_MAX: usize = 40;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);
const NO_LINKS: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

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
        match self.open(path, DIRECTORY) {
            Err(Errno::NOENT) => {}
            other => return other.or_fail(|| format!("open directory {}", path.display())),
        }
        self.follow(path)
            .and_then(|names| self.make_dirs(&names))
            .or_fail(|| format!("make directory {}", path.display()))
    }

    /// The file of that path as a place, made empty with its parents where missing.
    pub(crate) fn make_file(&self, path: &Path) -> Result<OwnedFd> {
        match self.place(path) {
            Err(Errno::NOENT) => {}
            other => return other.or_fail(|| format!("open {}", path.display())),
        }
        let doing = || format!("make file {}", path.display());
        let mut names = self.follow(path).or_fail(doing)?;
        let name = names.pop().ok_or_else(|| names_no_file(path))?;
        let directory = self.make_dirs(&names).or_fail(doing)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&directory, &name, flags, DIR_MODE) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).or_fail(doing),
        }
        open_below(directory.as_fd(), Path::new(&name), OFlags::PATH, NO_LINKS)
            .or_fail(|| format!("open new file {}", path.display()))
    }

    /// The directory that holds the path's last component, made where missing.
    pub(crate) fn make_parent(&self, path: &Path) -> Result<(OwnedFd, OsString)> {
        let mut names: Vec<&OsStr> = normal_components(path).collect();
        let name = names.pop().ok_or_else(|| names_no_file(path))?;
        let parent = self.make_dir_all(&names.iter().collect::<PathBuf>())?;
        Ok((parent, name.to_owned()))
    }

    /// Makes what is missing of these directories, none of which is a link.
    fn make_dirs(&self, names: &[OsString]) -> rustix::io::Result<OwnedFd> {
        let mut directory = open_below(self.0.as_fd(), Path::new("."), DIRECTORY, NO_LINKS)?;
        for name in names {
            let name = Path::new(name);
            let open = |parent: &OwnedFd| open_below(parent.as_fd(), name, DIRECTORY, NO_LINKS);
            directory = match open(&directory) {
                Err(Errno::NOENT) => {
                    match mkdirat(&directory, name, DIR_MODE) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error),
                    }
                    open(&directory)?
                }
                opened => opened?,
            };
        }
        Ok(directory)
    }

    /// The names by which the path's place is reached without a link, from the root on:
    /// links are taken by their text, and what is not there is what it says.
    fn follow(&self, path: &Path) -> rustix::io::Result<Vec<OsString>> {
        let mut reached: Vec<OsString> = Vec::new();
        let mut left: Vec<OsString> = normal_components(path).map(OsStr::to_owned).collect();
        left.reverse();
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == ".." {
                reached.pop();
                continue;
            }
            let Some(target) = self.link(&reached, &name)? else {
                reached.push(name);
                continue;
            };
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::LOOP);
            }
            if target.is_absolute() {
                reached.clear();
            }
            let names = target.components().filter_map(|component| match component {
                Component::Normal(name) => Some(name),
                Component::ParentDir => Some(OsStr::new("..")),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
            });
            let names: Vec<OsString> = names.map(OsStr::to_owned).collect();
            left.extend(names.into_iter().rev());
        }
        Ok(reached)
    }

    /// Where the link of that name leads; `None` if it is something else, or nothing.
    fn link(&self, directory: &[OsString], name: &OsStr) -> rustix::io::Result<Option<PathBuf>> {
        let mut path = PathBuf::from(".");
        path.extend(directory);
        let directory = match open_below(self.0.as_fd(), &path, DIRECTORY, NO_LINKS) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            opened => opened?,
        };
        match readlinkat(&directory, name, Vec::new()) {
            Ok(target) => Ok(Some(OsString::from_vec(target.into_bytes()).into())),
            Err(Errno::NOENT | Errno::INVAL) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn names_no_file(path: &Path) -> Failure {
    Failure::invalid(format!("path {} names no file", path.display()))
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
pub(crate) fn normal_components(path: &Path) -> impl Iterator<Item = &OsStr> {
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
            .expect("made where the link leads inside the root");
        assert_eq!(real_path(&made), temp.path().join("etc/deep"));
        let again = root(temp.path())
            .make_dir_all(Path::new("/link/deep"))
            .expect("the link leads to a directory of the root");
        assert_eq!(real_path(&again), real_path(&made));
        assert!(!Path::new("/etc/deep").exists());
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
    fn file_behind_a_dangling_link_is_made_inside_the_root() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let at = |path: &str| temp.path().join(path);
        fs::create_dir_all(at("etc/x")).expect("directories");
        symlink("/deep/gone", at("etc/dir")).expect("link");
        for (target, link, file) in [
            ("/nowhere/file", "etc/one", "nowhere/file"),
            ("../usr/../zone", "etc/two", "zone"),
            (
                "../../../../../nowhere/climbed",
                "etc/three",
                "nowhere/climbed",
            ),
            ("x/../../../nowhere/./up", "etc/four", "nowhere/up"),
            // By way of a directory that is not there, and of another link.
            ("/etc/missing/../y", "etc/five", "etc/y"),
            ("/etc/dir/../linked", "etc/six", "deep/linked"),
        ] {
            symlink(target, at(link)).expect("link");
            let made = root(temp.path()).make_file(Path::new(link));
            let made = made.expect("made inside the root");
            assert_eq!(real_path(&made), at(file), "{target}");
            assert!(at(link).is_symlink());
            assert!(at(file).is_file());
        }
        assert!(!Path::new("/nowhere").exists());
    }

    #[test]
    fn links_that_lead_to_one_another_are_refused() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let root = root(temp.path());
        let link = |number: usize, target: &str| {
            symlink(target, temp.path().join(number.to_string())).expect("link");
        };
        link(0, "gone");
        (1..=LINKS_MAX).for_each(|number| link(number, &(number - 1).to_string()));
        root.follow(Path::new("/40")).expect_err("41 links");
        root.make_file(Path::new("/39")).expect("40 links");
        assert!(temp.path().join("gone").is_file());
        link(100, "101/x");
        link(101, "100/x");
        root.make_file(Path::new("/100")).expect_err("no end");
        root.make_dir_all(Path::new("/101/y")).expect_err("no end");
    }

    #[test]
    fn file_is_no_directory_for_another() {
        let temp = tempfile::tempdir().expect("temporary directory");
        fs::write(temp.path().join("file"), "").expect("file");
        symlink("file/x", temp.path().join("link")).expect("link");
        let root = root(temp.path());
        root.make_file(Path::new("/link"))
            .expect_err("not a directory");
        root.make_dir_all(Path::new("/file/x"))
            .expect_err("not a directory");
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
