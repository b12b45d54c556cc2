//! Devices of the virtual machine: virtio, and the three legacy ports that a
//! kernel without ACPI needs.

pub mod i8042;
pub mod power;
pub mod serial;
pub mod virtio;
