//! Model-specific registers: at kernel entry as after reset, but for what makes
//! memory write-back and time start at zero; and those that a guest does not have.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{MsrFilterRange, MsrFilterRangeFlags, VcpuFd};
use thiserror::Error;

const IA32_TSC: u32 = 0x10;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;

/// AMD's oldest four performance counters, which no CPUID bit announces: kernels
/// try them, and KVM logs each try unless it is told that they are not there.
pub const NO_COUNTERS: MsrFilterRange<'static> = MsrFilterRange {
    flags: MsrFilterRangeFlags::READ.union(MsrFilterRangeFlags::WRITE),
    base: 0xc001_0000,
    msr_count: 8,
    bitmap: &[0],
};

const MISC_ENABLE_FAST_STRING: u64 = 1;
/// MTRRs on, everything write-back: without it the kernel maps RAM uncached.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

#[derive(Debug, Error)]
pub enum MsrError {
    #[error("model-specific registers cannot be collected")]
    Collect,
    #[error("KVM refused the model-specific registers")]
    Kvm(#[from] kvm_ioctls::Error),
    #[error("KVM refused model-specific register {0:#x}")]
    Refused(u32),
}

/// Sets them on one processor.
pub fn set(vcpu: &VcpuFd) -> Result<(), MsrError> {
    let entries = [
        (IA32_TSC, 0),
        (IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (IA32_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
    ]
    .map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..kvm_msr_entry::default()
    });
    let msrs = Msrs::from_entries(&entries).map_err(|_| MsrError::Collect)?;
    let set = vcpu.set_msrs(&msrs)?;
    match entries.get(set) {
        None => Ok(()),
        Some(refused) => Err(MsrError::Refused(refused.index)),
    }
}
