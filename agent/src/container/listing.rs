//! What `ps` shows of a container's processes, from /proc of the guest. A process can
//! end while it is read: what is then missing stays empty.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lazaret_protocol::REPLY_MAX;
use lazaret_protocol::agent::ListProcessesReply;
use lazaret_protocol::agent::list_processes_reply::Entry;
use protobuf::Message as _;
use rustix::time::{ClockId, clock_gettime};

const COMMAND_MAX: u64 = 2048;

/// What a reply has besides its entries: its status.
const REPLY_OVERHEAD: u64 = 64;

/// An entry's tag and length.
const ENTRY_OVERHEAD: u64 = 4;

/// A command's tag and length, and what it may add to the entry's.
const COMMAND_OVERHEAD: u64 = 4;

const NANOS_PER_SECOND: u64 = 1_000_000_000;
const USEC_PER_SECOND: u64 = 1_000_000;

/// Of pseudoterminals in `/proc/PID/stat`.
const PTS_MAJOR: u64 = 136;

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) pid: u32,
    pub(crate) container_pid: u32,
    pub(crate) container_parent_pid: u32,
    pub(crate) uid: u32,
    pub(crate) command: String,
    pub(crate) terminal: String,
    pub(crate) cpu_usec: u64,
    pub(crate) started_at_ns: u64,
}

/// Processes with their exec ids, as many as one reply has room for. Their commands go
/// first: they are empty where there is none left.
pub(crate) fn reply(processes: Vec<(Listed, String)>) -> ListProcessesReply {
    let mut room = REPLY_MAX as u64 - REPLY_OVERHEAD;
    let mut take = |size: u64| {
        let left = room.checked_sub(size);
        room = left.unwrap_or(room);
        left.is_some()
    };
    let mut commands = Vec::new();
    let mut reply = ListProcessesReply::new();
    for (mut process, exec_id) in processes {
        let command = std::mem::take(&mut process.command);
        let entry = entry(process, exec_id);
        if !take(entry.compute_size() + ENTRY_OVERHEAD) {
            break;
        }
        reply.processes.push(entry);
        commands.push(command);
    }
    for (entry, command) in reply.processes.iter_mut().zip(commands) {
        if take(command.len() as u64 + COMMAND_OVERHEAD) {
            entry.command = command;
        }
    }
    reply
}

fn entry(process: Listed, exec_id: String) -> Entry {
    Entry {
        guest_pid: process.pid,
        exec_id,
        container_pid: process.container_pid,
        container_parent_pid: process.container_parent_pid,
        uid: process.uid,
        command: process.command,
        terminal: process.terminal,
        cpu_usec: process.cpu_usec,
        started_at_ns: process.started_at_ns,
        ..Entry::default()
    }
}

/// Looks a process up; nothing but its number where it has ended.
pub(crate) fn look_up(pid: u32) -> Listed {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    read(pid, &directory).unwrap_or(Listed {
        pid,
        ..Listed::default()
    })
}

fn read(pid: u32, directory: &Path) -> Option<Listed> {
    let status = fs::read_to_string(directory.join("status")).ok()?;
    let stat = Stat::parse(&fs::read_to_string(directory.join("stat")).ok()?)?;
    let parent = fs::read_to_string(format!("/proc/{}/status", stat.parent));
    Some(Listed {
        pid,
        container_pid: innermost(&status),
        // The parent of the container's first process is outside.
        container_parent_pid: match parent {
            Ok(parent) if depth(&parent) == depth(&status) => innermost(&parent),
            _ => 0,
        },
        uid: fs::metadata(directory).ok()?.uid(),
        command: command(directory).unwrap_or_else(|| format!("[{}]", stat.name)),
        terminal: terminal(stat.terminal),
        cpu_usec: stat.cpu_ticks.saturating_mul(USEC_PER_SECOND) / ticks_per_second(),
        started_at_ns: since_epoch(stat.started_ticks),
    })
}

/// Process ids in nested namespaces: `NSpid:\t120\t1`, the innermost one last.
fn nested_pids(status: &str) -> impl Iterator<Item = u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.unwrap_or_default()
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
}

fn innermost(status: &str) -> u32 {
    nested_pids(status).last().unwrap_or_default()
}

fn depth(status: &str) -> usize {
    nested_pids(status).count()
}

