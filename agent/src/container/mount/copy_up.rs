//! `tmpcopyup`: a tmpfs that starts with what the directory it covers holds. The tree
//! is the image's, so every step is taken by descriptor and follows no link.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid, chmodat, chownat, fchmod, fchown, fstat,
    mkdirat, mknodat, openat, readlinkat, statat, symlinkat,
};

use super::options::Parameter;
use crate::failure::{Failure, OrFail, Result};

/// Directories inside one another: each level holds three descriptors open.
const DEPTH_MAX: usize = 128;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);
const PLAIN: OFlags = OFlags::CLOEXEC.union(OFlags::NOFOLLOW);

/// Copies what is in the one directory into the other, the root of a tmpfs with these parameters.
/// That becomes its owner's, but for the user or group that the parameters give it.
pub(super) fn copy(from: &OwnedFd, to: &OwnedFd, parameters: &[Parameter]) -> Result<()> {
    let doing = || "copy the covered directory";
    let from = open(from.as_fd(), c".", DIRECTORY).or_fail(doing)?;
    let to = open(to.as_fd(), c".", DIRECTORY).or_fail(doing)?;
    let stat = fstat(&from).or_fail(doing)?;
    contents(&from, &to, 0)?;
    let is_given = |name: &str| parameters.iter().any(|(key, _)| key == name);
    let (uid, gid) = owner(&stat);
    let (uid, gid) = (
        uid.filter(|_| !is_given("uid")),
        gid.filter(|_| !is_given("gid")),
    );
    fchown(&to, uid, gid).or_fail(doing)
}

fn contents(from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<()> {
    if depth == DEPTH_MAX {
        return Err(Failure::invalid(format!(
            "the directory to copy is more than {DEPTH_MAX} levels deep"
        )));
    }
    let entries = Dir::read_from(from).or_fail(|| "read a directory to copy")?;
    for entry in entries {
        let entry = entry.or_fail(|| "read a directory to copy")?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        entry_of(from, to, name, depth)?;
    }
    Ok(())
}

fn entry_of(from: &OwnedFd, to: &OwnedFd, name: &CStr, depth: usize) -> Result<()> {
    let doing = || format!("copy {}", name.to_string_lossy());
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW).or_fail(doing)?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    let (uid, gid) = owner(&stat);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let source = open(from.as_fd(), name, DIRECTORY).or_fail(doing)?;
            mkdirat(to, name, Mode::RWXU).or_fail(doing)?;
            let target = open(to.as_fd(), name, DIRECTORY).or_fail(doing)?;
            contents(&source, &target, depth + 1)?;
            fchown(&target, uid, gid).or_fail(doing)?;
            fchmod(&target, mode).or_fail(doing)
        }
        FileType::RegularFile => {
            let source = open(from.as_fd(), name, OFlags::RDONLY).or_fail(doing)?;
            let flags = PLAIN | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let target = openat(to, name, flags, Mode::RUSR).or_fail(doing)?;
            let mut target = File::from(target);
            io::copy(&mut File::from(source), &mut target).or_fail(doing)?;
            fchown(&target, uid, gid).or_fail(doing)?;
            fchmod(&target, mode).or_fail(doing)
        }
        FileType::Symlink => {
            let link = readlinkat(from, name, Vec::new()).or_fail(doing)?;
            symlinkat(link.as_c_str(), to, name).or_fail(doing)?;
            chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).or_fail(doing)
        }
        kind => {
            mknodat(to, name, kind, mode, stat.st_rdev).or_fail(doing)?;
            chownat(to, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).or_fail(doing)?;
            chmodat(to, name, mode, AtFlags::empty()).or_fail(doing)
        }
    }
}

fn open(directory: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    openat(directory, name, PLAIN | flags, Mode::empty())
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;

    use super::*;

    fn directory(path: &Path) -> OwnedFd {
        File::open(path).expect("a directory").into()
    }

    #[test]
    fn tree_arrives_as_it_was() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        fs::create_dir_all(from.join("a/b")).expect("directories");
        fs::create_dir(&to).expect("a directory");
        fs::write(from.join("a/b/file"), "text").expect("a file");
        fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o1750)).expect("mode");
        symlink("/nowhere", from.join("link")).expect("a link");
        copy(&directory(&from), &directory(&to), &[]).expect("copied");
        assert_eq!(fs::read(to.join("a/b/file")).expect("the file"), b"text");
        assert_eq!(
            fs::read_link(to.join("link")).expect("the link"),
            Path::new("/nowhere")
        );
        let mode = fs::metadata(to.join("a"))
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o1750);
    }

    #[test]
    fn endless_depth_is_refused() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let (from, to) = (temp.path().join("from"), temp.path().join("to"));
        let deep: std::path::PathBuf = std::iter::repeat_n("d", DEPTH_MAX + 1).collect();
        fs::create_dir_all(from.join(deep)).expect("directories");
        fs::create_dir(&to).expect("a directory");
        let failure = copy(&directory(&from), &directory(&to), &[]).expect_err("too deep");
        assert!(failure.message.contains("levels deep"), "{failure}");
    }
}
