//! What does the work on a disk while the slot's thread goes on: the kernel, by
//! `io_uring`, or threads where that is not to be had.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::disk::Disk;
use super::job::Call;
use super::pool::{Pool, PoolQueue};
use super::ring::Ring;

/// An answer to a call: its number and what came of it.
pub(super) type Answer = (u64, Result<u32, Errno>);

/// One slot's engine.
#[derive(Debug)]
pub(super) enum Engine {
    Ring(Box<Ring>),
    Pool(PoolQueue),
}

/// Makes engines: the best that this host has.
#[derive(Debug)]
pub enum Engines {
    Rings,
    Pool(Arc<Pool>),
}

impl Engines {
    /// For all slots of a microVM. Threads, where they are needed, are made
    /// here, and `confine` is called on each.
    pub fn new(confine: fn() -> io::Result<()>) -> io::Result<Self> {
        match Ring::new() {
            Ok(_) => Ok(Self::Rings),
            Err(error) => {
                tracing::debug!("no io_uring ({error}): block slots are served by threads");
                Self::threads(confine)
            }
        }
    }

    /// The same, whatever the host has.
    pub fn threads(confine: fn() -> io::Result<()>) -> io::Result<Self> {
        Ok(Self::Pool(Arc::new(Pool::start(confine)?)))
    }

    pub(super) fn engine(&self) -> io::Result<Engine> {
        match self {
            Self::Rings => Ok(Engine::Ring(Box::new(Ring::new()?))),
            Self::Pool(pool) => Ok(Engine::Pool(PoolQueue::new(Arc::clone(pool))?)),
        }
    }
}

impl Engine {
    /// Readable when there are answers.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        match self {
            Self::Ring(ring) => ring.event(),
            Self::Pool(queue) => queue.event(),
        }
    }

    /// Calls go to `disk` from now on, or to none. None may be under way.
    pub(super) fn set_disk(&mut self, disk: Option<&Disk>) -> io::Result<()> {
        match self {
            Self::Ring(ring) => ring.set_disk(disk),
            Self::Pool(queue) => {
                queue.set_disk(disk);
                Ok(())
            }
        }
    }

    /// Queues a call, of which [`start`](Self::start) lets the engine know. Its
    /// vectors must stay in place until it is answered.
    pub(super) fn queue(&mut self, number: u64, call: Call) -> io::Result<()> {
        match self {
            Self::Ring(ring) => ring.queue(number, call),
            Self::Pool(queue) => queue.queue(number, call),
        }
    }

    pub(super) fn start(&mut self) -> io::Result<()> {
        match self {
            Self::Ring(ring) => ring.start(),
            Self::Pool(_) => Ok(()),
        }
    }

    /// The next answer.
    pub(super) fn answer(&mut self) -> Option<Answer> {
        match self {
            Self::Ring(ring) => ring.answer(),
            Self::Pool(queue) => queue.answer(),
        }
    }

    /// Waits for the next answer; without a call under way, for ever.
    pub(super) fn wait(&mut self) -> Option<Answer> {
        match self {
            Self::Ring(ring) => ring.wait(),
            Self::Pool(queue) => queue.wait(),
        }
    }

    /// Nothing of the event is left over for the next wait.
    pub(super) fn clear_event(&self) {
        match self {
            Self::Ring(ring) => ring.clear_event(),
            Self::Pool(queue) => queue.clear_event(),
        }
    }
}
