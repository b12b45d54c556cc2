//! The one vocabulary between the sandbox process and the guest's agent: vsock
//! ports, the handshake line and the ttrpc service of `agent.proto`.

pub mod features;
mod hello;
pub mod ports;

#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    missing_debug_implementations,
    nonstandard_style,
    unused,
    reason = "generated code"
)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::allow_attributes_without_reason,
    missing_debug_implementations,
    nonstandard_style,
    unused,
    reason = "generated code"
)]
pub mod agent_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}

pub use hello::{HELLO_LINE_MAX, Hello, HelloError, PROTOCOL_VERSION};

/// Tag of the virtio-fs device that carries the shared directory.
pub const SHARED_TAG: &str = "shared";

/// Where the guest mounts the shared directory; `<container id>/rootfs` below it
/// is a container's root.
pub const GUEST_SHARED_DIR: &str = "/run/lazaret/shared";

/// Longest message that the host takes from the agent, bytes. Short, since what is
/// decoded may take 160 times the memory, of which the sandbox process has little.
pub const REPLY_MAX: usize = 64 * 1024;

/// Most processes that a list of a container's names.
pub const PROCESSES_MAX: usize = 2000;

/// I/O port through which the agent powers the guest off.
pub const POWER_PORT: u16 = 0x604;

/// Byte that, written to [`POWER_PORT`], means an orderly power-off.
pub const POWER_OFF: u8 = b'S';
