//! The sandbox process end to end, against a VMM and an agent that are played by
//! this same test program: no KVM is needed, and everything that can go wrong in
//! a guest can be asked for by name.

#![allow(
    clippy::exit,
    clippy::print_stderr,
    clippy::unwrap_used,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test program, all of it"
)]

mod descriptors;
mod engine;
mod fake_agent;
mod fake_tap;
mod fake_vmm;
mod harness;
mod kill;
mod life;
mod mounts;
mod network;
mod oci;
mod streams;
