//! What a driver asks for in a chain (virtio 1.3, 5.2.6): parsing and checks,
//! nothing else. A request is answered by its status, the chain's last byte.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, GuestAddress, GuestMemoryMmap};

use super::{DISCARD_SECTORS_MAX, SECTOR, SEGMENT_SIZE_MAX, SEGMENTS_MAX, ZEROES_SECTORS_MAX};
use crate::devices::virtio::buffers::{Buffers, Chain, DESCRIPTORS_MAX};

/// Type, a reserved word, sector.
const HEADER_LEN: usize = 16;

/// Sector, number of sectors, flags.
const RANGE_LEN: usize = 16;

/// Most bytes of one request: what a driver that keeps to the limits can ask for.
const DATA_MAX: usize = SEGMENTS_MAX as usize * SEGMENT_SIZE_MAX as usize;

pub(super) const ID_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    Failed,
    Unsupported,
}

impl Status {
    pub(super) fn byte(self) -> u8 {
        let status = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::Failed => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        status.to_le_bytes()[0]
    }
}

/// What may be asked of a medium.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) sectors: u64,
    pub(super) read_only: bool,
}

/// A chain with a status byte.
#[derive(Debug)]
pub(super) struct Request<'m> {
    /// Refused at once, or to be done.
    pub(super) operation: Result<Operation<'m>, Status>,
    /// Where its status goes, in guest memory.
    pub(super) status: GuestAddress,
    /// Bytes of the answer: the status, and what is in front of it.
    pub(super) answer_len: usize,
}

/// What is to be done; within the medium's limits.
#[derive(Debug)]
pub(super) enum Operation<'m> {
    Read { offset: u64, to: Buffers<'m> },
    Write { offset: u64, from: Buffers<'m> },
    Flush,
    Discard { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, unmap: bool },
    Identify { to: Buffers<'m> },
}

impl<'m> Request<'m> {
    /// `None` for a chain without room for a status, which can only be given back.
    pub(super) fn parse(
        chain: Chain<'m>,
        memory: &'m GuestMemoryMmap,
        limits: Limits,
    ) -> Option<Self> {
        let mut parts = Parts::of(chain, memory)?;
        let answer_len = parts.writable.len();
        parts.writable.truncate(answer_len - 1);
        let operation = parts
            .readable
            .and_then(|readable| operation(readable, parts.writable, limits));
        Some(Self {
            operation,
            status: parts.status,
            answer_len,
        })
    }
}

/// A chain taken apart.
#[derive(Debug)]
struct Parts<'m> {
    readable: Result<Buffers<'m>, Status>,
    /// With the status at its end: at least a byte.
    writable: Buffers<'m>,
    status: GuestAddress,
}

impl<'m> Parts<'m> {
    /// Each descriptor is looked at once: a driver may change it at any time, and
    /// the parts must agree. `None` without room for a status.
    fn of(chain: impl Iterator<Item = Descriptor>, memory: &'m GuestMemoryMmap) -> Option<Self> {
        let mut readable = Ok(Buffers::default());
        let mut writable = Buffers::default();
        let mut status = None;
        for (at, descriptor) in chain.enumerate() {
            if at == DESCRIPTORS_MAX {
                return None;
            }
            if descriptor.is_write_only() {
                writable.push(&descriptor, memory).ok()?;
                if let Some(before) = descriptor.len().checked_sub(1) {
                    status = Some(descriptor.addr().checked_add(before.into())?);
                }
            } else if let Ok(buffers) = &mut readable
                && buffers.push(&descriptor, memory).is_err()
            {
                readable = Err(Status::Failed);
            }
        }
        Some(Self {
            readable,
            writable,
            status: status?,
        })
    }
}

fn operation<'m>(
    mut readable: Buffers<'m>,
    writable: Buffers<'m>,
    limits: Limits,
) -> Result<Operation<'m>, Status> {
    let mut header = [0; HEADER_LEN];
    if readable.copy_to(&mut header) < HEADER_LEN {
        return Err(Status::Failed);
    }
    readable.skip(HEADER_LEN);
    let [kind, _, low, high] = words(header);
    let sector = u64::from(high) << 32 | u64::from(low);
    match kind {
        VIRTIO_BLK_T_IN => Ok(Operation::Read {
            offset: limits.transfer(sector, writable.len())?,
            to: writable,
        }),
        VIRTIO_BLK_T_OUT => Ok(Operation::Write {
            offset: limits.writable()?.transfer(sector, readable.len())?,
            from: readable,
        }),
        VIRTIO_BLK_T_FLUSH => limits.present().map(|()| Operation::Flush),
        VIRTIO_BLK_T_GET_ID if writable.len() >= ID_LEN => Ok(Operation::Identify { to: writable }),
        VIRTIO_BLK_T_GET_ID => Err(Status::Failed),
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            range(kind, &readable, limits.writable()?)
        }
        _ => Err(Status::Unsupported),
    }
}

/// The one range of a discard or a write of zeroes.
fn range<'m>(kind: u32, readable: &Buffers<'m>, limits: Limits) -> Result<Operation<'m>, Status> {
    let mut range = [0; RANGE_LEN];
    if readable.len() != RANGE_LEN || readable.copy_to(&mut range) != RANGE_LEN {
        return Err(Status::Failed);
    }
    let [low, high, sectors, flags] = words(range);
    let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    let discard = kind == VIRTIO_BLK_T_DISCARD;
    if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || (discard && unmap) {
        return Err(Status::Unsupported);
    }
    let most = if discard {
        DISCARD_SECTORS_MAX
    } else {
        ZEROES_SECTORS_MAX
    };
    if sectors > most {
        return Err(Status::Failed);
    }
    let offset = limits.within(u64::from(high) << 32 | u64::from(low), sectors.into())?;
    let len = u64::from(sectors) * SECTOR;
    Ok(if discard {
        Operation::Discard { offset, len }
    } else {
        Operation::WriteZeroes { offset, len, unmap }
    })
}

