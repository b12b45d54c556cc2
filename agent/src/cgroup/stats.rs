//! Figures of a cgroup. A file that the kernel does not have (a controller that is
//! not built in) reads as zero.

use std::fs;
use std::path::Path;

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) cpu_usage_usec: u64,
    pub(crate) cpu_user_usec: u64,
    pub(crate) cpu_system_usec: u64,
    pub(crate) memory_usage_bytes: u64,
    pub(crate) memory_limit_bytes: u64,
    pub(crate) memory_max_usage_bytes: u64,
    pub(crate) pids_current: u64,
    pub(crate) pids_limit: u64,
    pub(crate) oom_kills: u64,
}

impl Stats {
    pub(crate) fn read(path: &Path) -> Self {
        let cpu = fs::read_to_string(path.join("cpu.stat")).unwrap_or_default();
        let cpu = |name| key(&cpu, name).unwrap_or_default();
        Self {
            cpu_usage_usec: cpu("usage_usec"),
            cpu_user_usec: cpu("user_usec"),
            cpu_system_usec: cpu("system_usec"),
            memory_usage_bytes: number(path, "memory.current"),
            memory_limit_bytes: number(path, "memory.max"),
            memory_max_usage_bytes: number(path, "memory.peak"),
            pids_current: number(path, "pids.current"),
            pids_limit: number(path, "pids.max"),
            oom_kills: oom_kills(path),
        }
    }
}

pub(crate) fn oom_kills(path: &Path) -> u64 {
    let events = fs::read_to_string(path.join("memory.events")).unwrap_or_default();
    key(&events, "oom_kill").unwrap_or_default()
}

/// The value of `key` in lines of `key value`.
pub(crate) fn key(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find_map(|(name, value)| (name == key).then(|| value.trim().parse().ok())?)
}

/// A single number; `max` is the largest one.
fn number(path: &Path, file: &str) -> u64 {
    let text = fs::read_to_string(path.join(file)).unwrap_or_default();
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_and_absent_ones_are_zero() {
        let temp = tempfile::tempdir().expect("temporary directory");
        let write = |file: &str, text: &str| {
            fs::write(temp.path().join(file), text).expect("file is written");
        };
        write("cpu.stat", "usage_usec 7\nuser_usec 4\nsystem_usec 3\n");
        write("memory.max", "max\n");
        write("memory.events", "low 0\noom 2\noom_kill 1\n");
        let expected = Stats {
            cpu_usage_usec: 7,
            cpu_user_usec: 4,
            cpu_system_usec: 3,
            memory_limit_bytes: u64::MAX,
            oom_kills: 1,
            ..Stats::default()
        };
        assert_eq!(Stats::read(temp.path()), expected);
    }
}
