//! `lazaret-oci ps`: for engines the container's processes on the host, for
//! people those in the guest.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use lazaret_protocol::agent::list_processes_reply::Entry;
use protobuf::Message;

use super::container::Container;
use super::failure::{Failure, OciError};
use super::record::Status;
use super::state::print;
use super::{Host, runtime};

/// List the processes of a container
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// table: the processes in the container; json: their process ids on the host
    #[arg(
        short,
        long,
        value_enum,
        default_value = "table",
        value_name = "FORMAT"
    )]
    format: Format,
    /// Id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// Options of ps(1): -e and -f have no further effect, others are refused
    #[arg(
        value_name = "OPTION",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    options: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

const HEADER: &str = "UID          PID    PPID  STIME TTY          TIME CMD";

impl Args {
    pub(super) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let container = Container::find(host, &self.container)?;
        let status = container.status(host)?;
        if self.format == Format::Json {
            let pids = host_pids(host, &container, status)?;
            print(&serde_json::json!(pids).to_string())?;
            return Ok(ExitCode::SUCCESS);
        }
        check_options(&self.options)?;
        print(HEADER)?;
        if matches!(status, Status::Creating | Status::Stopped) {
            return Ok(ExitCode::SUCCESS);
        }
        let runtime = runtime()?;
        let asked = runtime.block_on(async {
            let task = container.connect(host).await?;
            Ok::<_, OciError>(task.pids().await?)
        });
        runtime.shutdown_background();
        let processes = asked.map_err(|err| container.explain(host, err))?;
        let now = SystemTime::now();
        for process in processes {
            let info = process.info.unwrap_or_default();
            let entry = Entry::parse_from_bytes(&info.value).unwrap_or_default();
            print(&line(process.pid, &entry, now))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The processes that do the container's work on the host.
fn host_pids(host: &Host, container: &Container, status: Status) -> Result<Vec<u32>, OciError> {
    let sandbox = container.pid(status);
    let vmm = container.vmm_pid(host)?.filter(|_| sandbox.is_some());
    Ok(sandbox.into_iter().chain(vmm).collect())
}

fn check_options(options: &[String]) -> Result<(), OciError> {
    let known = |option: &String| {
        let letters = option.strip_prefix('-');
        letters.is_some_and(|all| !all.is_empty() && all.chars().all(|c| matches!(c, 'e' | 'f')))
    };
    match options.iter().find(|option| !known(option)) {
        Some(option) => Err(OciError::Invalid(format!(
            "ps option {option:?} is not supported: only -e and -f are, and json is for the host"
        ))),
        None => Ok(()),
    }
}

/// One process as `ps -ef` shows it. What comes from the guest is text to be
/// looked at, and nothing else.
fn line(pid: u32, entry: &Entry, now: SystemTime) -> String {
    let started = SystemTime::UNIX_EPOCH + Duration::from_nanos(entry.started_at_ns);
    let terminal = match entry.terminal.as_str() {
        "" => "?".to_owned(),
        name => plain(name),
    };
    let pid = match entry.container_pid {
        0 => pid,
        pid => pid,
    };
    format!(
        "{:<8} {pid:>7} {:>7}  {:>5} {terminal:<8} {:>8} {}",
        entry.uid,
        entry.container_parent_pid,
        start_time(started, now),
        cpu_time(entry.cpu_usec),
        plain(&entry.command),
    )
}

/// The hour within a day, the date before that; in UTC, as nothing is known of
/// the reader's place.
fn start_time(started: SystemTime, now: SystemTime) -> String {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let text = humantime::format_rfc3339_seconds(started).to_string();
    let recent = now.duration_since(started).is_ok_and(|age| age < DAY);
    // 2026-01-02T03:04:05Z
    let part = if recent { 11..16 } else { 5..10 };
    text.get(part).unwrap_or("?").to_owned()
}

fn cpu_time(usec: u64) -> String {
    let seconds = usec / 1_000_000;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}", seconds % 60)
}

/// Without what would move a terminal's cursor.
fn plain(text: &str) -> String {
    let visible = |c: char| if c.is_control() { '?' } else { c };
    text.chars().map(visible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_that_of_ps() {
        let entry = Entry {
            container_pid: 1,
            uid: 101,
            command: "nginx: master\x1b[2J".to_owned(),
            terminal: "pts/0".to_owned(),
            cpu_usec: 3_725_000_000,
            started_at_ns: 86_400_000_000_000 + 3_600_000_000_000,
            ..Entry::default()
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 + 7_200);
        assert_eq!(
            line(77, &entry, now),
            "101            1       0  01:00 pts/0    01:02:05 nginx: master?[2J"
        );
        let later = now + Duration::from_secs(2 * 86_400);
        assert!(line(77, &entry, later).contains(" 01-02 "));
    }

    #[test]
    fn options_that_would_change_the_columns_are_refused() {
        let options = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        assert!(check_options(&options(&[])).is_ok());
        assert!(check_options(&options(&["-ef"])).is_ok());
        let err = check_options(&options(&["-o", "pid"])).unwrap_err();
        assert!(err.to_string().contains("\"-o\""), "{err}");
        assert!(check_options(&options(&["aux"])).is_err());
    }
}
