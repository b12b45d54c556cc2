//! What is put into a block slot: an open file, whatever it is on the host.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, SeekFrom};
use rustix::io::Errno;
use thiserror::Error;

use super::SECTOR;
use super::request::Limits;

/// A file to be put into a slot.
#[derive(Debug)]
pub struct Medium {
    pub file: OwnedFd,
    pub read_only: bool,
}

/// Why a file cannot be put into a block slot.
#[derive(Debug, Error)]
pub enum DiskError {
    #[error("there is a disk in the slot already")]
    Occupied,
    #[error("a {0:?} is no disk: a regular file or a block device is needed")]
    Kind(FileType),
    #[error("the file is not open for reading{}", if *.write { " and writing" } else { "" })]
    Access { write: bool },
    #[error("the file is open for appending")]
    Append,
    #[error("a disk of {0} bytes has no sector")]
    Empty(u64),
    #[error("{step} failed")]
    Step {
        step: &'static str,
        #[source]
        source: std::io::Error,
    },
}

impl DiskError {
    pub(super) fn step(step: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Step { step, source }
    }
}

/// A file in a slot.
#[derive(Debug)]
pub(super) struct Disk {
    file: Arc<OwnedFd>,
    pub(super) limits: Limits,
}

impl Disk {
    pub(super) fn new(medium: Medium) -> Result<Self, DiskError> {
        let Medium { file, read_only } = medium;
        let stat = rustix::fs::fstat(&file).map_err(step("looking at the file"))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
            return Err(DiskError::Kind(kind));
        }
        let flags = rustix::fs::fcntl_getfl(&file).map_err(step("looking at the file"))?;
        let access = flags & OFlags::RWMODE;
        let readable = access == OFlags::RDWR || (read_only && access == OFlags::RDONLY);
        if !readable || flags.contains(OFlags::PATH) {
            return Err(DiskError::Access { write: !read_only });
        }
        if flags.contains(OFlags::APPEND) {
            return Err(DiskError::Append);
        }
        // Of a block device, fstat does not know the size.
        let bytes = rustix::fs::seek(&file, SeekFrom::End(0)).map_err(step("sizing the disk"))?;
        let sectors = bytes / SECTOR;
        if sectors == 0 {
            return Err(DiskError::Empty(bytes));
        }
        Ok(Self {
            file: Arc::new(file),
            limits: Limits { sectors, read_only },
        })
    }

    /// For a thread that works on it.
    pub(super) fn file(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.file)
    }
}

impl AsFd for Disk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn step(step: &'static str) -> impl Fn(Errno) -> DiskError {
    move |error| DiskError::step(step)(error.into())
}
