//! The `MultiProcessor` table: processors, I/O APIC and interrupt lines, for a
//! kernel without ACPI (Intel `MultiProcessor` Specification 1.4, chapter 4).

use thiserror::Error;
use vm_memory::{Bytes, GuestMemoryError, GuestMemoryMmap};

use super::layout;

const SPEC_REVISION: u8 = 4;
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const CPU_ENABLED: u8 = 1;
const CPU_BOOT: u8 = 2;
/// APIC and FPU on the chip; the kernel reads the rest from CPUID.
const CPU_FEATURES: u32 = 0x201;
const CPU_STEPPING: u32 = 0x600;
const IOAPIC_ENABLED: u8 = 1;

/// Entry types (table 4-3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Interrupt types (table 4-11).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;

const FLOATING_POINTER_SIZE: usize = 16;
const HEADER_SIZE: usize = 44;
const ALL_LOCAL_APICS: u8 = 0xff;

#[derive(Debug, Error)]
pub enum MpTableError {
    #[error("MP table of {0} bytes does not fit its {max}", max = layout::EBDA_SIZE)]
    TooLarge(usize),
    #[error("MP table does not fit into guest memory")]
    Write(#[from] GuestMemoryError),
}

/// Writes the table for processors with the APIC ids 0 to `vcpus - 1`.
pub fn write(memory: &GuestMemoryMmap<()>, vcpus: u8) -> Result<(), MpTableError> {
    let table = floating_pointer_and_table(vcpus);
    if table.len() > layout::EBDA_SIZE {
        return Err(MpTableError::TooLarge(table.len()));
    }
    memory.write_slice(&table, layout::EBDA)?;
    Ok(())
}

fn floating_pointer_and_table(vcpus: u8) -> Vec<u8> {
    let table_address = u32::try_from(layout::EBDA.0).expect("below 1 MiB")
        + u32::try_from(FLOATING_POINTER_SIZE).expect("16");
    let mut bytes = Vec::with_capacity(layout::EBDA_SIZE);
    bytes.extend(b"_MP_");
    bytes.extend(table_address.to_le_bytes());
    // Length in 16-byte units, revision, checksum, no default configuration.
    bytes.extend([1, SPEC_REVISION, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes.extend(configuration_table(vcpus));
    bytes
}

fn configuration_table(vcpus: u8) -> Vec<u8> {
    let entries = entries(vcpus);
    let count = u16::try_from(entries.len()).expect("under 100 entries");
    let body = entries.concat();
    let length = u16::try_from(HEADER_SIZE + body.len()).expect("under 1 KiB");

    let mut table = Vec::with_capacity(usize::from(length));
    table.extend(b"PCMP");
    table.extend(length.to_le_bytes());
    table.extend([SPEC_REVISION, 0]);
    table.extend(b"LAZARET ");
    table.extend(b"MICROVM     ");
    // No OEM table.
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(layout::LOCAL_APIC.to_le_bytes());
    // No extended table.
    table.extend([0; 4]);
    table.extend(body);
    table[7] = checksum(&table);
    table
}

fn entries(vcpus: u8) -> Vec<Vec<u8>> {
    // The I/O APIC's id must not be one of a processor.
    let ioapic_id = vcpus;
    let mut entries: Vec<Vec<u8>> = (0..vcpus).map(processor).collect();
    entries.push([&[BUS, 0][..], b"ISA   "].concat());
    entries.push(
        [
            &[IOAPIC, ioapic_id, IOAPIC_VERSION, IOAPIC_ENABLED][..],
            &layout::IOAPIC.to_le_bytes(),
        ]
        .concat(),
    );
    // Each ISA line to the pin of the same number, polarity and trigger as the
    // bus has them: active high, edge.
    for line in 0..layout::IOAPIC_LINES {
        entries.push(vec![IO_INTERRUPT, INT, 0, 0, 0, line, ioapic_id, line]);
    }
    entries.push(vec![LOCAL_INTERRUPT, EXT_INT, 0, 0, 0, 0, 0, 0]);
    entries.push(vec![LOCAL_INTERRUPT, NMI, 0, 0, 0, 0, ALL_LOCAL_APICS, 1]);
    entries
}

fn processor(apic_id: u8) -> Vec<u8> {
    let flags = if apic_id == 0 {
        CPU_ENABLED | CPU_BOOT
    } else {
        CPU_ENABLED
    };
    let mut entry = vec![PROCESSOR, apic_id, LOCAL_APIC_VERSION, flags];
    entry.extend(CPU_STEPPING.to_le_bytes());
    entry.extend(CPU_FEATURES.to_le_bytes());
    entry.extend([0; 8]);
    entry
}

/// The byte that makes the sum of all bytes 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MAX_VCPUS;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn both_structures_sum_to_zero() {
        for vcpus in [1, 2, MAX_VCPUS] {
            let bytes = floating_pointer_and_table(vcpus);
            assert_eq!(sum(&bytes[..FLOATING_POINTER_SIZE]), 0);
            assert_eq!(sum(&bytes[FLOATING_POINTER_SIZE..]), 0);
        }
    }

    #[test]
    fn largest_table_fits_its_place() {
        assert!(floating_pointer_and_table(MAX_VCPUS).len() <= layout::EBDA_SIZE);
    }

    #[test]
    fn length_field_is_the_tables_length() {
        let table = configuration_table(3);
        assert_eq!(
            usize::from(u16::from_le_bytes([table[4], table[5]])),
            table.len()
        );
    }
}
