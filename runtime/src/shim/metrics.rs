//! The guest's figures of a container as containerd's cgroup v2 metrics.

use std::collections::HashMap;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats,
    PidsStat,
};
use lazaret_protocol::agent::ContainerStatsReply;
use lazaret_protocol::agent::container_stats_reply::{Pressure, Pressures};
use protobuf::MessageField;

/// Name under which containerd knows its own metrics message.
pub(super) const METRICS_TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// Rows of a list that are passed on: what the protocol lets the guest send.
const ROWS_MAX: usize = 64;

pub(super) fn metrics(stats: &ContainerStatsReply) -> Metrics {
    Metrics {
        pids: MessageField::some(PidsStat {
            current: stats.pids_current,
            limit: stats.pids_limit,
            ..PidsStat::default()
        }),
        cpu: MessageField::some(cpu(stats)),
        memory: MessageField::some(memory(stats)),
        io: MessageField::some(io(stats)),
        hugetlb: huge_pages(stats),
        memory_events: MessageField::some(memory_events(stats)),
        ..Metrics::default()
    }
}

fn cpu(stats: &ContainerStatsReply) -> CPUStat {
    CPUStat {
        usage_usec: stats.cpu_usage_usec,
        user_usec: stats.cpu_user_usec,
        system_usec: stats.cpu_system_usec,
        nr_periods: stats.cpu_periods,
        nr_throttled: stats.cpu_throttled_periods,
        throttled_usec: stats.cpu_throttled_usec,
        nr_bursts: stats.cpu_bursts,
        burst_usec: stats.cpu_burst_usec,
        psi: pressures(&stats.cpu_pressure),
        ..CPUStat::default()
    }
}

fn memory(stats: &ContainerStatsReply) -> MemoryStat {
    let stat = |name: &str| value(&stats.memory_stat, name);
    // Since 5.9 the kernel counts these for each kind of memory.
    let both = |name: &str| {
        let [anon, file] = ["anon", "file"].map(|kind| stat(&format!("{name}_{kind}")));
        stat(name).max(anon.saturating_add(file))
    };
    MemoryStat {
        anon: stat("anon"),
        file: stat("file"),
        kernel_stack: stat("kernel_stack"),
        slab: stat("slab"),
        sock: stat("sock"),
        shmem: stat("shmem"),
        file_mapped: stat("file_mapped"),
        file_dirty: stat("file_dirty"),
        file_writeback: stat("file_writeback"),
        anon_thp: stat("anon_thp"),
        inactive_anon: stat("inactive_anon"),
        active_anon: stat("active_anon"),
        inactive_file: stat("inactive_file"),
        active_file: stat("active_file"),
        unevictable: stat("unevictable"),
        slab_reclaimable: stat("slab_reclaimable"),
        slab_unreclaimable: stat("slab_unreclaimable"),
        pgfault: stat("pgfault"),
        pgmajfault: stat("pgmajfault"),
        workingset_refault: both("workingset_refault"),
        workingset_activate: both("workingset_activate"),
        workingset_nodereclaim: stat("workingset_nodereclaim"),
        pgrefill: stat("pgrefill"),
        pgscan: stat("pgscan"),
        pgsteal: stat("pgsteal"),
        pgactivate: stat("pgactivate"),
        pgdeactivate: stat("pgdeactivate"),
        pglazyfree: stat("pglazyfree"),
        pglazyfreed: stat("pglazyfreed"),
        thp_fault_alloc: stat("thp_fault_alloc"),
        thp_collapse_alloc: stat("thp_collapse_alloc"),
        usage: stats.memory_usage_bytes,
        usage_limit: stats.memory_limit_bytes,
        max_usage: stats.memory_max_usage_bytes,
        swap_usage: stats.swap_usage_bytes,
        swap_limit: stats.swap_limit_bytes,
        swap_max_usage: stats.swap_max_usage_bytes,
        psi: pressures(&stats.memory_pressure),
        ..MemoryStat::default()
    }
}

fn memory_events(stats: &ContainerStatsReply) -> MemoryEvents {
    let event = |name: &str| value(&stats.memory_events, name);
    MemoryEvents {
        low: event("low"),
        high: event("high"),
        max: event("max"),
        oom: event("oom"),
        oom_kill: stats.oom_kills,
        oom_group_kill: event("oom_group_kill"),
        ..MemoryEvents::default()
    }
}

fn io(stats: &ContainerStatsReply) -> IOStat {
    let entries = stats.io.iter().take(ROWS_MAX).map(|device| IOEntry {
        major: device.major.into(),
        minor: device.minor.into(),
        rbytes: device.read_bytes,
        wbytes: device.write_bytes,
        rios: device.reads,
        wios: device.writes,
        ..IOEntry::default()
    });
    IOStat {
        usage: entries.collect(),
        psi: pressures(&stats.io_pressure),
        ..IOStat::default()
    }
}

fn huge_pages(stats: &ContainerStatsReply) -> Vec<HugeTlbStat> {
    let rows = stats.huge_pages.iter().take(ROWS_MAX);
    rows.filter(|row| is_page_size(&row.page_size))
        .map(|row| HugeTlbStat {
            current: row.usage_bytes,
            max: row.limit_bytes,
            pagesize: row.page_size.clone(),
            failcnt: row.failures,
            ..HugeTlbStat::default()
        })
        .collect()
}

/// `2MB`, and no text that the guest would like to show instead.
fn is_page_size(text: &str) -> bool {
    const LONGEST: usize = 16;
    text.len() <= LONGEST && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn pressures(pressures: &MessageField<Pressures>) -> MessageField<PSIStats> {
    let data = |pressure: &MessageField<Pressure>| {
        let pressure = pressure.get_or_default();
        MessageField::some(PSIData {
            avg10: pressure.avg10,
            avg60: pressure.avg60,
            avg300: pressure.avg300,
            total: pressure.total_usec,
            ..PSIData::default()
        })
    };
    match pressures.as_ref() {
        Some(pressures) => MessageField::some(PSIStats {
            some: data(&pressures.some),
            full: data(&pressures.full),
            ..PSIStats::default()
        }),
        None => MessageField::none(),
    }
}

fn value(map: &HashMap<String, u64>, name: &str) -> u64 {
    map.get(name).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use lazaret_protocol::agent::container_stats_reply::HugePages;

    use super::*;

    #[test]
    fn memory_figures_find_their_fields() {
        let mut stats = ContainerStatsReply::new();
        for (name, figure) in [
            ("anon", 1),
            ("workingset_refault_anon", 2),
            ("workingset_refault_file", 3),
        ] {
            stats.memory_stat.insert(name.to_owned(), figure);
        }
        let memory = metrics(&stats).memory.unwrap();
        assert_eq!((memory.anon, memory.workingset_refault), (1, 5));
    }

    #[test]
    fn only_page_sizes_are_passed_on_as_such() {
        let mut stats = ContainerStatsReply::new();
        for size in ["2MB", "\x1b[2J", "1111111111111111111111"] {
            let mut row = HugePages::new();
            row.page_size = size.to_owned();
            stats.huge_pages.push(row);
        }
        let sizes: Vec<_> = metrics(&stats)
            .hugetlb
            .into_iter()
            .map(|row| row.pagesize)
            .collect();
        assert_eq!(sizes, ["2MB"]);
    }
}
