//! The one thing the kernel wants of a keyboard controller: its reset line
//! (`reboot=k`, arch/x86/kernel/reboot.c).

pub const STATUS_PORT: u16 = 0x64;
pub const COMMAND_PORT: u16 = 0x64;
/// Status: neither buffer is full, so that the kernel need not wait.
pub const IDLE: u8 = 0;
/// Command: pulse the reset line.
pub const PULSE_RESET: u8 = 0xfe;
