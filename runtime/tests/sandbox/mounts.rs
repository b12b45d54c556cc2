//! The shared directory's mounts: what they are in the jail, and what is left where
//! something is wrong with one of them.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use lazaret_runtime::sandbox::Chain;
use lazaret_runtime::sandbox::id::ContainerId;
use lazaret_runtime::sandbox::mounts::{ContainerMounts, MountError, SharedDir};
use lazaret_runtime::sandbox::plan::{
    BindOptions, HostMount, Mounted, PathKind, ReadOnly, fresh_tmpfs,
};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
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

const READ_ONLY: BindOptions = BindOptions {
    recursive: true,
    read_only: ReadOnly::Tree,
    follows_host: false,
};

fn volume(dir: &Path, name: &str, at: usize) -> HostMount {
    bound(dir, name, at, READ_ONLY)
}

fn bound(dir: &Path, name: &str, at: usize, options: BindOptions) -> HostMount {
    let source = dir.join(name);
    mounted_at(
        at,
        Mounted::Bind {
            source,
            kind: PathKind::Directory,
            options,
        },
    )
}

fn overlay(at: usize, lower: &Path, upper: &Path, read_only: bool) -> HostMount {
    let options = [
        format!("lowerdir={}", lower.display()),
        format!("upperdir={}/upper", upper.display()),
        format!("workdir={}/work", upper.display()),
    ];
    mounted_at(
        at,
        Mounted::Overlay {
            options: options.into(),
            read_only,
        },
    )
}

fn mounted_at(at: usize, what: Mounted) -> HostMount {
    HostMount {
        destination: format!("/volume/{at}"),
        target: PathBuf::from(format!("box/mounts/{at}")),
        what,
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
fn a_mount_that_cannot_be_made_undoes_those_before_it() {
    apart(|dir| {
        let path = dir.join("shared");
        let shared = SharedDir::create(path.clone()).unwrap();
        let binds = [volume(dir, "one", 0), volume(dir, "none", 1)];
        let err = mounted(&shared, dir, &binds).unwrap_err();
        let err = Chain(&err).to_string();
        assert!(err.starts_with("mount at /volume/1: cannot mount"), "{err}");
        assert!(err.contains("none (bind)"), "{err}");
        assert_eq!(below(&path), Vec::<PathBuf>::new());
        assert!(!path.join("box").exists());
    });
}

/// Another thread's mount namespace, to which this one's mounts get through, as they do
/// to the VMM's jail.
struct Jail {
    requests: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    thread: JoinHandle<()>,
}

impl Jail {
    fn enter() -> Self {
        let (requests, received) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (entered, is_entered) = mpsc::channel();
        let here = File::open("/proc/thread-self/ns/mnt").unwrap();
        let thread = std::thread::spawn(move || {
            // Threads that share a working directory may not change their namespaces.
            unshare(CloneFlags::CLONE_FS).unwrap();
            setns(here, CloneFlags::CLONE_NEWNS).unwrap();
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
            mount_change("/", slave).unwrap();
            entered.send(()).unwrap();
            for request in received {
                request();
            }
        });
        is_entered.recv().unwrap();
        Self { requests, thread }
    }

    fn run<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, answer) = mpsc::channel();
        let request = move || done.send(what()).unwrap();
        self.requests.send(Box::new(request)).unwrap();
        answer.recv().unwrap()
    }

    fn leave(self) {
        drop(self.requests);
        self.thread.join().unwrap();
    }
}

fn tmpfs(path: &Path) {
    mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).unwrap();
}