/// Arguments with spaces between; none for zombies and for who has none.
fn command(directory: &Path) -> Option<String> {
    let file = fs::File::open(directory.join("cmdline")).ok()?;
    let mut bytes = Vec::new();
    file.take(COMMAND_MAX).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    let text = text.trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}

/// What is wanted of /proc/PID/stat.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    parent: u32,
    terminal: u64,
    cpu_ticks: u64,
    started_ticks: u64,
}

impl Stat {
    /// The name may hold spaces and parentheses: fields count from the last one.
    fn parse(text: &str) -> Option<Self> {
        let (name, rest) = text.split_once('(')?.1.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // Field 3 (the state) is the first one behind the name.
        let field = |number: usize| fields.get(number - 3).and_then(|field| field.parse().ok());
        Some(Self {
            name: name.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            terminal: field(7)?,
            cpu_ticks: u64::saturating_add(field(14)?, field(15)?),
            started_ticks: field(22)?,
        })
    }
}

fn terminal(device: u64) -> String {
    let major = (device >> 8) & 0xfff;
    let minor = (device & 0xff) | ((device >> 12) & 0xfff00);
    match major {
        0 => String::new(),
        PTS_MAJOR => format!("pts/{minor}"),
        _ => "?".to_owned(),
    }
}

fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second().max(1)
}

/// `stat` counts from boot, suspended time included.
fn since_epoch(ticks: u64) -> u64 {
    let nanos = ticks.saturating_mul(NANOS_PER_SECOND / ticks_per_second());
    let up = clock_gettime(ClockId::Boottime);
    let up = u64::try_from(up.tv_sec).unwrap_or_default() * NANOS_PER_SECOND
        + u64::try_from(up.tv_nsec).unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
    now.saturating_sub(up).saturating_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b (c)) S 5 7 7 34820 7 4194304 1 0 0 0 30 12 0 0 20 0 1 0 900 0 0";
        let expected = Stat {
            name: "a) b (c)".to_owned(),
            parent: 5,
            terminal: 34820,
            cpu_ticks: 42,
            started_ticks: 900,
        };
        assert_eq!(Stat::parse(text), Some(expected));
    }

    #[test]
    fn terminals_have_their_names() {
        assert_eq!(terminal(0), "");
        assert_eq!(terminal(34820), "pts/4");
        assert_eq!(terminal(34816 + 0x10_0001), "pts/257");
        assert_eq!(terminal(1025), "?");
    }

    #[test]
    fn longest_list_fits_a_reply() {
        let longest = |pid| Listed {
            pid,
            container_pid: u32::MAX,
            container_parent_pid: u32::MAX,
            uid: u32::MAX,
            command: "x".repeat(2048),
            terminal: "pts/1048575".to_owned(),
            cpu_usec: u64::MAX,
            started_at_ns: u64::MAX,
        };
        for (count, exec_id_len) in [(100, 72), (2000, 0), (2000, 72)] {
            let pids = u32::MAX - count..u32::MAX;
            let listed = pids.map(|pid| (longest(pid), "e".repeat(exec_id_len)));
            let mut response = ttrpc::Response::new();
            response.payload = reply(listed.collect()).write_to_bytes().unwrap();
            let size = response.compute_size();
            let most = REPLY_MAX as u64;
            assert!((most - 4096..=most).contains(&size), "{size}");
        }
    }

    #[test]
    fn many_processes_cost_commands_first() {
        let process = |pid| Listed {
            pid,
            container_pid: pid,
            container_parent_pid: 1,
            command: "x".repeat(2048),
            started_at_ns: 1 << 60,
            ..Listed::default()
        };
        let listed = (1..=1000).map(|pid| (process(pid), String::new()));
        let reply = reply(listed.collect());
        assert_eq!(reply.processes.len(), 1000);
        let whole = reply
            .processes
            .iter()
            .filter(|one| one.command.len() == 2048);
        assert!((1..100).contains(&whole.count()));
    }

    #[test]
    fn own_process_is_found() {
        let own = std::process::id();
        let listed = look_up(own);
        assert_eq!(listed.container_pid, own);
        assert!(!listed.command.is_empty());
        assert!(listed.started_at_ns > 0);
    }

    #[test]
    fn ended_process_keeps_its_number_only() {
        let expected = Listed {
            pid: u32::MAX,
            ..Listed::default()
        };
        assert_eq!(look_up(u32::MAX), expected);
    }
}
