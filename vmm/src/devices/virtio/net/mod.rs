//! virtio-net (virtio 1.3, section 5.1): a slot whose link is down, so far.
//!
//! `device` is what the driver sees. Frames that it sends on a link that is
//! down go nowhere, as on a cable that is not plugged in.

mod device;

pub use device::{MacAddress, Net};
