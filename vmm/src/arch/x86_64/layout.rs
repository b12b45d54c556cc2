//! Where things are in guest-physical memory.
//!
//! ```text
//! 0                 boot structures, below 1 MiB
//! 16 MiB            kernel (its own link address)
//! end of low RAM    initramfs, just below it
//! 3 GiB … 4 GiB     no RAM: virtio-mmio, I/O APIC, local APIC, KVM's TSS
//! 4 GiB             the rest of RAM
//! above all RAM     virtio-fs DAX window
//! ```

use vm_memory::GuestAddress;

/// RAM stops here and goes on at [`HIGH_RAM_START`].
pub const LOW_RAM_END: u64 = 3 << 30;
pub const HIGH_RAM_START: u64 = 4 << 30;

/// Global descriptor table at kernel entry.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// Empty interrupt descriptor table at kernel entry.
pub const IDT: GuestAddress = GuestAddress(0x520);
/// `struct boot_params`.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
pub const BOOT_STACK: GuestAddress = GuestAddress(0x8ff0);
/// Three pages: one table of each level, the first GiB mapped onto itself.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
pub const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Bytes, the closing zero included (`COMMAND_LINE_SIZE` of the kernel).
pub const CMDLINE_MAX: usize = 2048;
/// The last KiB of conventional memory, where the kernel looks for MP tables.
pub const EBDA: GuestAddress = GuestAddress(0x9_fc00);
pub const EBDA_SIZE: usize = 0x400;
/// From here on everything belongs to the kernel.
pub const KERNEL_RAM_START: GuestAddress = GuestAddress(0x10_0000);

/// The warm-boot flag of the BIOS data area.
pub const WARM_BOOT_FLAG: GuestAddress = GuestAddress(0x472);

/// First virtio-mmio window; each slot takes one page.
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// First interrupt line of the virtio-mmio slots.
pub const VIRTIO_IRQ_BASE: u32 = 5;

pub const IOAPIC: u32 = 0xfec0_0000;
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Lines of KVM's I/O APIC.
pub const IOAPIC_LINES: u8 = 24;
/// Three pages that KVM needs on processors without unrestricted guest mode.
pub const KVM_TSS: usize = 0xfffb_d000;

/// RAM as (start, bytes) for a machine of `memory_mib`.
pub fn ram_ranges(memory_mib: u32) -> Vec<(GuestAddress, u64)> {
    let size = u64::from(memory_mib) << 20;
    if size <= LOW_RAM_END {
        return vec![(GuestAddress(0), size)];
    }
    vec![
        (GuestAddress(0), LOW_RAM_END),
        (GuestAddress(HIGH_RAM_START), size - LOW_RAM_END),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_is_one_range() {
        assert_eq!(ram_ranges(64), [(GuestAddress(0), 64 << 20)]);
        assert_eq!(ram_ranges(3072), [(GuestAddress(0), 3 << 30)]);
    }

    #[test]
    fn memory_above_3_gib_goes_on_past_the_hole() {
        assert_eq!(
            ram_ranges(5120),
            [(GuestAddress(0), 3 << 30), (GuestAddress(4 << 30), 2 << 30)]
        );
    }
}
