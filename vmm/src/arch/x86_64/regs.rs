//! Registers at kernel entry: 64-bit mode, paging on, the zero page in RSI
//! (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;

const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS: u64 = 2;

const PTE_PRESENT_WRITABLE: u64 = 3;
const PTE_LARGE: u64 = 1 << 7;
const LARGE_PAGE: u64 = 2 << 20;
const TABLE_ENTRIES: u64 = 512;
const PAGE: u64 = 4096;

/// Null, unused, 64-bit code, data, task state: `boot.rst` wants code at 0x10
/// and data at 0x18.
const GDT: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

#[derive(Debug, Error)]
pub enum RegsError {
    #[error("boot structures do not fit into guest memory")]
    Memory(#[from] GuestMemoryError),
    #[error("KVM refused {what}")]
    Kvm {
        what: &'static str,
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// Writes the descriptor and page tables all processors start with.
pub fn write_tables(memory: &GuestMemoryMmap<()>) -> Result<(), GuestMemoryError> {
    for (entry, address) in GDT.iter().zip((layout::GDT.0..).step_by(8)) {
        memory.write_obj(*entry, GuestAddress(address))?;
    }
    memory.write_obj(0_u64, layout::IDT)?;

    let pml4 = layout::PAGE_TABLES;
    let pdpt = pml4.unchecked_add(PAGE);
    let pd = pdpt.unchecked_add(PAGE);
    memory.write_obj(pdpt.0 | PTE_PRESENT_WRITABLE, pml4)?;
    memory.write_obj(pd.0 | PTE_PRESENT_WRITABLE, pdpt)?;
    for index in 0..TABLE_ENTRIES {
        let entry = (index * LARGE_PAGE) | PTE_PRESENT_WRITABLE | PTE_LARGE;
        memory.write_obj(entry, pd.unchecked_add(index * 8))?;
    }
    Ok(())
}

/// Sets the boot processor up to enter the kernel at `entry`.
pub fn set_boot_state(vcpu: &VcpuFd, entry: GuestAddress) -> Result<(), RegsError> {
    let failed = |what| move |source| RegsError::Kvm { what, source };
    let mut sregs = vcpu
        .get_sregs()
        .map_err(failed("reading the special registers"))?;
    sregs.gdt.base = layout::GDT.0;
    sregs.gdt.limit = u16::try_from(size_of_val(&GDT) - 1).expect("40 bytes");
    sregs.idt.base = layout::IDT.0;
    sregs.idt.limit = 7;
    sregs.cs = code_segment();
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = data_segment();
    }
    sregs.tr = task_segment();
    sregs.cr3 = layout::PAGE_TABLES.0;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)
        .map_err(failed("the special registers"))?;

    let regs = kvm_regs {
        rflags: RFLAGS,
        rip: entry.0,
        rsp: layout::BOOT_STACK.0,
        rbp: layout::BOOT_STACK.0,
        rsi: layout::ZERO_PAGE.0,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&regs)
        .map_err(failed("the general registers"))
}

/// The floating-point state a processor has after reset.
pub fn set_fpu(vcpu: &VcpuFd) -> Result<(), RegsError> {
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..kvm_fpu::default()
    };
    vcpu.set_fpu(&fpu).map_err(|source| RegsError::Kvm {
        what: "the FPU state",
        source,
    })
}

fn flat_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}

fn code_segment() -> kvm_segment {
    kvm_segment {
        l: 1,
        ..flat_segment(CODE_SELECTOR, 11)
    }
}

fn data_segment() -> kvm_segment {
    kvm_segment {
        db: 1,
        ..flat_segment(DATA_SELECTOR, 3)
    }
}

fn task_segment() -> kvm_segment {
    kvm_segment {
        s: 0,
        ..flat_segment(TASK_SELECTOR, 11)
    }
}
