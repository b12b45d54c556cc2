//! The shared directory's mounts where something is wrong with one of them.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use lazaret_runtime::sandbox::id::ContainerId;
use lazaret_runtime::sandbox::mounts::{ContainerMounts, MountError, SharedDir};
use lazaret_runtime::sandbox::plan::{HostMount, PathKind};
use nix::sched::{CloneFlags, unshare};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};

/// Runs a test in a mount namespace of its own, which ends with its thread.
fn apart(test: impl FnOnce(&Path) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for name in ["root", "one", "two"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        test(dir.path());
        unmount(dir.path().join("shared"), UnmountFlags::DETACH).unwrap();
    });
    thread.join().unwrap();
}

fn below(dir: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let targets = mounts.lines().map(|line| line.split(' ').nth(1).unwrap());
    targets
        .map(PathBuf::from)
        .filter(|target| target.starts_with(dir) && target != dir)
        .collect()
}

fn volume(dir: &Path, name: &str, at: usize) -> HostMount {
    HostMount {
        source: dir.join(name),
        target: PathBuf::from(format!("box/mounts/{at}")),
        kind: PathKind::Directory,
        recursive: true,
        read_only: true,
    }
}

fn mounted(
    shared: &SharedDir,
    dir: &Path,
    binds: &[HostMount],
) -> Result<ContainerMounts, MountError> {
    let id = ContainerId::new("box").unwrap();
    let rootfs = Path::new("box/rootfs");
    shared.mount_container(&id, &dir.join("root"), rootfs, &[], binds)
}

#[test]
fn a_mount_that_is_gone_does_not_keep_the_others() {
    apart(|dir| {
        let path = dir.join("shared");
        let shared = SharedDir::create(path.clone()).unwrap();
        let binds = [volume(dir, "one", 0), volume(dir, "two", 1)];
        let mounts = mounted(&shared, dir, &binds).unwrap();
        assert_eq!(below(&path).len(), 3);
        let gone = path.join("box/mounts/1");
        unmount(&gone, UnmountFlags::DETACH).unwrap();
        let err = shared.unmount_container(mounts).unwrap_err().to_string();
        assert!(err.contains(gone.to_str().unwrap()), "{err}");
        assert_eq!(below(&path), Vec::<PathBuf>::new());
        assert!(!path.join("box").exists());
        // Its name is free again.
        let mounts = mounted(&shared, dir, &binds).unwrap();
        shared.unmount_container(mounts).unwrap();
    });
}

#[test]
fn a_mount_that_cannot_be_made_read_only_is_undone() {
    apart(|dir| {
        let path = dir.join("shared");
        let shared = SharedDir::create(path.clone()).unwrap();
        // A FUSE file system without its server: it can be bound, and no more.
        let server = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0\0",
            server.as_raw_fd()
        );
        let options = std::ffi::CString::from_vec_with_nul(options.into_bytes()).unwrap();
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("dead", dir.join("two"), "fuse", flags, options.as_c_str()).unwrap();
        drop(server);

        let binds = [volume(dir, "one", 0), volume(dir, "two", 1)];
        let err = mounted(&shared, dir, &binds).unwrap_err().to_string();
        assert!(err.contains("cannot mount"), "{err}");
        assert!(err.contains("two (bind)"), "{err}");
        assert_eq!(below(&path), Vec::<PathBuf>::new());
        assert!(!path.join("box").exists());
        unmount(dir.join("two"), UnmountFlags::DETACH).unwrap();
    });
}
