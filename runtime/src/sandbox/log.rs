//! The sandbox's log: lines of the sandbox process, of its VMM, of the guest's
//! console and of its agent, in one file of bounded size.
//!
//! The last two are written by a guest that may flood: each source has a token
//! bucket of [`BURST_BYTES`], refilled by [`BYTES_PER_SECOND`], however often it
//! connects. A line is charged as it is written, with its time and what is escaped;
//! what comes on top is dropped, counted, and the count is written when the source is
//! heard again.
//! A file that reaches [`FILE_MAX`] becomes `sandbox.log.1`.

use std::collections::HashMap;
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
const BURST_BYTES: usize = 256 * 1024;

const BYTES_PER_SECOND: usize = 16 * 1024;

/// Longer lines are cut into pieces.
const LINE_MAX: usize = 1024;

#[derive(Debug)]
pub struct SandboxLog {
    path: PathBuf,
    file: Mutex<LogFile>,
    /// By the source's name.
    budgets: Mutex<HashMap<&'static str, Budget>>,
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
            budgets: Mutex::default(),
        }))
    }

    fn append(&self, bytes: &[u8]) {
        let mut log = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody is left to tell of a log that cannot be written.
        let _ = log.append(&self.path, bytes);
    }

    /// Copies lines until the source ends.
    pub async fn copy_lines(self: Arc<Self>, name: &'static str, source: impl AsyncRead + Unpin) {
        let mut source = source;
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
                self.line(name, &buffer[rest..rest + end]);
                rest += end + 1;
            }
            buffer.drain(..rest);
            if buffer.len() == LINE_MAX {
                self.line(name, &buffer);
                buffer.clear();
            }
            tokio::task::yield_now().await;
        }
        if !buffer.is_empty() {
            self.line(name, &buffer);
        }
        self.note_dropped(name);
    }

    /// Writes a line if there is room for it.
    fn line(&self, name: &'static str, text: &[u8]) {
        if text.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let line = format_line(name, text);
        let admitted = self.with_budget(name, |budget| budget.take(Instant::now(), line.len()));
        if admitted {
            self.note_dropped(name);
            self.append(line.as_bytes());
        }
    }

    /// Says how many lines have been dropped, unless that would be too much itself.
    fn note_dropped(&self, name: &'static str) {
        let note = self.with_budget(name, |budget| {
            let count = budget.take_dropped()?;
            let text = format!("[{count} lines dropped: too many in too short a time]");
            let note = format_line(name, text.as_bytes());
            budget.bytes = budget.bytes.saturating_sub(note.len());
            Some(note)
        });
        if let Some(note) = note {
            self.append(note.as_bytes());
        }
    }

    fn with_budget<T>(&self, name: &'static str, f: impl FnOnce(&mut Budget) -> T) -> T {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        let budget = budgets.entry(name);
        f(budget.or_insert_with(|| Budget::new(Instant::now())))
    }
}

/// A line, named by its source. Control characters of a guest do not reach the
/// terminal of whoever reads the log.
fn format_line(source: &str, text: &[u8]) -> String {
    let mut line = format!("{} {source}: ", super::state::rfc3339(SystemTime::now()));
    for char in String::from_utf8_lossy(text).trim_end().chars() {
        if char.is_control() && char != '\t' {
            line.extend(char.escape_default());
        } else {
            line.push(char);
        }
    }
    line.push('\n');
    line
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
    bytes: usize,
    refilled: Instant,
    dropped: u64,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            bytes: BURST_BYTES,
            refilled: now,
            dropped: 0,
        }
    }

    /// Whether a line of this length is written. If not it is counted.
    fn take(&mut self, now: Instant, length: usize) -> bool {
        let elapsed = now.saturating_duration_since(self.refilled).as_secs();
        if elapsed > 0 {
            let elapsed = usize::try_from(elapsed).unwrap_or(usize::MAX);
            let refill = elapsed.saturating_mul(BYTES_PER_SECOND);
            self.bytes = self.bytes.saturating_add(refill).min(BURST_BYTES);
            self.refilled = now;
        }
        let left = self.bytes.checked_sub(length);
        match left {
            Some(left) => self.bytes = left,
            None => self.dropped += 1,
        }
        left.is_some()
    }

    /// How many have been dropped, once and with something left to say it.
    fn take_dropped(&mut self) -> Option<u64> {
        (self.dropped > 0 && self.bytes > 0).then(|| std::mem::take(&mut self.dropped))
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
        let line = 1000;
        let written = (0..1000).filter(|_| budget.take(start, line)).count();
        assert_eq!(written, BURST_BYTES / line);
        let later = start + Duration::from_secs(1);
        assert!(budget.take(later, line));
        assert_eq!(budget.take_dropped(), Some(1000 - written as u64));
        assert_eq!(budget.take_dropped(), None);
        let written = 1 + (0..1000).filter(|_| budget.take(later, line)).count();
        assert_eq!(written, (BYTES_PER_SECOND + BURST_BYTES % line) / line);
    }

    #[tokio::test]
    async fn a_source_that_comes_again_gets_no_further_burst() {
        // A line's own text is a part of what it takes.
        for line in [&[b'x'; 1024][..], b"x", b"\x1b\x1b", b"\xff\xff"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("sandbox.log");
            let log = SandboxLog::open(&path).unwrap();
            let flood = [line, b"\n"].concat().repeat(256 * 1024 / (line.len() + 1));
            let start = Instant::now();
            for _ in 0..10 {
                Arc::clone(&log).copy_lines("agent", flood.as_slice()).await;
            }
            let seconds = usize::try_from(start.elapsed().as_secs()).unwrap();
            let refill = seconds * BYTES_PER_SECOND;
            let note = 1024 * (1 + seconds);
            let written = fs::read_to_string(&path).unwrap();
            assert!(written.len() <= BURST_BYTES + refill + note, "{line:?}");
            assert!(written.len() > BURST_BYTES / 2, "{line:?}");
            assert!(written.contains("lines dropped"), "{line:?}");

            // The others are heard.
            Arc::clone(&log).copy_lines("vmm", &b"hello\n"[..]).await;
            let written = fs::read_to_string(&path).unwrap();
            assert!(written.ends_with("vmm: hello\n"), "{line:?}");
        }
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
