//! Threads as the engine of block slots, for hosts without `io_uring`: it may be
//! switched off (`kernel.io_uring_disabled`) or hidden by a container's filter.
#![expect(unsafe_code, reason = "preadv and pwritev on guest memory")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use parking_lot::Mutex;
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::disk::Disk;
use super::engine::Answer;
use super::job::{Call, Vectors};
use crate::event_loop::borrow;

/// For all slots of a microVM: one may wait for the disk while another works.
const THREADS: usize = 2;

/// A thread makes one call at a time.
const STACK_SIZE: usize = 64 << 10;

/// The threads.
#[derive(Debug)]
pub struct Pool {
    tasks: Sender<Task>,
}

/// A call, and where its answer goes.
#[derive(Debug)]
struct Task {
    number: u64,
    call: Call,
    disk: Arc<OwnedFd>,
    answers: Sender<Answer>,
    event: Arc<EventFd>,
}

/// One slot's share of the pool.
#[derive(Debug)]
pub(super) struct PoolQueue {
    pool: Arc<Pool>,
    disk: Option<Arc<OwnedFd>>,
    sender: Sender<Answer>,
    answers: Receiver<Answer>,
    event: Arc<EventFd>,
}

impl Pool {
    pub(super) fn start(confine: fn() -> io::Result<()>) -> io::Result<Self> {
        let (tasks, queue) = channel::<Task>();
        let queue = Arc::new(Mutex::new(queue));
        let (started, confined) = channel();
        for number in 0..THREADS {
            let (queue, started) = (Arc::clone(&queue), started.clone());
            thread::Builder::new()
                .name(format!("block-{number}"))
                .stack_size(STACK_SIZE)
                .spawn(move || {
                    let result = confine();
                    let failed = result.is_err();
                    // Whoever started this thread waits for the message.
                    let _ = started.send(result);
                    if !failed {
                        work(&queue);
                    }
                })?;
        }
        drop(started);
        for _ in 0..THREADS {
            let lost = |_| io::Error::other("a thread ended as it started");
            confined.recv().map_err(lost)??;
        }
        Ok(Self { tasks })
    }
}

fn work(queue: &Mutex<Receiver<Task>>) {
    loop {
        let next = queue.lock().recv();
        let Ok(task) = next else { return };
        let result = perform(&task.disk, task.call);
        // Nobody waits when the microVM is ending.
        let _ = task.answers.send((task.number, result));
        let _ = task.event.write(1);
    }
}

fn perform(disk: &OwnedFd, call: Call) -> Result<u32, Errno> {
    match call {
        Call::Read { vectors, offset } => transfer(libc::preadv2, disk, vectors, offset, 0),
        Call::Write { vectors, offset } => transfer(libc::pwritev2, disk, vectors, offset, 0),
        Call::WriteThrough { vectors, offset } => {
            transfer(libc::pwritev2, disk, vectors, offset, libc::RWF_DSYNC)
        }
        Call::Sync => rustix::fs::fdatasync(disk).map(|()| 0),
        Call::Allocate { mode, offset, len } => {
            let mode = rustix::fs::FallocateFlags::from_bits_retain(mode.cast_unsigned());
            rustix::fs::fallocate(disk, mode, offset, len).map(|()| 0)
        }
    }
}

/// `preadv2` or `pwritev2`
type Transfer = unsafe extern "C" fn(
    libc::c_int,
    *const libc::iovec,
    libc::c_int,
    libc::off_t,
    libc::c_int,
) -> libc::ssize_t;

fn transfer(
    call: Transfer,
    disk: &OwnedFd,
    vectors: Vectors,
    offset: u64,
    flags: libc::c_int,
) -> Result<u32, Errno> {
    let count = libc::c_int::try_from(vectors.count).map_err(|_| Errno::INVAL)?;
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::INVAL)?;
    // SAFETY: the vectors, and what they name, are kept in place by the job that
    // waits for the answer.
    let done = unsafe { call(disk.as_raw_fd(), vectors.first, count, offset, flags) };
    u32::try_from(done)
        .map_err(|_| Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}

impl PoolQueue {
    pub(super) fn new(pool: Arc<Pool>) -> io::Result<Self> {
        let (sender, answers) = channel();
        Ok(Self {
            pool,
            disk: None,
            sender,
            answers,
            event: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
        })
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        borrow(&self.event)
    }

    pub(super) fn clear_event(&self) {
        let _ = self.event.read();
    }

    pub(super) fn set_disk(&mut self, disk: Option<&Disk>) {
        self.disk = disk.map(Disk::file);
    }

    pub(super) fn queue(&self, number: u64, call: Call) -> io::Result<()> {
        let disk = self.disk.clone().ok_or(io::ErrorKind::NotFound)?;
        let task = Task {
            number,
            call,
            disk,
            answers: self.sender.clone(),
            event: Arc::clone(&self.event),
        };
        let sent = self.pool.tasks.send(task);
        sent.map_err(|_| io::Error::other("the threads have ended"))
    }

    pub(super) fn answer(&self) -> Option<Answer> {
        self.answers.try_recv().ok()
    }

    /// Waits for the next answer.
    pub(super) fn wait(&self) -> Option<Answer> {
        self.answers.recv().ok()
    }
}
