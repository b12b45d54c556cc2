//! Figures of a cgroup as the protocol carries them.

use lazaret_protocol::agent::ContainerStatsReply;
use lazaret_protocol::agent::container_stats_reply as reply;

use super::stats::{Device, HugePages, Pressure, Pressures, Stats};

impl From<Stats> for ContainerStatsReply {
    fn from(stats: Stats) -> Self {
        let (cpu, memory) = (stats.cpu, stats.memory);
        Self {
            cpu_usage_usec: cpu.usage_usec,
            cpu_user_usec: cpu.user_usec,
            cpu_system_usec: cpu.system_usec,
            cpu_periods: cpu.periods,
            cpu_throttled_periods: cpu.throttled_periods,
            cpu_throttled_usec: cpu.throttled_usec,
            cpu_bursts: cpu.bursts,
            cpu_burst_usec: cpu.burst_usec,
            memory_usage_bytes: memory.usage_bytes,
            memory_limit_bytes: memory.limit_bytes,
            memory_max_usage_bytes: memory.max_usage_bytes,
            swap_usage_bytes: memory.swap_usage_bytes,
            swap_limit_bytes: memory.swap_limit_bytes,
            swap_max_usage_bytes: memory.swap_max_usage_bytes,
            oom_kills: memory.oom_kills(),
            memory_stat: memory.stat.into_iter().collect(),
            memory_events: memory.events.into_iter().collect(),
            pids_current: stats.pids_current,
            pids_limit: stats.pids_limit,
            io: stats.io.into_iter().map(Into::into).collect(),
            huge_pages: stats.huge_pages.into_iter().map(Into::into).collect(),
            cpu_pressure: Some(stats.cpu_pressure.into()).into(),
            memory_pressure: Some(stats.memory_pressure.into()).into(),
            io_pressure: Some(stats.io_pressure.into()).into(),
            ..Self::default()
        }
    }
}

impl From<Device> for reply::Device {
    fn from(device: Device) -> Self {
        Self {
            major: device.major,
            minor: device.minor,
            read_bytes: device.read_bytes,
            write_bytes: device.write_bytes,
            reads: device.reads,
            writes: device.writes,
            ..Self::default()
        }
    }
}

impl From<HugePages> for reply::HugePages {
    fn from(pages: HugePages) -> Self {
        Self {
            page_size: pages.page_size,
            usage_bytes: pages.usage_bytes,
            limit_bytes: pages.limit_bytes,
            failures: pages.failures,
            ..Self::default()
        }
    }
}

impl From<Pressures> for reply::Pressures {
    fn from(pressures: Pressures) -> Self {
        Self {
            some: Some(pressures.some.into()).into(),
            full: Some(pressures.full.into()).into(),
            ..Self::default()
        }
    }
}

impl From<Pressure> for reply::Pressure {
    fn from(pressure: Pressure) -> Self {
        Self {
            avg10: pressure.avg10,
            avg60: pressure.avg60,
            avg300: pressure.avg300,
            total_usec: pressure.total_usec,
            ..Self::default()
        }
    }
}
