//! Figures of a cgroup. A file that the kernel does not have (a controller that is
//! not built in) reads as zero; a limit that is not set as the largest number.

use std::fs;
use std::path::Path;

/// More keys than any kernel's memory.stat has, and the protocol's cap.
const KEYS_MAX: usize = 128;
/// The protocol's cap on devices and page sizes.
const ROWS_MAX: usize = 64;

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Stats {
    pub(crate) cpu: Cpu,
    pub(crate) memory: Memory,
    pub(crate) pids_current: u64,
    pub(crate) pids_limit: u64,
    pub(crate) io: Vec<Device>,
    pub(crate) huge_pages: Vec<HugePages>,
    pub(crate) cpu_pressure: Pressures,
    pub(crate) memory_pressure: Pressures,
    pub(crate) io_pressure: Pressures,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Cpu {
    pub(crate) usage_usec: u64,
    pub(crate) user_usec: u64,
    pub(crate) system_usec: u64,
    pub(crate) periods: u64,
    pub(crate) throttled_periods: u64,
    pub(crate) throttled_usec: u64,
    pub(crate) bursts: u64,
    pub(crate) burst_usec: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) usage_bytes: u64,
    pub(crate) limit_bytes: u64,
    pub(crate) max_usage_bytes: u64,
    pub(crate) swap_usage_bytes: u64,
    pub(crate) swap_limit_bytes: u64,
    pub(crate) swap_max_usage_bytes: u64,
    /// `memory.stat` and `memory.events`, by the kernel's names.
    pub(crate) stat: Vec<(String, u64)>,
    pub(crate) events: Vec<(String, u64)>,
}

/// A line of `io.stat`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) read_bytes: u64,
    pub(crate) write_bytes: u64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct HugePages {
    pub(crate) page_size: String,
    pub(crate) usage_bytes: u64,
    pub(crate) limit_bytes: u64,
    pub(crate) failures: u64,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Pressures {
    pub(crate) some: Pressure,
    pub(crate) full: Pressure,
}

/// A line of a pressure file (Documentation/accounting/psi.rst).
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Pressure {
    pub(crate) avg10: f64,
    pub(crate) avg60: f64,
    pub(crate) avg300: f64,
    pub(crate) total_usec: u64,
}

impl Stats {
    pub(crate) fn read(path: &Path) -> Self {
        let pressure = |file| Pressures::parse(&text(path, file));
        Self {
            cpu: Cpu::parse(&text(path, "cpu.stat")),
            memory: Memory::read(path),
            pids_current: number(path, "pids.current"),
            pids_limit: number(path, "pids.max"),
            io: devices(&text(path, "io.stat")),
            huge_pages: huge_pages(path),
            cpu_pressure: pressure("cpu.pressure"),
            memory_pressure: pressure("memory.pressure"),
            io_pressure: pressure("io.pressure"),
        }
    }
}

impl Cpu {
    fn parse(text: &str) -> Self {
        let value = |name| key(text, name).unwrap_or_default();
        Self {
            usage_usec: value("usage_usec"),
            user_usec: value("user_usec"),
            system_usec: value("system_usec"),
            periods: value("nr_periods"),
            throttled_periods: value("nr_throttled"),
            throttled_usec: value("throttled_usec"),
            bursts: value("nr_bursts"),
            burst_usec: value("burst_usec"),
        }
    }
}

impl Memory {
    fn read(path: &Path) -> Self {
        Self {
            usage_bytes: number(path, "memory.current"),
            limit_bytes: number(path, "memory.max"),
            max_usage_bytes: number(path, "memory.peak"),
            swap_usage_bytes: number(path, "memory.swap.current"),
            swap_limit_bytes: number(path, "memory.swap.max"),
            swap_max_usage_bytes: number(path, "memory.swap.peak"),
            stat: keys(&text(path, "memory.stat")),
            events: keys(&text(path, "memory.events")),
        }
    }

    pub(crate) fn oom_kills(&self) -> u64 {
        let count = self.events.iter().find(|(name, _)| name == "oom_kill");
        count.map(|(_, count)| *count).unwrap_or_default()
    }
}

impl Pressures {
    fn parse(text: &str) -> Self {
        let line = |kind: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(kind));
            line.map(Pressure::parse).unwrap_or_default()
        };
        Self {
            some: line("some "),
            full: line("full "),
        }
    }
}

