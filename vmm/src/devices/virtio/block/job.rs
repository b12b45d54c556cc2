//! One request on its way to the disk and back: what is still to be done of it.
//!
//! The kernel may do a part of a transfer, or say that it cannot do what another
//! call of its can; a job then goes another round.
#![expect(unsafe_code, reason = "vectors of guest memory cross threads")]

use rustix::io::Errno;

use super::request::{Operation, Status};

/// Bytes of zeroes in memory, for files that cannot be told to have some.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// The zeroes above, several times in one write.
const ZERO_VECTORS_MAX: usize = 16;

/// A call for an engine to make. Its vectors stay where they are until it is
/// answered: they belong to a [`Job`] that waits for the answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    Read {
        vectors: Vectors,
        offset: u64,
    },
    Write {
        vectors: Vectors,
        offset: u64,
    },
    /// A write that is on the disk when it is done.
    WriteThrough {
        vectors: Vectors,
        offset: u64,
    },
    Sync,
    /// `fallocate`
    Allocate {
        mode: i32,
        offset: u64,
        len: u64,
    },
}

/// Where the kernel finds a transfer's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vectors {
    pub(super) first: *const libc::iovec,
    pub(super) count: u32,
}

// SAFETY: names memory that a job keeps in place until the call is answered, by
// whichever thread.
unsafe impl Send for Vectors {}

/// What a job does, in the order in which ways are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Read,
    Write {
        through: bool,
    },
    Sync,
    Discard,
    /// Frees the range, which then reads as zeroes.
    Punch,
    /// Makes the range read as zeroes without giving it back.
    Zero,
    WriteZeroes {
        through: bool,
    },
}

/// A request that an engine is busy with.
#[derive(Debug)]
pub(super) struct Job {
    work: Work,
    vectors: Vec<libc::iovec>,
    /// Vectors that are done.
    done: usize,
    offset: u64,
    /// Bytes to do.
    left: u64,
    through: bool,
}

// SAFETY: as for `Vectors`; the memory is guest memory or constant.
unsafe impl Send for Job {}

/// What follows an engine's answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The job's next call is to be made.
    Again,
    Done(Status),
}

impl Job {
    /// `None` for what is no engine's work. `through`: the driver knows of no
    /// flush, so that what it has written must stay written.
    pub(super) fn new(operation: &Operation<'_>, through: bool) -> Option<Self> {
        let (work, vectors, offset, left) = match operation {
            Operation::Read { offset, to } => (Work::Read, to.vectors(), *offset, to.len() as u64),
            Operation::Write { offset, from } => {
                let work = Work::Write { through };
                (work, from.vectors(), *offset, from.len() as u64)
            }
            Operation::Flush => (Work::Sync, Vec::new(), 0, 0),
            Operation::Discard { offset, len } => (Work::Discard, Vec::new(), *offset, *len),
            Operation::WriteZeroes { offset, len, unmap } => {
                let work = if *unmap { Work::Punch } else { Work::Zero };
                (work, Vec::new(), *offset, *len)
            }
            Operation::Identify { .. } => return None,
        };
        Some(Self {
            work,
            vectors,
            done: 0,
            offset,
            left,
            through,
        })
    }

    /// What the engine is to do next.
    pub(super) fn call(&self) -> Call {
        let offset = self.offset;
        let allocate = |mode| Call::Allocate {
            mode: mode | libc::FALLOC_FL_KEEP_SIZE,
            offset,
            len: self.left,
        };
        let vectors = self.rest();
        match self.work {
            Work::Read => Call::Read { vectors, offset },
            Work::Write { through: false } | Work::WriteZeroes { through: false } => {
                Call::Write { vectors, offset }
            }
            Work::Write { through: true } | Work::WriteZeroes { through: true } => {
                Call::WriteThrough { vectors, offset }
            }
            Work::Sync => Call::Sync,
            Work::Discard | Work::Punch => allocate(libc::FALLOC_FL_PUNCH_HOLE),
            Work::Zero => allocate(libc::FALLOC_FL_ZERO_RANGE),
        }
    }

    fn rest(&self) -> Vectors {
        let rest = &self.vectors[self.done..];
        Vectors {
            first: rest.as_ptr(),
            count: u32::try_from(rest.len()).unwrap_or(u32::MAX),
        }
    }

    /// Takes in the answer to the call: a count of bytes, or an error.
    pub(super) fn answered(&mut self, result: Result<u32, Errno>) -> Progress {
        let transfer = matches!(
            self.work,
            Work::Read | Work::Write { .. } | Work::WriteZeroes { .. }
        );
        match result {
            Ok(bytes) if transfer => self.advance(bytes.into()),
            // `fallocate` has no way to be asked for this itself.
            Ok(_) if self.through && matches!(self.work, Work::Punch | Work::Zero) => {
                self.work = Work::Sync;
                Progress::Again
            }
            Ok(_) => Progress::Done(Status::Ok),
            Err(Errno::INTR) => Progress::Again,
            // EINVAL: a range that a device's larger blocks do not divide into.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NODEV | Errno::NOSYS) => self.otherwise(),
            Err(_) => Progress::Done(Status::Failed),
        }
    }

