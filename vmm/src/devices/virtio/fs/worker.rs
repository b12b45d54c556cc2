//! The threads that serve requests.
//!
//! ```text
//!   new ──▶ confined ──▶ waiting ──activate──▶ serving ──reset──▶ waiting
//!                           └──────────drop──────────▶ gone
//! ```
//!
//! Threads live as long as the device: a driver's `activate` comes on a vCPU's
//! thread, which has neither the capabilities that a server of files needs nor
//! a seccomp filter that lets it make threads. Each thread has a working
//! directory and umask of its own, for virtiofsd changes both for the length of
//! a call, and is confined by its owner's function before it sees a request.
#![expect(unsafe_code, reason = "rustix makes unsharing for the caller to judge")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use rustix::fs::Mode;
use rustix::thread::UnshareFlags;
use thiserror::Error;

use super::privileges;
use super::request::Requests;
use super::session::Session;

/// virtiofsd keeps its buffers on the heap.
const STACK_SIZE: usize = 256 << 10;

/// Takes from the calling thread what a server of files does not need.
pub type Confine = Box<dyn Fn() -> io::Result<()> + Send + Sync>;

#[derive(Debug, Error)]
pub enum WorkerError {
    #[error("virtio-fs thread cannot be made")]
    Spawn(#[source] io::Error),
    #[error("virtio-fs thread cannot enter the shared directory")]
    Enter(#[source] io::Error),
    #[error("virtio-fs thread cannot keep its capabilities for all users")]
    Privileges(#[source] io::Error),
    #[error("virtio-fs thread cannot be confined")]
    Confine(#[source] io::Error),
    #[error("virtio-fs thread ended as it started")]
    Lost,
}

#[derive(Debug)]
struct Worker {
    /// `None` once it is to end.
    sessions: Option<Sender<Arc<Session>>>,
    thread: Option<JoinHandle<()>>,
}

/// All threads of a device, either all waiting or all serving one session.
#[derive(Debug)]
pub(super) struct Workers {
    workers: Vec<Worker>,
    /// One message for each thread that has left a session.
    left: Receiver<()>,
}

/// Gives the calling thread its own working directory, `directory`, and an
/// empty umask: the guest's kernel has applied the caller's.
pub(super) fn enter(directory: impl AsFd) -> io::Result<()> {
    // SAFETY: only unsharing the table of descriptors could harm other threads;
    // `FS` is the working directory, the root and the umask.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    rustix::process::fchdir(directory)?;
    rustix::process::umask(Mode::empty());
    Ok(())
}

impl Workers {
    pub(super) fn start(
        count: u8,
        directory: &Arc<OwnedFd>,
        requests: &Arc<Requests>,
        confine: Confine,
    ) -> Result<Self, WorkerError> {
        let confine = Arc::new(confine);
        let (leave, left) = channel();
        let mut workers = Self {
            workers: Vec::with_capacity(count.into()),
            left,
        };
        let (started, ready) = channel();
        for number in 0..count {
            let (sessions, offered) = channel();
            let task = Task {
                directory: Arc::clone(directory),
                requests: Arc::clone(requests),
                confine: Arc::clone(&confine),
                offered,
                leave: leave.clone(),
            };
            let started = started.clone();
            let thread = thread::Builder::new()
                .name(format!("fs-{number}"))
                .stack_size(STACK_SIZE)
                .spawn(move || task.run(&started))
                .map_err(WorkerError::Spawn)?;
            workers.workers.push(Worker {
                sessions: Some(sessions),
                thread: Some(thread),
            });
        }
        drop(started);
        for _ in 0..count {
            ready.recv().map_err(|_| WorkerError::Lost)??;
        }
        Ok(workers)
    }

    /// All threads serve `session` until it is stopped.
    pub(super) fn serve(&self, session: &Arc<Session>) {
        for worker in &self.workers {
            if let Some(sessions) = &worker.sessions {
                // A thread ends only when its sender is dropped.
                let _ = sessions.send(Arc::clone(session));
            }
        }
    }

    /// Returns when all threads have left the session that was stopped.
    pub(super) fn wait(&self) {
        for _ in &self.workers {
            // The senders are gone only when all threads are.
            let _ = self.left.recv();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            worker.sessions = None;
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                // It has nothing to say: a panic has been reported already.
                let _ = thread.join();
            }
        }
    }
}

struct Task {
    directory: Arc<OwnedFd>,
    requests: Arc<Requests>,
    confine: Arc<Confine>,
    offered: Receiver<Arc<Session>>,
    leave: Sender<()>,
}

impl Task {
    fn run(self, started: &Sender<Result<(), WorkerError>>) {
        let ready = enter(&*self.directory)
            .map_err(WorkerError::Enter)
            .and_then(|()| privileges::keep_across_users().map_err(WorkerError::Privileges))
            .and_then(|()| (self.confine)().map_err(WorkerError::Confine));
        let failed = ready.is_err();
        // Whoever started this thread waits for the message.
        let _ = started.send(ready);
        if failed {
            return;
        }
        while let Ok(session) = self.offered.recv() {
            session.serve(&self.requests);
            // Before the message: guest memory is let go of when it arrives.
            drop(session);
            let _ = self.leave.send(());
        }
    }
}
