//! Guest memory under the type that virtiofsd's `Reader` and `Writer` are
//! written for.
//!
//! They take memory with the dirty bitmap of a vhost-user back end, which this
//! VMM's memory does not have: the same host mapping is described a second time.
#![expect(unsafe_code, reason = "describes a mapping that another object owns")]

use thiserror::Error;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion as _, GuestRegionCollectionError,
    GuestRegionMmap,
};

use crate::devices::virtio::GuestMemory;

#[derive(Debug, Error)]
pub(super) enum MemoryError {
    #[error("memory region at {0:#x} cannot be described")]
    Region(u64, #[source] MmapRegionError),
    #[error("memory region at {0:#x} ends past the address space")]
    Overflow(u64),
    #[error("memory regions cannot be collected")]
    Collection(#[source] GuestRegionCollectionError),
}

/// Guest memory as the FUSE server reads and writes it.
#[derive(Debug)]
pub(super) struct ServerMemory {
    regions: GuestMemoryMmap<BitmapMmapRegion>,
    /// Keeps mapped what `regions` points into.
    _owner: GuestMemory,
}

impl ServerMemory {
    pub(super) fn new(memory: GuestMemory) -> Result<Self, MemoryError> {
        let regions = memory
            .iter()
            .map(describe)
            .collect::<Result<Vec<_>, MemoryError>>()?;
        Ok(Self {
            regions: GuestMemoryMmap::from_regions(regions).map_err(MemoryError::Collection)?,
            _owner: memory,
        })
    }

    pub(super) fn get(&self) -> &GuestMemoryMmap<BitmapMmapRegion> {
        &self.regions
    }
}

fn describe(
    region: &GuestRegionMmap<()>,
) -> Result<GuestRegionMmap<BitmapMmapRegion>, MemoryError> {
    let base = region.start_addr();
    let builder = MmapRegionBuilder::new_with_bitmap(region.size(), BitmapMmapRegion::default())
        .with_mmap_prot(region.prot())
        .with_mmap_flags(region.flags());
    // SAFETY: the pointer is the start of a mapping of this size, which lives as
    // long as the `GuestMemory` that `ServerMemory` holds beside the description;
    // both views access it as volatile memory only.
    let builder = unsafe { builder.with_raw_mmap_pointer(region.as_ptr()) };
    let mapping = builder
        .build()
        .map_err(|source| MemoryError::Region(base.0, source))?;
    GuestRegionMmap::new(mapping, base).ok_or(MemoryError::Overflow(base.0))
}
