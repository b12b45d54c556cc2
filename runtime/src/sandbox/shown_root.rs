//! What engines find in the mount namespace of the process that stands for a
//! container: its root file system. `podman cp` enters the namespace of the
//! container's pid and writes there as below `/`, which must never be the host's.
//!
//! A mount namespace is a thread's own, and the one that `/proc/<pid>/ns/mnt`
//! names is the main thread's. So the main thread stands there and does nothing
//! else, while the sandbox lives on another thread, with all that it mounts.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{chdir, pivot_root};
use tokio::sync::oneshot;

#[derive(Debug)]
enum Request {
    Show {
        root: PathBuf,
        done: oneshot::Sender<io::Result<()>>,
    },
    Leave,
}

/// The sandbox's end.
#[derive(Debug)]
pub struct ShownRoot(mpsc::Sender<Request>);

/// Sends the main thread on its way when it is dropped.
#[derive(Debug)]
pub struct Farewell(mpsc::Sender<Request>);

/// The main thread's end.
#[derive(Debug)]
pub struct Bystander(mpsc::Receiver<Request>);

pub fn shown_root() -> (ShownRoot, Bystander) {
    let (requests, received) = mpsc::channel();
    (ShownRoot(requests), Bystander(received))
}

impl ShownRoot {
    /// Lets engines see this mounted root file system, and no more of the host.
    pub async fn show(&self, root: PathBuf) -> io::Result<()> {
        let gone = || io::Error::other("the main thread has ended");
        let (done, answer) = oneshot::channel();
        let request = Request::Show { root, done };
        self.0.send(request).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    pub fn farewell(&self) -> Farewell {
        Farewell(self.0.clone())
    }
}

impl Bystander {
    /// Does what it is asked to, until it may leave.
    pub fn stand(self) {
        while let Ok(Request::Show { root, done }) = self.0.recv() {
            // Who asked may have been ended in between.
            let _ = done.send(enter(&root));
        }
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        // An error means that the main thread has left.
        let _ = self.0.send(Request::Leave);
    }
}

/// Makes `root`, a mount point, the root of a mount namespace of this thread's
/// own in which nothing else is mounted.
fn enter(root: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private)?;
    chdir(root)?;
    // The old root is then mounted over the new one (pivot_root(2)).
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}
