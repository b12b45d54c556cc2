//! virtio-blk (virtio 1.3, section 5.2): a slot without a medium, so far.
//!
//! `device` is what the driver sees: a disk of no sectors, on which every
//! request fails, at once and with a status, so that no driver ever hangs.

mod device;

pub use device::Block;
