//! Guest RAM: anonymous memory that the host gives page by page as the guest
//! touches it, and KVM's memslots over it.
#![expect(unsafe_code, reason = "tells KVM of host mappings by address")]

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::{GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion as _};

use crate::arch::x86_64::layout;
use crate::devices::virtio::GuestMemory;

#[derive(Debug, Error)]
pub enum MemoryError {
    #[error("host gives no address space for {0} MiB of guest memory")]
    Map(u32, #[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("guest memory does not fit this host's addresses")]
    TooLarge,
    #[error("KVM refused the memory at {0:#x}")]
    Slot(u64, #[source] kvm_ioctls::Error),
}

/// Maps RAM of `memory_mib`; no page of it is there yet.
pub fn map(memory_mib: u32) -> Result<GuestMemory, MemoryError> {
    let ranges = layout::ram_ranges(memory_mib)
        .into_iter()
        .map(|(start, size)| {
            Ok((
                start,
                usize::try_from(size).map_err(|_| MemoryError::TooLarge)?,
            ))
        })
        .collect::<Result<Vec<_>, MemoryError>>()?;
    let memory = GuestMemoryMmap::from_ranges(&ranges)
        .map_err(|source| MemoryError::Map(memory_mib, Box::new(source)))?;
    Ok(Arc::new(memory))
}

/// Makes `memory` the guest's RAM. The caller keeps it mapped while the VM lives.
pub fn register(vm: &VmFd, memory: &GuestMemory) -> Result<(), MemoryError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let guest_phys_addr = region.start_addr().0;
        let memslot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is one whole mapping that `Vm` keeps beside the VM's
        // descriptor, and regions of one `GuestMemoryMmap` do not overlap.
        unsafe { vm.set_user_memory_region(memslot) }
            .map_err(|source| MemoryError::Slot(guest_phys_addr, source))?;
    }
    Ok(())
}