    fn advance(&mut self, bytes: u64) -> Progress {
        // Nothing is left where the disk says that there is something: it has shrunk.
        if bytes == 0 || bytes > self.left {
            return Progress::Done(Status::Failed);
        }
        self.offset += bytes;
        self.left -= bytes;
        if self.left == 0 {
            return Progress::Done(Status::Ok);
        }
        if let Work::WriteZeroes { .. } = self.work {
            self.fill_with_zeroes();
            return Progress::Again;
        }
        let mut bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        while let Some(vector) = self.vectors.get_mut(self.done)
            && bytes >= vector.iov_len
        {
            bytes -= vector.iov_len;
            self.done += 1;
        }
        if let Some(vector) = self.vectors.get_mut(self.done) {
            vector.iov_base = vector.iov_base.wrapping_byte_add(bytes);
            vector.iov_len -= bytes;
        }
        Progress::Again
    }

    /// Another way to the same end, where there is one.
    fn otherwise(&mut self) -> Progress {
        match self.work {
            // A discard is advice.
            Work::Discard => Progress::Done(Status::Ok),
            Work::Punch => {
                self.work = Work::Zero;
                Progress::Again
            }
            Work::Zero => {
                let through = self.through;
                self.work = Work::WriteZeroes { through };
                self.fill_with_zeroes();
                Progress::Again
            }
            _ => Progress::Done(Status::Failed),
        }
    }

    fn fill_with_zeroes(&mut self) {
        self.vectors.clear();
        self.done = 0;
        let mut left = self.left;
        while left > 0 && self.vectors.len() < ZERO_VECTORS_MAX {
            let len = usize::try_from(left).map_or(ZEROES.len(), |left| left.min(ZEROES.len()));
            self.vectors.push(libc::iovec {
                iov_base: ZEROES.as_ptr().cast_mut().cast(),
                iov_len: len,
            });
            left -= len as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: Progress = Progress::Done(Status::Ok);

    fn zeroes(unmap: bool, through: bool) -> Job {
        let (offset, len) = (4096, 8192);
        let operation = Operation::WriteZeroes { offset, len, unmap };
        Job::new(&operation, through).unwrap()
    }

    /// `fallocate` of the job's range.
    fn allocates(job: &Job, kind: i32) -> bool {
        let wanted = kind | libc::FALLOC_FL_KEEP_SIZE;
        matches!(
            job.call(),
            Call::Allocate { mode, offset: 4096, len: 8192 } if mode == wanted
        )
    }

    #[test]
    fn zeroes_of_a_driver_without_flushes_are_on_the_disk_when_they_are_done() {
        for (unmap, kind) in [
            (true, libc::FALLOC_FL_PUNCH_HOLE),
            (false, libc::FALLOC_FL_ZERO_RANGE),
        ] {
            let mut job = zeroes(unmap, true);
            assert!(allocates(&job, kind));
            assert_eq!(job.answered(Ok(0)), Progress::Again);
            assert!(matches!(job.call(), Call::Sync));
            assert_eq!(job.answered(Err(Errno::INTR)), Progress::Again);
            assert!(matches!(job.call(), Call::Sync));
            assert_eq!(job.answered(Ok(0)), DONE);
            let mut job = zeroes(unmap, false);
            assert_eq!(job.answered(Ok(0)), DONE, "who flushes needs no more");
        }
    }

    #[test]
    fn zeroes_that_did_not_reach_the_disk_have_failed() {
        for error in [Errno::IO, Errno::INVAL] {
            let mut job = zeroes(false, true);
            assert_eq!(job.answered(Ok(0)), Progress::Again);
            assert_eq!(job.answered(Err(error)), Progress::Done(Status::Failed));
        }
    }

    #[test]
    fn each_way_to_zeroes_is_followed_by_the_next() {
        let mut job = zeroes(true, true);
        assert!(allocates(&job, libc::FALLOC_FL_PUNCH_HOLE));
        assert_eq!(job.answered(Err(Errno::OPNOTSUPP)), Progress::Again);
        assert!(allocates(&job, libc::FALLOC_FL_ZERO_RANGE));
        assert_eq!(job.answered(Err(Errno::OPNOTSUPP)), Progress::Again);
        assert!(matches!(job.call(), Call::WriteThrough { .. }));
        // Written through already.
        assert_eq!(job.answered(Ok(8192)), DONE);
    }

    #[test]
    fn discard_is_advice_that_nobody_waits_for() {
        let (offset, len) = (4096, 8192);
        let mut job = Job::new(&Operation::Discard { offset, len }, true).unwrap();
        assert_eq!(job.answered(Ok(0)), DONE);
    }
}
