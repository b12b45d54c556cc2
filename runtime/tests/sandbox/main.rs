//! The sandbox process end to end, against a VMM and an agent that are played by
//! this same test program: no KVM is needed, and everything that can go wrong in
//! a guest can be asked for by name.

#![expect(missing_debug_implementations, reason = "a test program")]

mod fake_agent;
mod fake_vmm;
mod harness;
mod life;
mod streams;
