//! `lazaret logs`: Docker's json-file format, `{"log":…,"stream":…,"time":…}`
//! on each line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::inotify;
use serde::Deserialize;

use super::Host;
use super::failure::Failure;
use super::lifecycle::Lifecycle;
use crate::storage::container::{ContainerRecord, State};

/// Bytes read at a time when looking for the last lines.
const CHUNK: u64 = 64 * 1024;

/// Show what a container has written
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Follow the output until the container stops
    #[arg(short, long)]
    follow: bool,
    /// Number of lines to show from the end
    #[arg(short = 'n', long, default_value = "all", value_parser = tail)]
    tail: Tail,
    /// Show timestamps
    #[arg(short, long)]
    timestamps: bool,
    /// Name or ID of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    All,
    Lines(u64),
}

fn tail(text: &str) -> Result<Tail, String> {
    if text == "all" || text == "-1" {
        return Ok(Tail::All);
    }
    text.parse()
        .map(Tail::Lines)
        .map_err(|_| format!("invalid number of lines: {text}"))
}

/// One line of the log.
#[derive(Debug, Deserialize)]
struct Line {
    log: String,
    stream: String,
    time: String,
}

impl Args {
    pub(crate) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let lifecycle = Lifecycle::open(host)?;
        let record = lifecycle.find(&self.container)?;
        let path = lifecycle.containers.directory(&record.id).log();
        if self.follow {
            self.follow(&lifecycle, &record, &path)?;
        } else if let Some(mut log) = self.open(&path)? {
            self.copy(&mut log)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Opens the log where the wanted lines begin; none is written before the
    /// container starts.
    fn open(&self, path: &Path) -> io::Result<Option<LogReader>> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result?,
        };
        let start = match self.tail {
            Tail::All => 0,
            Tail::Lines(lines) => start_of_last(&mut file, lines)?,
        };
        file.seek(SeekFrom::Start(start))?;
        Ok(Some(LogReader {
            input: BufReader::new(file),
            partial: Vec::new(),
        }))
    }

    fn copy(&self, log: &mut LogReader) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        while let Some(line) = log.next()? {
            let time = if self.timestamps {
                format!("{} ", line.time)
            } else {
                String::new()
            };
            if line.stream == "stderr" {
                write!(io::stderr(), "{time}{}", line.log)?;
            } else {
                write!(stdout, "{time}{}", line.log)?;
            }
        }
        Ok(stdout.flush()?)
    }

    fn follow(
        &self,
        lifecycle: &Lifecycle,
        record: &ContainerRecord,
        path: &Path,
    ) -> Result<(), Failure> {
        // The watch comes before the first look, so that nothing is missed.
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        let directory = lifecycle.containers.directory(&record.id);
        let events = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::DELETE_SELF;
        inotify::add_watch(&watch, directory.path(), events)?;
        let mut log = None;
        loop {
            let end = lifecycle.end_notice(&record.id)?;
            // Looked at before the log is read: what ended before has written all.
            let running = match lifecycle.find(record.id.as_str()) {
                Ok(record) => matches!(record.state, State::Running { .. } | State::Created),
                Err(_) => false,
            };
            if log.is_none() {
                log = self.open(path)?;
            }
            if let Some(log) = &mut log {
                self.copy(log)?;
            }
            if !running {
                return Ok(());
            }
            end.wait_for_either(&watch)?;
        }
    }
}

/// Reads whole lines; one that is still being written is waited for. Those that a full
/// disk or a killed writer has damaged are passed over.
struct LogReader {
    input: BufReader<File>,
    partial: Vec<u8>,
}

impl LogReader {
    fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            self.input.read_until(b'\n', &mut self.partial)?;
            if self.partial.last() != Some(&b'\n') {
                return Ok(None);
            }
            let line = serde_json::from_slice(&self.partial).ok();
            self.partial.clear();
            if line.is_some() {
                return Ok(line);
            }
            writeln!(
                io::stderr(),
                "Warning: a damaged line of the log is left out"
            )?;
        }
    }
}

