//! The agent of a lazaret microVM.
//!
//! ```text
//! host ── ttrpc, port AGENT ──▶ server ──▶ sandbox ──▶ container ──▶ process
//! host ── streams, port STREAM ──▶ streams ───────────▶ stdio ────────┘
//! ```
//! `main.rs` is PID 1 and owns what only PID 1 does (`init`, `power`); the rest runs
//! as any root process of a Linux host as well, which is how it is tested.
//!
//! **Invariant:** one thread runs everything. What must not be interrupted (making a
//! child and announcing it to the reaper) simply contains no `await`.

mod bpf;
mod cgroup;
pub mod container;
mod disks;
pub mod failure;
mod files;
mod guest;
pub mod init;
pub mod log;
mod loopback;
pub mod network;
pub mod power;
mod reaper;
pub mod sandbox;
pub mod server;
mod stdio;
pub mod streams;
mod watched;
