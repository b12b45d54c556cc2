//! `io_uring` as the engine of a block slot.
//!
//! The ring is made before the process is confined, and confined itself: it knows
//! the few operations that a disk needs, on registered files alone, so that a
//! thread that has been taken over gains no system call by it.
#![expect(unsafe_code, reason = "the kernel is given addresses to work on")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use io_uring::register::Restriction;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::QUEUE_SIZE;
use super::disk::Disk;
use super::engine::Answer;
use super::job::Call;
use crate::event_loop::borrow;

/// `IORING_REGISTER_FILES_UPDATE`: how a disk is exchanged. No other call on the
/// ring's registrations is allowed, here and by the thread's filter.
pub(crate) const REGISTER_FILES_UPDATE: u32 = 6;

/// `IOSQE_FIXED_FILE`
const FIXED_FILE: u8 = 1;

/// The only registered file.
const DISK: Fixed = Fixed(0);

/// No file is registered.
const NO_DISK: i32 = -1;

pub(super) struct Ring {
    ring: IoUring,
    event: EventFd,
}

impl Ring {
    pub(super) fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let ring: IoUring = IoUring::builder()
            .setup_r_disabled()
            .build(QUEUE_SIZE.into())?;
        let submitter = ring.submitter();
        submitter.register_files(&[NO_DISK])?;
        submitter.register_eventfd(event.as_raw_fd())?;
        let update = u8::try_from(REGISTER_FILES_UPDATE).expect("6");
        submitter.register_restrictions(&mut [
            Restriction::register_op(update),
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_op(opcode::Fallocate::CODE),
            Restriction::sqe_flags_required(FIXED_FILE),
        ])?;
        submitter.register_enable_rings()?;
        Ok(Self { ring, event })
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        borrow(&self.event)
    }

    pub(super) fn clear_event(&self) {
        let _ = self.event.read();
    }

    pub(super) fn set_disk(&mut self, disk: Option<&Disk>) -> io::Result<()> {
        let fd = disk.map_or(NO_DISK, |disk| disk.as_fd().as_raw_fd());
        self.ring.submitter().register_files_update(0, &[fd])?;
        Ok(())
    }

    pub(super) fn queue(&mut self, number: u64, call: Call) -> io::Result<()> {
        let entry = entry(call).user_data(number);
        if self.ring.submission().is_full() {
            self.start()?;
        }
        // SAFETY: whoever queues a call keeps its vectors, and what they name, in
        // place until it is answered.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)
    }

    pub(super) fn start(&mut self) -> io::Result<()> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits for the next answer.
    pub(super) fn wait(&mut self) -> Option<Answer> {
        loop {
            if let Some(answer) = self.answer() {
                return Some(answer);
            }
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return None,
                _ => {}
            }
        }
    }

    pub(super) fn answer(&mut self) -> Option<Answer> {
        let entry = self.ring.completion().next()?;
        let result = u32::try_from(entry.result());
        let result = result.map_err(|_| Errno::from_raw_os_error(-entry.result()));
        Some((entry.user_data(), result))
    }
}

fn entry(call: Call) -> squeue::Entry {
    match call {
        Call::Read { vectors, offset } => opcode::Readv::new(DISK, vectors.first, vectors.count)
            .offset(offset)
            .build(),
        Call::Write { vectors, offset } => opcode::Writev::new(DISK, vectors.first, vectors.count)
            .offset(offset)
            .build(),
        Call::WriteThrough { vectors, offset } => {
            opcode::Writev::new(DISK, vectors.first, vectors.count)
                .offset(offset)
                .rw_flags(libc::RWF_DSYNC)
                .build()
        }
        Call::Sync => opcode::Fsync::new(DISK).flags(FsyncFlags::DATASYNC).build(),
        Call::Allocate { mode, offset, len } => opcode::Fallocate::new(DISK, len)
            .offset(offset)
            .mode(mode)
            .build(),
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}
