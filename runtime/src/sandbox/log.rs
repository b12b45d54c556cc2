//! The sandbox's log: lines of the sandbox process, of its VMM, of the guest's
//! console and of its agent, in one file of bounded size.
//!
//! The last two are written by a guest that may flood: each source has a token
//! bucket of [`BURST_BYTES`], refilled by [`BYTES_PER_SECOND`]; what comes on top
//! is dropped, counted, and the count is written when the source is heard again.
//! A file that reaches [`FILE_MAX`] becomes `sandbox.log.1`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Twice this is what a sandbox's log can take of `/run`, which is memory.
const FILE_MAX: u64 = 1024 * 1024;

/// A kernel panic with its traces fits.
const BURST_BYTES: u64 = 256 * 1024;

const BYTES_PER_SECOND: u64 = 16 * 1024;

/// Longer lines are cut into pieces.
const LINE_MAX: usize = 1024;

#[derive(Debug)]
pub struct SandboxLog {
    path: PathBuf,
    file: Mutex<LogFile>,
}

#[derive(Debug)]
struct LogFile {
    file: File,
    len: u64,
}

impl SandboxLog {
    pub fn open(path: &Path) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            path: path.to_owned(),
            file: Mutex::new(LogFile::open(path)?),
        }))
    }

    /// Writes one line, named by its source. Control characters of a guest do
    /// not reach the terminal of whoever reads the log.
    pub fn line(&self, source: &str, text: &[u8]) {
        let mut line = format!("{} {source}: ", super::state::rfc3339(SystemTime::now()));
        for char in String::from_utf8_lossy(text).trim_end().chars() {
            if char.is_control() && char != '\t' {
                line.extend(char.escape_default());
            } else {
                line.push(char);
            }
        }
        line.push('\n');
        self.append(line.as_bytes());
    }

    fn append(&self, bytes: &[u8]) {
        let mut log = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody is left to tell of a log that cannot be written.
        let _ = log.append(&self.path, bytes);
    }

    /// Copies lines until the source ends.
    pub async fn copy_lines(self: Arc<Self>, name: &'static str, source: impl AsyncRead + Unpin) {
        let mut source = source;
        let mut budget = Budget::new(Instant::now());
        let mut buffer = Vec::with_capacity(LINE_MAX);
        loop {
            match (&mut source)
                .take((LINE_MAX - buffer.len()) as u64)
                .read_buf(&mut buffer)
                .await
            {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
            let mut rest = 0;
            while let Some(end) = buffer[rest..].iter().position(|byte| *byte == b'\n') {
                self.bounded_line(&mut budget, name, &buffer[rest..rest + end]);
                rest += end + 1;
            }
            buffer.drain(..rest);
            if buffer.len() == LINE_MAX {
                self.bounded_line(&mut budget, name, &buffer);
                buffer.clear();
            }
            tokio::task::yield_now().await;
        }
        if !buffer.is_empty() {
            self.bounded_line(&mut budget, name, &buffer);
        }
        if budget.dropped > 0 {
            self.line(name, dropped_note(budget.dropped).as_bytes());
        }
    }

    fn bounded_line(&self, budget: &mut Budget, name: &str, text: &[u8]) {
        if text.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        match budget.take(Instant::now(), text.len() as u64) {
            Verdict::Drop => {}
            Verdict::Write { dropped_before } => {
                if dropped_before > 0 {
                    self.line(name, dropped_note(dropped_before).as_bytes());
                }
                self.line(name, text);
            }
        }
    }
}

fn dropped_note(count: u64) -> String {
    format!("[{count} lines dropped: too many in too short a time]")
}

impl LogFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }

    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if self.len + bytes.len() as u64 > FILE_MAX {
            fs::rename(path, path.with_extension("log.1"))?;
            *self = Self::open(path)?;
        }
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }
}

/// For `tracing_subscriber`: the sandbox process's own lines come formatted.
impl Write for &SandboxLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A token bucket in bytes.
#[derive(Debug)]
struct Budget {
    bytes: u64,
    refilled: Instant,
    dropped: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Write { dropped_before: u64 },
    Drop,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            bytes: BURST_BYTES,
            refilled: now,
            dropped: 0,
        }
    }

    fn take(&mut self, now: Instant, bytes: u64) -> Verdict {
        let elapsed = now.saturating_duration_since(self.refilled);
        let refill =
            u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX) / 1000 * BYTES_PER_SECOND;
        if refill > 0 {
            self.bytes = self.bytes.saturating_add(refill).min(BURST_BYTES);
            self.refilled = now;
        }
        if self.bytes < bytes {
            self.dropped += 1;
            return Verdict::Drop;
        }
        self.bytes -= bytes;
        Verdict::Write {
            dropped_before: std::mem::take(&mut self.dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_is_dropped_counted_and_heard_again_later() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let line = 1024;
        let written = (0..1000)
            .filter(|_| budget.take(start, line) != Verdict::Drop)
            .count();
        assert_eq!(written as u64, BURST_BYTES / line);
        assert_eq!(
            budget.take(start + Duration::from_secs(1), line),
            Verdict::Write {
                dropped_before: 1000 - BURST_BYTES / line
            }
        );
    }

    #[tokio::test]
    async fn lines_are_named_cut_and_stripped_of_control_characters() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sandbox.log");
        let log = SandboxLog::open(&path).unwrap();
        let mut text = b"hello\n\x1b[2Jclear\n\n".to_vec();
        text.extend([b'x'; LINE_MAX + 1]);
        log.copy_lines("console", text.as_slice()).await;
        let written = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = written
            .lines()
            .map(|line| line.split_once(' ').unwrap().1)
            .collect();
        assert_eq!(lines[0], "console: hello");
        assert_eq!(lines[1], "console: \\u{1b}[2Jclear");
        assert_eq!(lines[2].len(), "console: ".len() + LINE_MAX);
        assert_eq!(lines[3], "console: x");
    }

    #[test]
    fn the_log_never_takes_more_than_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sandbox.log");
        let log = SandboxLog::open(&path).unwrap();
        for _ in 0..3000 {
            log.append(&[b'x'; 1024]);
        }
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(size(&path) <= FILE_MAX);
        assert!(size(&dir.path().join("sandbox.log.1")) <= FILE_MAX);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
