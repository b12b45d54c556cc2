//! Gives guest memory back to the host: the one `madvise` of the devices.
#![expect(unsafe_code, reason = "madvise on guest memory")]

use std::io;

use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion as _};

/// Host page, and unit of the balloon (virtio 1.3, 5.5.6).
pub(super) const PAGE: u64 = 4096;

/// Frees the whole pages in `len` bytes from `start`; the guest finds zeros
/// there when it next looks. Says how many bytes they were. Addresses without
/// memory behind them are passed over.
pub(super) fn discard(memory: &GuestMemoryMmap, start: GuestAddress, len: u64) -> u64 {
    let mut freed = 0;
    let end = start.0.saturating_add(len);
    for region in memory.iter() {
        let first = start.0.max(region.start_addr().0);
        let Some(first) = first.checked_next_multiple_of(PAGE) else {
            continue;
        };
        let after = end.min(region.last_addr().0.saturating_add(1)) / PAGE * PAGE;
        let Some(bytes) = after.checked_sub(first).filter(|bytes| *bytes > 0) else {
            continue;
        };
        // Pages of a file shared with others go only by making a hole in it.
        let advice = if region.flags() & libc::MAP_SHARED == 0 {
            libc::MADV_DONTNEED
        } else {
            libc::MADV_REMOVE
        };
        match advise(memory, GuestAddress(first), bytes, advice) {
            Ok(()) => freed += bytes,
            Err(error) => tracing::debug!(%error, "guest memory not given back"),
        }
    }
    freed
}

fn advise(
    memory: &GuestMemoryMmap,
    start: GuestAddress,
    len: u64,
    advice: libc::c_int,
) -> io::Result<()> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let pages = memory.get_slice(start, len).map_err(io::Error::other)?;
    let host = pages.ptr_guard_mut().as_ptr();
    // SAFETY: `get_slice` has checked that these bytes are one region's mapping,
    // which lives as long as `memory`. Both kinds of advice replace contents by
    // zeros (or the backing file's bytes) and leave the mapping; no Rust
    // reference to guest memory exists that could see it change.
    let result = unsafe { libc::madvise(host.cast(), len, advice) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const BASE: u64 = 0x10_0000;

    fn memory() -> GuestMemoryMmap {
        let ranges = [
            (GuestAddress(0), 0x4000),
            (GuestAddress(BASE), 0x4000),
            (GuestAddress(BASE + 0x4000), 0x4000),
        ];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        for (start, len) in ranges {
            memory.write_slice(&vec![7; len], start).unwrap();
        }
        memory
    }

    fn bytes_left(memory: &GuestMemoryMmap) -> usize {
        memory
            .iter()
            .map(|region| {
                let mut bytes = vec![0; 0x4000];
                memory.read_slice(&mut bytes, region.start_addr()).unwrap();
                bytes.iter().filter(|byte| **byte > 0).count()
            })
            .sum()
    }

    #[test]
    fn whole_pages_only_are_freed() {
        let memory = memory();
        assert_eq!(discard(&memory, GuestAddress(1), 0x2fff), 0x2000);
        assert_eq!(discard(&memory, GuestAddress(BASE + 1), 0xffe), 0);
        assert_eq!(bytes_left(&memory), 3 * 0x4000 - 0x2000);
    }

    #[test]
    fn range_over_several_regions_and_a_hole_is_freed_where_memory_is() {
        let memory = memory();
        assert_eq!(discard(&memory, GuestAddress(0), u64::MAX), 0xc000);
        assert_eq!(bytes_left(&memory), 0);
    }

    #[test]
    fn range_without_memory_is_passed_over() {
        let memory = memory();
        for (start, len) in [
            (0x8000, 0x1000),
            (u64::MAX, u64::MAX),
            (u64::MAX - 0xfff, 0x1000),
            (BASE, 0),
        ] {
            assert_eq!(discard(&memory, GuestAddress(start), len), 0);
        }
        assert_eq!(bytes_left(&memory), 0xc000);
    }
}
