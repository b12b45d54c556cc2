//! The power switch: one I/O port, since without ACPI there is no other way off.
//! The agent writes to it as its last act.

pub const PORT: u16 = 0x604;
/// Orderly power-off.
pub const OFF: u8 = b'S';
