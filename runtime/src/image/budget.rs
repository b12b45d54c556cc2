//! Bounds on what one archive may put on the disk: bytes, entries, free space.

use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use rustix::fs::fstatvfs;

use crate::config::ImageLimits;

/// Free space is asked for again after this many bytes and this many entries.
const CHECK_EVERY_BYTES: u64 = 32 * 1024 * 1024;
const CHECK_EVERY_ENTRIES: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    #[error(
        "the archive unpacks to more than {0} bytes; raise image.max_unpacked_mib in \
         /etc/lazaret/config.toml if it is to be trusted"
    )]
    Bytes(u64),
    #[error(
        "the archive has more than {0} entries; raise image.max_entries in \
         /etc/lazaret/config.toml if it is to be trusted"
    )]
    Entries(u64),
    #[error("unpacking would leave less than {0} bytes free on the disk; free some space")]
    Disk(u64),
    #[error("the file system has no inodes left; remove some files")]
    Inodes,
    #[error("cannot read the free space of the disk")]
    Statvfs(#[source] io::Error),
}

/// What an archive has used of its limits.
#[derive(Debug)]
pub struct Budget {
    limits: ImageLimits,
    bytes: u64,
    entries: u64,
    unchecked_bytes: u64,
}

impl Budget {
    pub fn new(limits: ImageLimits) -> Self {
        // The first bytes and the first entry look at the disk.
        Self {
            limits,
            bytes: 0,
            entries: 0,
            unchecked_bytes: CHECK_EVERY_BYTES,
        }
    }

    /// Bytes announced so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn add_entry(&mut self, disk: BorrowedFd<'_>) -> Result<(), BudgetError> {
        self.entries += 1;
        if self.entries > self.limits.max_entries {
            return Err(BudgetError::Entries(self.limits.max_entries));
        }
        if self.entries % CHECK_EVERY_ENTRIES == 1 {
            self.check(disk)
        } else {
            Ok(())
        }
    }

    /// Announces a file of `size` bytes, holes included: a reader of the layer
    /// would see them all.
    pub fn add_file(&mut self, size: u64) -> Result<(), BudgetError> {
        self.bytes = self.bytes.saturating_add(size);
        let limit = self.limits.max_unpacked_bytes();
        if self.bytes > limit {
            Err(BudgetError::Bytes(limit))
        } else {
            Ok(())
        }
    }

    /// Accounts for bytes about to be written to the disk.
    pub fn write(&mut self, disk: BorrowedFd<'_>, bytes: usize) -> Result<(), BudgetError> {
        self.unchecked_bytes += bytes as u64;
        if self.unchecked_bytes >= CHECK_EVERY_BYTES {
            self.check(disk)
        } else {
            Ok(())
        }
    }

    fn check(&mut self, disk: BorrowedFd<'_>) -> Result<(), BudgetError> {
        self.unchecked_bytes = 0;
        let stat = fstatvfs(disk).map_err(|error| BudgetError::Statvfs(error.into()))?;
        let reserve = self.limits.reserve_bytes();
        if stat.f_bavail.saturating_mul(stat.f_frsize) < reserve.max(CHECK_EVERY_BYTES) {
            return Err(BudgetError::Disk(reserve));
        }
        // File systems that make inodes as they go, such as btrfs, count none.
        if stat.f_files > 0 && stat.f_favail < CHECK_EVERY_ENTRIES {
            return Err(BudgetError::Inodes);
        }
        Ok(())
    }
}

/// Fails once a stream has given more bytes than a layer may have.
#[derive(Debug)]
pub struct Limited<R> {
    stream: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Limited<R> {
    pub fn new(stream: R, limits: ImageLimits) -> Self {
        let limit = limits.max_unpacked_bytes();
        Self {
            stream,
            left: limit,
            limit,
        }
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => return Err(io::Error::other(BudgetError::Bytes(self.limit))),
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    fn limits(max_unpacked_mib: u64, max_entries: u64, reserve_mib: u64) -> ImageLimits {
        ImageLimits {
            max_unpacked_mib,
            max_entries,
            reserve_mib,
        }
    }

    #[test]
    fn a_file_larger_than_the_limit_is_refused_by_its_size_alone() {
        let mut budget = Budget::new(limits(1, 9, 0));
        assert!(budget.add_file(1024 * 1024).is_ok());
        assert!(matches!(budget.add_file(1), Err(BudgetError::Bytes(_))));
        let mut budget = Budget::new(limits(1, 9, 0));
        assert!(matches!(
            budget.add_file(u64::MAX),
            Err(BudgetError::Bytes(_))
        ));
    }

    #[test]
    fn entries_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let disk = std::fs::File::open(directory.path()).unwrap();
        let mut budget = Budget::new(limits(1, 2, 0));
        budget.add_entry(disk.as_fd()).unwrap();
        budget.add_entry(disk.as_fd()).unwrap();
        assert!(matches!(
            budget.add_entry(disk.as_fd()),
            Err(BudgetError::Entries(2))
        ));
    }

    #[test]
    fn the_reserve_of_the_disk_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let disk = std::fs::File::open(directory.path()).unwrap();
        let mut budget = Budget::new(limits(1, 9, 1 << 40));
        assert!(matches!(
            budget.write(disk.as_fd(), 1),
            Err(BudgetError::Disk(_))
        ));
    }

    #[test]
    fn a_stream_is_cut_off_at_the_limit() {
        let mut stream = Limited::new(io::repeat(0), limits(1, 9, 0));
        let error = io::copy(&mut stream, &mut io::sink()).unwrap_err();
        assert!(error.to_string().contains("image.max_unpacked_mib"));
    }
}
