//! containerd's shim, version 2: its command line and its Task API over a
//! [`Sandbox`](crate::sandbox::Sandbox). It translates; what happens is decided
//! there.
//!
//! Built on `containerd-shim-protos` alone. The `containerd-shim` crate would
//! choose the socket's place, install its own logger and signal handling, and
//! start a runtime before a mount namespace can be entered.
//!
//! <https://github.com/containerd/containerd/blob/main/core/runtime/v2/README.md>

mod args;
mod entry;
mod handover;
mod metrics;
mod serve;
mod signals;
mod standing;
mod task;

pub use args::{Action, Args, ArgsError};
pub use entry::{ShimError, main};
