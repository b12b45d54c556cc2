//! Loads the guest kernel (an ELF `vmlinux`) and its initramfs.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use linux_loader::loader::{Elf, KernelLoader};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, GuestMemoryError, GuestMemoryMmap};

use crate::arch::x86_64::layout;

const PAGE: u64 = 4096;

#[derive(Debug, Error)]
pub enum KernelError {
    #[error("guest kernel is not a usable ELF vmlinux: {0}")]
    Elf(linux_loader::loader::Error),
    #[error("initramfs cannot be read")]
    InitramfsRead(#[source] io::Error),
    #[error("initramfs is empty")]
    InitramfsEmpty,
    #[error("kernel and initramfs of {initramfs} bytes do not fit into {memory} bytes of memory")]
    NoRoom { initramfs: u64, memory: u64 },
    #[error("initramfs cannot be copied into guest memory")]
    InitramfsCopy(#[source] GuestMemoryError),
}

/// Where the kernel is entered, and the first byte behind it.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    pub entry: GuestAddress,
    pub end: u64,
}

/// The initramfs in guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Initramfs {
    pub start: GuestAddress,
    /// Bytes.
    pub size: u32,
}

/// Loads each segment at its physical address.
pub fn load(memory: &GuestMemoryMmap<()>, mut image: File) -> Result<Kernel, KernelError> {
    let loaded = Elf::load(memory, None, &mut image, Some(layout::KERNEL_RAM_START))
        .map_err(KernelError::Elf)?;
    Ok(Kernel {
        entry: loaded.kernel_load,
        end: loaded.kernel_end,
    })
}

/// Puts the initramfs at the end of low memory, as far from the kernel as can be.
pub fn load_initramfs(
    memory: &GuestMemoryMmap<()>,
    kernel: Kernel,
    mut image: File,
) -> Result<Initramfs, KernelError> {
    let size = image
        .seek(SeekFrom::End(0))
        .map_err(KernelError::InitramfsRead)?;
    image.rewind().map_err(KernelError::InitramfsRead)?;
    if size == 0 {
        return Err(KernelError::InitramfsEmpty);
    }
    let low_end = (memory.last_addr().0 + 1).min(layout::LOW_RAM_END);
    let start = low_end
        .checked_sub(size)
        .map(|start| start / PAGE * PAGE)
        .filter(|start| *start >= kernel.end);
    let (Some(start), Ok(size)) = (start, u32::try_from(size)) else {
        return Err(KernelError::NoRoom {
            initramfs: size,
            memory: low_end,
        });
    };
    let start = GuestAddress(start);
    memory
        .read_exact_volatile_from(start, &mut image, size as usize)
        .map_err(KernelError::InitramfsCopy)?;
    Ok(Initramfs { start, size })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn memory(mib: usize) -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), mib << 20)]).unwrap()
    }

    #[test]
    fn what_is_no_elf_is_refused() {
        for bytes in [&b""[..], b"\x7fELF", &[0; 4096]] {
            assert!(matches!(
                load(&memory(1), file(bytes)),
                Err(KernelError::Elf(_))
            ));
        }
    }

    #[test]
    fn initramfs_ends_with_memory() {
        let kernel = Kernel {
            entry: GuestAddress(0),
            end: 1 << 20,
        };
        let loaded = load_initramfs(&memory(2), kernel, file(&[7; 5000])).unwrap();
        assert_eq!(loaded.start, GuestAddress((2 << 20) - 8192));
        assert_eq!(loaded.size, 5000);
    }

    #[test]
    fn initramfs_that_would_cover_the_kernel_is_refused() {
        let kernel = Kernel {
            entry: GuestAddress(0),
            end: (1 << 20) - 4096,
        };
        let error = load_initramfs(&memory(1), kernel, file(&[0; 5000])).unwrap_err();
        assert!(matches!(
            error,
            KernelError::NoRoom {
                initramfs: 5000,
                ..
            }
        ));
    }

    #[test]
    fn empty_initramfs_is_refused() {
        let kernel = Kernel {
            entry: GuestAddress(0),
            end: 0,
        };
        let error = load_initramfs(&memory(1), kernel, file(b"")).unwrap_err();
        assert!(matches!(error, KernelError::InitramfsEmpty));
    }
}
