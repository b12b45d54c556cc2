//! Devices of the virtual machine.

pub mod virtio;
