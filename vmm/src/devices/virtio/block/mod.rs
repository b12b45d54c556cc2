//! virtio-blk (virtio 1.3, section 5.2): a disk that comes when the microVM
//! already runs. Until then the slot has a capacity of 0.
//!
//! ```text
//!   driver ──queue──▶ request ──▶ drive ──job──▶ engine: ring (io_uring) or pool
//!          ◀─status──────────────── │  ◀─answer────┘            │
//!                                   └── disk ◀──────────────────┘
//! ```
//!
//! `device` is what the driver sees, `request` what it may ask for, `drive` the
//! slot on its thread. A request holds nobody up but its own kind: its memory
//! stays where it is until the engine has answered, whatever the driver does.

mod device;
mod disk;
mod drive;
mod engine;
mod job;
mod pool;
mod request;
mod ring;
#[cfg(test)]
mod tests;

pub use device::Block;
pub use disk::{DiskError, Medium};
pub use engine::Engines;
pub(crate) use ring::REGISTER_FILES_UPDATE;

/// The unit of the protocol; of the disk's own blocks the host takes care.
const SECTOR: u64 = 512;

const QUEUE_SIZE: u16 = 128;

/// A request has a descriptor for its header and one for its status, too.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// With the above it bounds a request, 126 MiB.
const SEGMENT_SIZE_MAX: u32 = 1 << 20;

/// 1 GiB: the host frees that at once.
const DISCARD_SECTORS_MAX: u32 = 1 << 21;

/// 64 MiB: what may have to be written, where the host has no better way.
const ZEROES_SECTORS_MAX: u32 = 1 << 17;

/// What a slot is called, so that a guest can tell one from another.
fn identity(slot: u8) -> [u8; request::ID_LEN] {
    let mut id = [0; request::ID_LEN];
    let name = format!("slot-{slot}");
    id[..name.len()].copy_from_slice(name.as_bytes());
    id
}
