//! CPUID as a guest sees it: what KVM can do on this processor, with the
//! topology of the microVM (Intel SDM volume 2, CPUID; AMD APM volume 3).
//!
//! Processors are shown as cores of one package, one thread each.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use thiserror::Error;

/// More than any processor reports.
pub const MAX_ENTRIES: usize = kvm_bindings::KVM_MAX_CPUID_ENTRIES;

const FEATURES: u32 = 1;
const CACHES_INTEL: u32 = 4;
const MONITOR: u32 = 5;
const PERFORMANCE_MONITORING: u32 = 0xa;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const AMD_PERFORMANCE_MONITORING: u32 = 0x8000_0022;

const ECX_MONITOR: u32 = 1 << 3;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
/// Counters of the core, of the northbridge and of the last-level cache.
const ECX_AMD_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

#[derive(Debug, Error)]
pub enum CpuidError {
    #[error("KVM does not tell its CPUID")]
    Supported(#[source] kvm_ioctls::Error),
    #[error("{0} CPUID entries are too many")]
    TooMany(usize),
    #[error("KVM refused the CPUID")]
    Set(#[source] kvm_ioctls::Error),
}

/// The CPUID of processor `apic_id` of `vcpus`.
pub fn for_vcpu(supported: &CpuId, apic_id: u8, vcpus: u8) -> Result<CpuId, CpuidError> {
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| !matches!(entry.function, TOPOLOGY | TOPOLOGY_V2))
        .copied()
        .collect();
    for entry in &mut entries {
        adjust(entry, apic_id, vcpus);
    }
    entries.extend(topology(apic_id, vcpus));
    CpuId::from_entries(&entries).map_err(|_| CpuidError::TooMany(entries.len()))
}

fn adjust(entry: &mut kvm_cpuid_entry2, apic_id: u8, vcpus: u8) {
    let (id, count) = (u32::from(apic_id), u32::from(vcpus));
    match entry.function {
        FEATURES => {
            entry.ebx = entry.ebx & 0xffff | count << 16 | id << 24;
            entry.ecx = entry.ecx & !ECX_MONITOR | ECX_TSC_DEADLINE | ECX_HYPERVISOR;
            entry.edx = if vcpus > 1 {
                entry.edx | EDX_HTT
            } else {
                entry.edx & !EDX_HTT
            };
        }
        // Cores of the package; each cache belongs to one core but the last level.
        CACHES_INTEL if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { count - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | (count - 1) << 26;
        }
        AMD_CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            let sharing = if level >= 3 { count - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14;
        }
        // No performance counters, and no MONITOR to wait with.
        PERFORMANCE_MONITORING | AMD_PERFORMANCE_MONITORING | MONITOR => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        AMD_FEATURES => entry.ecx &= !ECX_AMD_COUNTERS,
        AMD_SIZES => entry.ecx = apic_id_bits(vcpus) << 12 | (count - 1),
        AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

fn topology(apic_id: u8, vcpus: u8) -> [kvm_cpuid_entry2; 2] {
    let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function: TOPOLOGY,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind,
        edx: u32::from(apic_id),
        ..kvm_cpuid_entry2::default()
    };
    [
        level(0, 0, 1, LEVEL_THREAD),
        level(1, apic_id_bits(vcpus), u32::from(vcpus), LEVEL_CORE),
    ]
}

/// Bits that tell this many APIC ids apart.
fn apic_id_bits(vcpus: u8) -> u32 {
    u8::BITS - vcpus.saturating_sub(1).leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apic_id_bits_are_just_enough() {
        assert_eq!([1, 2, 3, 4, 5, 32].map(apic_id_bits), [0, 1, 2, 2, 3, 5]);
    }

    #[test]
    fn performance_counters_are_not_shown() {
        let shown = [
            FEATURES,
            PERFORMANCE_MONITORING,
            AMD_FEATURES,
            AMD_PERFORMANCE_MONITORING,
        ];
        let supported = shown.map(|function| kvm_cpuid_entry2 {
            function,
            eax: 0x0830_0802,
            ecx: ECX_AMD_COUNTERS | 1,
            ..Default::default()
        });
        let cpuid = for_vcpu(&CpuId::from_entries(&supported).unwrap(), 0, 1).unwrap();
        let leaf = |at: usize| cpuid.as_slice()[at];
        assert_eq!((leaf(1).eax, leaf(1).ecx), (0, 0));
        assert_eq!(leaf(2).ecx, 1);
        assert_eq!((leaf(3).eax, leaf(3).ecx), (0, 0));
    }

    #[test]
    fn each_processor_has_its_own_id_and_the_deadline_timer() {
        let features = kvm_cpuid_entry2 {
            function: FEATURES,
            ecx: ECX_MONITOR,
            ..Default::default()
        };
        let supported = CpuId::from_entries(&[features]).unwrap();
        let cpuid = for_vcpu(&supported, 3, 4).unwrap();
        let leaf = cpuid.as_slice()[0];
        assert_eq!(leaf.ebx >> 24, 3);
        assert_eq!(leaf.ebx >> 16 & 0xff, 4);
        assert_eq!(leaf.ecx, ECX_TSC_DEADLINE | ECX_HYPERVISOR);
        assert!(cpuid.as_slice()[1..].iter().all(|entry| entry.edx == 3));
    }
}
