//! The zero page: what the boot protocol tells the kernel
//! (Documentation/arch/x86/boot.rst, zero-page.rst).
#![expect(unsafe_code, reason = "the kernel's structures are written as bytes")]

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use thiserror::Error;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;
use crate::kernel::Initramfs;

/// `xloadflags` is of bzImages; these three fields are all an ELF kernel reads.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// "Other" boot loader.
const LOADER_TYPE: u8 = 0xff;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;

#[derive(Debug, Error)]
pub enum BootParamsError {
    #[error("kernel command line of {0} bytes is longer than {max}", max = layout::CMDLINE_MAX - 1)]
    CmdlineTooLong(usize),
    #[error("boot parameters do not fit into guest memory")]
    Write(#[from] GuestMemoryError),
}

#[repr(transparent)]
#[derive(Clone, Copy, Default)]
struct ZeroPage(boot_params);

// SAFETY: a packed structure of integers: no padding, and every bit pattern is valid.
unsafe impl ByteValued for ZeroPage {}

/// Writes the command line and the zero page.
pub fn write(
    memory: &GuestMemoryMmap<()>,
    memory_mib: u32,
    cmdline: &str,
    initramfs: Initramfs,
) -> Result<(), BootParamsError> {
    if cmdline.len() >= layout::CMDLINE_MAX {
        return Err(BootParamsError::CmdlineTooLong(cmdline.len()));
    }
    memory.write_slice(cmdline.as_bytes(), layout::CMDLINE)?;
    let end = GuestAddress(layout::CMDLINE.0 + cmdline.len() as u64);
    memory.write_obj(0_u8, end)?;

    let mut page = ZeroPage::default();
    let header = &mut page.0.hdr;
    header.type_of_loader = LOADER_TYPE;
    header.boot_flag = BOOT_FLAG;
    header.header = HEADER_MAGIC;
    header.cmd_line_ptr = low_address(layout::CMDLINE);
    header.cmdline_size = u32::try_from(cmdline.len()).unwrap_or(u32::MAX);
    header.ramdisk_image = low_address(initramfs.start);
    header.ramdisk_size = initramfs.size;

    let map = e820(memory_mib);
    page.0.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
    page.0.e820_table[..map.len()].copy_from_slice(&map);
    memory.write_obj(page, layout::ZERO_PAGE)?;
    Ok(())
}

/// Everything that the header points to is below 4 GiB by layout.
fn low_address(address: GuestAddress) -> u32 {
    u32::try_from(address.0).expect("boot structures are below 4 GiB")
}

fn e820(memory_mib: u32) -> Vec<boot_e820_entry> {
    let entry = |start: u64, end: u64, type_| boot_e820_entry {
        addr: start,
        size: end - start,
        type_,
    };
    let mut map = vec![
        entry(0, layout::EBDA.0, E820_RAM),
        entry(layout::EBDA.0, layout::KERNEL_RAM_START.0, E820_RESERVED),
    ];
    for (start, size) in layout::ram_ranges(memory_mib) {
        let first = start.0.max(layout::KERNEL_RAM_START.0);
        map.push(entry(first, start.0 + size, E820_RAM));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(memory_mib: u32) -> Vec<(u64, u64, u32)> {
        e820(memory_mib)
            .into_iter()
            .map(|entry| (entry.addr, entry.addr + entry.size, entry.type_))
            .collect()
    }

    #[test]
    fn map_covers_ram_and_leaves_the_holes_out() {
        assert_eq!(
            ranges(5120),
            [
                (0, 0x9_fc00, E820_RAM),
                (0x9_fc00, 0x10_0000, E820_RESERVED),
                (0x10_0000, 3 << 30, E820_RAM),
                (4 << 30, 6 << 30, E820_RAM),
            ]
        );
    }

    #[test]
    fn overlong_command_line_is_refused() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let initramfs = Initramfs {
            start: GuestAddress(0),
            size: 0,
        };
        let cmdline = "x".repeat(layout::CMDLINE_MAX);
        assert!(matches!(
            write(&memory, 64, &cmdline, initramfs),
            Err(BootParamsError::CmdlineTooLong(2048))
        ));
    }
}
