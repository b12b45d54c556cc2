//! virtio-net (virtio 1.3, section 5.1): Ethernet frames between a guest's driver
//! and a tap that comes when the microVM already runs.
//!
//! ```text
//!   driver ──transmit queue──▶ transmit ──▶ tap ──▶ host's network stack
//!          ◀──receive queue─── receive  ◀── tap ◀──
//! ```
//!
//! `device` is what the driver sees; `datapath` is the slot on its thread. All
//! offloads that a tap can have are offered at boot, when there is none yet; a
//! tap is told what was negotiated, when the later of the two comes. There is no
//! `VIRTIO_NET_F_MTU`: a driver takes it for good when it starts.

mod datapath;
mod device;
mod offload;
mod receive;
mod tap;
#[cfg(test)]
mod tests;
mod transmit;

pub use device::{MacAddress, Net};
pub(crate) use offload::ALL_OFFLOADS;
pub use tap::TapError;

/// Longest frame without its header: 64 KiB of segments not cut yet behind the
/// Ethernet header and tags.
const FRAME_MAX: usize = (64 << 10) + 64;
