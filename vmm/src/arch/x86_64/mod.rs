//! x86-64: what a guest's processors and memory look like when its kernel is
//! entered by the 64-bit boot protocol.

pub mod boot_params;
pub mod cpuid;
pub mod layout;
pub mod mptable;
pub mod msr;
pub mod regs;