impl Pressure {
    /// `avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
    fn parse(line: &str) -> Self {
        let average = |name| field(line, name).unwrap_or_default();
        Self {
            avg10: average("avg10"),
            avg60: average("avg60"),
            avg300: average("avg300"),
            total_usec: field(line, "total").unwrap_or_default(),
        }
    }
}

/// Lines of `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn devices(text: &str) -> Vec<Device> {
    let device = |line: &str| {
        let (number, fields) = line.split_once(' ')?;
        let (major, minor) = number.split_once(':')?;
        let value = |name| field(fields, name).unwrap_or_default();
        Some(Device {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            read_bytes: value("rbytes"),
            write_bytes: value("wbytes"),
            reads: value("rios"),
            writes: value("wios"),
        })
    };
    text.lines().filter_map(device).take(ROWS_MAX).collect()
}

fn huge_pages(path: &Path) -> Vec<HugePages> {
    let size_of = |name: &str| {
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        // `hugetlb.2MB.rsvd.current` counts reservations.
        (!size.contains('.')).then(|| size.to_owned())
    };
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut sizes: Vec<String> = entries
        .filter_map(|entry| size_of(entry.file_name().to_str()?))
        .take(ROWS_MAX)
        .collect();
    sizes.sort();
    let row = |page_size: String| HugePages {
        usage_bytes: number(path, &format!("hugetlb.{page_size}.current")),
        limit_bytes: number(path, &format!("hugetlb.{page_size}.max")),
        failures: key(&text(path, &format!("hugetlb.{page_size}.events")), "max")
            .unwrap_or_default(),
        page_size,
    };
    sizes.into_iter().map(row).collect()
}

pub(crate) fn oom_kills(path: &Path) -> u64 {
    key(&text(path, "memory.events"), "oom_kill").unwrap_or_default()
}

fn keys(text: &str) -> Vec<(String, u64)> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).take(KEYS_MAX).collect()
}

/// The value of `key` in lines of `key value`.
pub(crate) fn key(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find_map(|(name, value)| (name == key).then(|| value.trim().parse().ok())?)
}

/// The value of `name` in a line of `name=value` words.
fn field<T: std::str::FromStr>(line: &str, name: &str) -> Option<T> {
    line.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .find_map(|(key, value)| (key == name).then(|| value.parse().ok())?)
}

/// A single number; `max` is the largest one.
fn number(path: &Path, file: &str) -> u64 {
    match text(path, file).trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or_default(),
    }
}

fn text(path: &Path, file: &str) -> String {
    fs::read_to_string(path.join(file)).unwrap_or_default()
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
        write(
            "cpu.stat",
            "usage_usec 7\nuser_usec 4\nsystem_usec 3\nnr_periods 9\nnr_throttled 2\n",
        );
        write("memory.max", "max\n");
        write("memory.stat", "anon 5\nfile 6\n");
        write("memory.events", "low 0\noom 2\noom_kill 1\n");
        write(
            "io.stat",
            "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n",
        );
        write("hugetlb.2MB.current", "4096\n");
        write("hugetlb.2MB.rsvd.current", "1\n");
        write("hugetlb.2MB.max", "max\n");
        write(
            "io.pressure",
            "some avg10=1.50 avg60=0.25 avg300=0.00 total=12\nfull avg10=0.00 total=3\n",
        );
        let stats = Stats::read(temp.path());
        assert_eq!((stats.cpu.usage_usec, stats.cpu.throttled_periods), (7, 2));
        assert_eq!(stats.memory.limit_bytes, u64::MAX);
        assert_eq!(stats.memory.swap_usage_bytes, 0);
        let expected = [("anon".to_owned(), 5), ("file".to_owned(), 6)];
        assert_eq!(stats.memory.stat, expected);
        assert_eq!(stats.memory.oom_kills(), 1);
        let expected = Device {
            major: 8,
            minor: 16,
            read_bytes: 1,
            write_bytes: 2,
            reads: 3,
            writes: 4,
        };
        assert_eq!(stats.io, [expected]);
        let expected = HugePages {
            page_size: "2MB".to_owned(),
            usage_bytes: 4096,
            limit_bytes: u64::MAX,
            failures: 0,
        };
        assert_eq!(stats.huge_pages, [expected]);
        assert!((stats.io_pressure.some.avg10 - 1.5).abs() < f64::EPSILON);
        assert_eq!(stats.io_pressure.full.total_usec, 3);
    }
}