/// Where the last lines begin, found from the end.
fn start_of_last(file: &mut File, lines: u64) -> io::Result<u64> {
    let mut position = file.metadata()?.len();
    // The last line's own end is not the end of one before it.
    let mut ends = lines.saturating_add(1);
    let mut buffer = Vec::new();
    while position > 0 {
        let start = position.saturating_sub(CHUNK);
        file.seek(SeekFrom::Start(start))?;
        buffer.clear();
        Read::take(&mut *file, position - start).read_to_end(&mut buffer)?;
        for (index, byte) in buffer.iter().enumerate().rev() {
            if *byte == b'\n' {
                ends -= 1;
                if ends == 0 {
                    return Ok(start + index as u64 + 1);
                }
            }
        }
        position = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: usize) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("container-json.log");
        let record = |n| format!(r#"{{"log":"line {n}\n","stream":"stdout","time":"t"}}"#) + "\n";
        let text = (0..lines).map(record).collect::<Vec<_>>().concat();
        std::fs::write(&path, text).unwrap();
        (directory, path)
    }

    fn args(tail: Tail) -> Args {
        Args {
            follow: false,
            tail,
            timestamps: false,
            container: String::new(),
        }
    }

    fn read(path: &Path, tail: Tail) -> Vec<String> {
        let mut log = args(tail).open(path).unwrap().unwrap();
        std::iter::from_fn(|| log.next().unwrap())
            .map(|line| line.log)
            .collect()
    }

    #[test]
    fn the_tail_is_found_across_chunks() {
        let (_directory, path) = log(5000);
        assert_eq!(read(&path, Tail::All).len(), 5000);
        assert_eq!(read(&path, Tail::Lines(2)), ["line 4998\n", "line 4999\n"]);
        assert_eq!(read(&path, Tail::Lines(0)), [""; 0]);
        assert_eq!(read(&path, Tail::Lines(4000)).len(), 4000);
        assert_eq!(read(&path, Tail::Lines(9000)).len(), 5000);
    }

    #[test]
    fn a_line_being_written_is_waited_for() {
        let (_directory, path) = log(1);
        let mut log = args(Tail::All).open(&path).unwrap().unwrap();
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(br#"{"log":"half","stream":"std"#).unwrap();
        assert!(log.next().unwrap().is_some());
        assert!(log.next().unwrap().is_none());
        file.write_all(b"out\",\"time\":\"t\"}\n").unwrap();
        assert_eq!(log.next().unwrap().unwrap().log, "half");
    }

    #[test]
    fn a_damaged_line_is_passed_over() {
        let (_directory, path) = log(2);
        let mut file = File::options().append(true).open(&path).unwrap();
        let record = br#"{"log":"next","stream":"stdout","time":"t"}"#;
        file.write_all(b"{\"log\":\"ha\n\n").unwrap();
        file.write_all(&[record, b"\n".as_slice()].concat())
            .unwrap();
        assert_eq!(read(&path, Tail::All), ["line 0\n", "line 1\n", "next"]);
        assert_eq!(read(&path, Tail::Lines(1)), ["next"]);

        let mut log = args(Tail::Lines(0)).open(&path).unwrap().unwrap();
        file.write_all(br#"{"log":"torn"#).unwrap();
        assert!(log.next().unwrap().is_none());
        // The writer finds room again.
        file.write_all(b"\n").unwrap();
        assert!(log.next().unwrap().is_none());
        file.write_all(&[record, b"\n".as_slice()].concat())
            .unwrap();
        assert_eq!(log.next().unwrap().unwrap().log, "next");
    }

    #[test]
    fn numbers_of_lines_are_checked() {
        assert_eq!(tail("all"), Ok(Tail::All));
        assert_eq!(tail("3"), Ok(Tail::Lines(3)));
        assert!(tail("x").is_err());
    }
}
