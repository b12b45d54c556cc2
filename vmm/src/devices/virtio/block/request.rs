//! What a driver asks for in a chain (virtio 1.3, 5.2.6): parsing and checks,
//! nothing else. A request is answered by its status, the chain's last byte.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Address, GuestAddress, GuestMemoryMmap};

use super::{DISCARD_SECTORS_MAX, SECTOR, SEGMENT_SIZE_MAX, SEGMENTS_MAX, ZEROES_SECTORS_MAX};
use crate::devices::virtio::buffers::{Buffers, Chain};

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
        let mut writable = Buffers::writable(chain.clone(), memory).ok()?;
        let answer_len = writable.len();
        let last = chain
            .clone()
            .filter(|part| part.is_write_only() && part.len() > 0)
            .last()?;
        let status = last.addr().checked_add(u64::from(last.len()) - 1)?;
        writable.truncate(answer_len - 1);
        let operation = match Buffers::readable(chain, memory) {
            Ok(readable) => operation(readable, writable, limits),
            Err(_) => Err(Status::Failed),
        };
        Some(Self {
            operation,
            status,
            answer_len,
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