impl Limits {
    /// There is a medium.
    fn present(self) -> Result<(), Status> {
        if self.sectors == 0 {
            return Err(Status::Failed);
        }
        Ok(())
    }

    fn writable(self) -> Result<Self, Status> {
        if self.read_only {
            return Err(Status::Failed);
        }
        Ok(self)
    }

    /// Where a transfer of `len` bytes begins.
    fn transfer(self, sector: u64, len: usize) -> Result<u64, Status> {
        if len > DATA_MAX {
            return Err(Status::Failed);
        }
        let len = len as u64;
        if !len.is_multiple_of(SECTOR) {
            return Err(Status::Failed);
        }
        self.within(sector, len / SECTOR)
    }

    /// Where a range that must not be empty begins, bytes.
    fn within(self, sector: u64, sectors: u64) -> Result<u64, Status> {
        match sector.checked_add(sectors) {
            Some(end) if end <= self.sectors && sectors > 0 => Ok(sector * SECTOR),
            _ => Err(Status::Failed),
        }
    }
}

/// Little-endian words.
fn words(bytes: [u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|at| u32::from_le_bytes(words[at]))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::mock::MockSplitQueue;
    use virtio_queue::{Queue, QueueOwnedT};
    use vm_memory::Bytes;

    use super::*;

    const NEXT: u16 = 1;
    const WRITABLE: u16 = 2;

    const OUTSIDE: u64 = 1 << 40;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    /// Readable and writable bytes of (address, length, writable), and the status.
    fn split(parts: &[(u64, u32, bool)]) -> Option<(Option<usize>, usize, u64)> {
        let memory = memory();
        let chain = parts.iter().map(|&(address, len, writable)| {
            Descriptor::new(address, len, if writable { WRITABLE } else { 0 }, 0)
        });
        let parts = Parts::of(chain, &memory)?;
        let readable = parts.readable.ok().map(|buffers| buffers.len());
        Some((readable, parts.writable.len(), parts.status.0))
    }

    #[test]
    fn status_is_the_last_writable_byte() {
        let chain = [(0, 16, false), (0x1000, 512, true), (0x3000, 1, true)];
        assert_eq!(split(&chain), Some((Some(16), 513, 0x3000)));
        assert_eq!(split(&chain[..2]), Some((Some(16), 512, 0x11ff)));
        // Whatever comes after it: an empty descriptor, or one to read.
        let chain = [(0x1000, 8, true), (0x2000, 0, true), (0, 16, false)];
        assert_eq!(split(&chain), Some((Some(16), 8, 0x1007)));
    }

    #[test]
    fn chain_without_a_place_for_the_status_has_no_parts() {
        let chains: [&[(u64, u32, bool)]; 5] = [
            &[],
            &[(0, 16, false)],
            &[(0, 16, false), (0x1000, 0, true)],
            &[(0, 16, false), (OUTSIDE, 1, true)],
            &[(0x1000, 1, true), (u64::MAX - 4, 512, true)],
        ];
        for chain in chains {
            assert_eq!(split(chain), None, "{chain:?}");
        }
        assert_eq!(split(&[(0x1000, 1, true); DESCRIPTORS_MAX + 1]), None);
        assert!(split(&[(0x1000, 1, true); DESCRIPTORS_MAX]).is_some());
    }

    #[test]
    fn what_cannot_be_read_is_no_reason_to_leave_the_status_out() {
        let chain = [(OUTSIDE, 16, false), (0, 4, false), (0x1000, 1, true)];
        assert_eq!(split(&chain), Some((None, 1, 0x1000)));
    }

    /// Ends the driver's doings with the test, however that ends.
    struct Stop<'a>(&'a AtomicBool);

    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn driver_that_turns_a_descriptor_around_meanwhile_gets_one_answer() {
        const CHANGES: usize = 1000;
        let memory = memory();
        let driver = MockSplitQueue::new(&memory, 16);
        let store = |index, address, len, flags| {
            let descriptor = Descriptor::new(address, len, flags, index + 1);
            let descriptor = RawDescriptor::from(descriptor);
            driver.desc_table().store(index, descriptor).unwrap();
        };
        store(0, 0x8000, 16, NEXT);
        store(1, 0x9000, 1, WRITABLE);
        driver.avail().idx().store(1);
        let mut queue: Queue = driver.create_queue().unwrap();
        let chain = queue.iter(&memory).unwrap().next().unwrap();
        let flags = driver.desc_table_addr().unchecked_add(16 + 12);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for turned in [0, WRITABLE] {
                        memory.store(turned, flags, Ordering::Relaxed).unwrap();
                    }
                }
            });
            let _stop = Stop(&done);
            let (mut changes, mut had_room) = (0, true);
            while changes < CHANGES {
                let request = Request::parse(chain.clone(), &memory, Limits::default());
                changes += usize::from(request.is_some() != had_room);
                had_room = request.is_some();
                if let Some(request) = request {
                    assert_eq!(request.answer_len, 1);
                    assert_eq!(request.status, GuestAddress(0x9000));
                }
            }
        });
    }
}