#[test]
fn what_is_read_only_is_so_in_a_jail_that_was_there_before() {
    apart(|dir| {
        let shared = SharedDir::create(dir.join("shared")).unwrap();
        let jail = Jail::enter();
        fs::create_dir(dir.join("two/below")).unwrap();
        tmpfs(&dir.join("two/below"));
        let with = |name, at, read_only| {
            let options = BindOptions {
                read_only,
                ..READ_ONLY
            };
            bound(dir, name, at, options)
        };
        let writable = with("one", 2, ReadOnly::No);
        let alone = with("two", 3, ReadOnly::Mount);
        let binds = [
            volume(dir, "one", 0),
            volume(dir, "two", 1),
            writable,
            alone,
        ];
        let mounts = mounted(&shared, dir, &binds).unwrap();
        let places = dir.join("shared/box/mounts");
        let write = |below: &str| {
            let path = places.join(below).join("file");
            jail.run(move || File::create(path).map(drop).map_err(|err| err.kind()))
        };
        let refused = Err(ErrorKind::ReadOnlyFilesystem);
        assert_eq!(write("0"), refused);
        assert_eq!(write("1"), refused);
        assert_eq!(write("1/below"), refused, "all of the tree");
        assert_eq!(write("2"), Ok(()));
        assert_eq!(write("3"), refused);
        assert_eq!(write("3/below"), Ok(()));
        jail.leave();
        shared.unmount_container(mounts).unwrap();
        unmount(dir.join("two/below"), UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn later_mounts_of_the_host_are_seen_where_it_is_wished() {
    apart(|dir| {
        // The host's, of which the sandbox's namespace is a slave.
        tmpfs(&dir.join("one"));
        fs::create_dir(dir.join("one/below")).unwrap();
        mount_change(dir.join("one"), MountPropagationFlags::SHARED).unwrap();
        let shared = SharedDir::create(dir.join("shared")).unwrap();
        let jail = Jail::enter();
        let follows_host = BindOptions {
            follows_host: true,
            ..READ_ONLY
        };
        let following = bound(dir, "one", 1, follows_host);
        let binds = [volume(dir, "one", 0), following];
        let mounts = mounted(&shared, dir, &binds).unwrap();
        tmpfs(&dir.join("one/below"));
        fs::write(dir.join("one/below/file"), "").unwrap();
        for (at, expected) in [("0", false), ("1", true)] {
            let file = dir.join("shared/box/mounts").join(at).join("below/file");
            assert_eq!(file.exists(), expected, "{at}");
            assert_eq!(jail.run(move || file.exists()), expected, "{at}");
        }
        jail.leave();
        shared.unmount_container(mounts).unwrap();
        unmount(dir.join("one"), UnmountFlags::DETACH).unwrap();
    });
}

/// Directories on a tmpfs: one on an overlay could not be the upper of another.
fn layers(dir: &Path) -> PathBuf {
    let layers = dir.join("two");
    tmpfs(&layers);
    for name in ["lower", "upper", "work"] {
        fs::create_dir(layers.join(name)).unwrap();
    }
    fs::write(layers.join("lower/below"), "below").unwrap();
    layers
}

#[test]
fn overlays_are_written_above_what_is_below() {
    apart(|dir| {
        let shared = SharedDir::create(dir.join("shared")).unwrap();
        let jail = Jail::enter();
        let layers = layers(dir);
        let volumes = [overlay(0, &layers.join("lower"), &layers, false)];
        let mounts = mounted(&shared, dir, &volumes).unwrap();
        let place = dir.join("shared/box/mounts/0");
        let (read, written) = (place.join("below"), place.join("above"));
        jail.run(move || fs::write(written, "above").unwrap());
        assert_eq!(jail.run(|| fs::read(read).unwrap()), b"below");
        let above = fs::read(layers.join("upper/above")).unwrap();
        assert_eq!(above, b"above");
        assert!(!layers.join("lower/above").exists());
        shared.unmount_container(mounts).unwrap();
        assert_eq!(below(&dir.join("shared")), Vec::<PathBuf>::new());
        assert!(!dir.join("shared/box").exists());
        jail.leave();
        unmount(layers, UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn overlay_is_read_only_in_a_jail_that_was_there_before() {
    apart(|dir| {
        let shared = SharedDir::create(dir.join("shared")).unwrap();
        let jail = Jail::enter();
        let layers = layers(dir);
        let volumes = [overlay(0, &layers.join("lower"), &layers, true)];
        let mounts = mounted(&shared, dir, &volumes).unwrap();
        let path = dir.join("shared/box/mounts/0/above");
        let written = jail.run(move || fs::write(path, "").map_err(|err| err.kind()));
        assert_eq!(written, Err(ErrorKind::ReadOnlyFilesystem));
        jail.leave();
        shared.unmount_container(mounts).unwrap();
        unmount(layers, UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn overlay_of_what_is_not_there_is_named() {
    apart(|dir| {
        let shared = SharedDir::create(dir.join("shared")).unwrap();
        let layers = layers(dir);
        let none = layers.join("none");
        let volumes = [volume(dir, "one", 0), overlay(1, &none, &layers, false)];
        let err = mounted(&shared, dir, &volumes).unwrap_err();
        let err = Chain(&err).to_string();
        let named = format!(
            "mount at /volume/1: cannot mount lowerdir={}",
            none.display()
        );
        assert!(err.starts_with(&named), "{err}");
        assert!(err.contains("No such file"), "{err}");
        assert_eq!(below(&dir.join("shared")), Vec::<PathBuf>::new());
        assert!(!dir.join("shared/box").exists());
        unmount(layers, UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn tmpfs_of_an_engine_is_told_from_others() {
    apart(|dir| {
        SharedDir::create(dir.join("shared")).unwrap();
        let options = Some(c"size=3m");
        let one = dir.join("one");
        assert_eq!(fresh_tmpfs(&one), None, "no tmpfs, or a directory of one");
        mount("shm", &one, "tmpfs", MountFlags::empty(), options).unwrap();
        assert_eq!(fresh_tmpfs(&one), Some(3 << 20));
        fs::create_dir(one.join("below")).unwrap();
        assert_eq!(fresh_tmpfs(&one), None, "with something in it");
        assert_eq!(fresh_tmpfs(&one.join("below")), None, "a part of it");
        unmount(&one, UnmountFlags::DETACH).unwrap();
        tmpfs(Path::new("/dev/shm"));
        mount_bind("/dev/shm", &one).unwrap();
        assert_eq!(fresh_tmpfs(&one), None, "the host's");
        unmount(&one, UnmountFlags::DETACH).unwrap();
        unmount("/dev/shm", UnmountFlags::DETACH).unwrap();
    });
}
