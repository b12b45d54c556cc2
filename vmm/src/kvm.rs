//! The host's KVM: opened by the parent process, checked here, turned into a
//! virtual machine with its interrupt controllers.
#![expect(unsafe_code, reason = "kvm-ioctls takes a raw descriptor over")]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{CpuId, KVM_API_VERSION};
use kvm_ioctls::{Cap, Kvm, MsrFilterDefaultAction, VmFd};
use thiserror::Error;

use crate::arch::x86_64::{cpuid, layout, msr};

/// What no microVM can do without.
const NEEDED: [(Cap, &str); 7] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

#[derive(Debug, Error)]
pub enum KvmError {
    #[error("KVM speaks API version {0}, not {KVM_API_VERSION}")]
    ApiVersion(i32),
    #[error("KVM lacks {0}")]
    Missing(&'static str),
    #[error("KVM made no virtual machine")]
    CreateVm(#[source] kvm_ioctls::Error),
    #[error("KVM refused {what}")]
    Setup {
        what: &'static str,
        #[source]
        source: kvm_ioctls::Error,
    },
    #[error("KVM does not tell the CPUID it supports")]
    Cpuid(#[source] kvm_ioctls::Error),
}

/// A virtual machine without memory, devices and processors.
#[derive(Debug)]
pub struct Machine {
    pub vm: VmFd,
    /// What processors of this host can be given.
    pub cpuid: CpuId,
}

impl Machine {
    pub fn new(kvm: OwnedFd) -> Result<Self, KvmError> {
        // SAFETY: the descriptor is ours alone, and open; `Kvm` closes it.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        check(&kvm)?;
        let vm = kvm.create_vm().map_err(KvmError::CreateVm)?;
        let setup = |what| move |source| KvmError::Setup { what, source };
        vm.set_tss_address(layout::KVM_TSS)
            .map_err(setup("the TSS address"))?;
        // No PIT: with kvmclock and the deadline timer the kernel has no use for it.
        vm.create_irq_chip()
            .map_err(setup("the interrupt controllers"))?;
        vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &[msr::NO_COUNTERS])
            .map_err(setup("the MSR filter"))?;
        let cpuid = kvm
            .get_supported_cpuid(cpuid::MAX_ENTRIES)
            .map_err(KvmError::Cpuid)?;
        Ok(Self { vm, cpuid })
    }
}

/// Whether this KVM can run microVMs at all.
pub fn check(kvm: &Kvm) -> Result<(), KvmError> {
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(KvmError::ApiVersion(version));
    }
    for (capability, name) in NEEDED {
        if !kvm.check_extension(capability) {
            return Err(KvmError::Missing(name));
        }
    }
    Ok(())
}
