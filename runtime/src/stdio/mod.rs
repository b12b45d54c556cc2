//! A process's standard streams on the host: FIFOs of the Task API or descriptors
//! that were handed over, and the log file, on one side; one vsock connection for
//! each stream on the other.
//!
//! Every byte of output goes to the log first, then to the FIFO. A slow reader
//! of the FIFO slows the process down. Where there is a log, a reader that is
//! gone is done without; where there is none, the FIFO is the output's only
//! place, and the process waits for an engine that comes back. A descriptor
//! without a reader ends the stream: the process's next write fails, as it would
//! had it the descriptor itself.

mod copy;
mod descriptor;
pub mod handover;
mod inherited;
mod json_log;

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lazaret_protocol::agent::Stdio;
use lazaret_protocol::ports;
use rustix::fs::{Mode, OFlags, open};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use copy::{Output, Progress, Sink, Unread, copy_output, copy_stdin};
use descriptor::{Descriptor, Direction};
use handover::FD_SCHEME;
use inherited::Stream;

pub use inherited::Inherited;
pub use json_log::{JsonLog, LogStream};

use crate::agent::{AgentError, GuestPorts};

/// After the process's end, output is waited for this long, not counting the time
/// that a reader takes: something else still holds the stream open. Docker waits as
/// long.
pub const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// How often it is looked at in this time.
const DRAIN_LOOKS: u32 = 8;

#[derive(Debug, Error)]
pub enum StdioError {
    #[error("cannot open {what} {}", path.display())]
    Open {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{what} {} is not a FIFO", path.display())]
    NotFifo { what: &'static str, path: PathBuf },
    #[error(
        "{0} is not a path or a file:// or fifo:// address; binary:// loggers are not supported"
    )]
    Scheme(String),
    #[error("no descriptors named {0:?} have been handed over")]
    NotHandedOver(String),
    #[error("cannot take over a descriptor that was handed over")]
    Inherited(#[source] io::Error),
    #[error("cannot use what was handed over as {what}")]
    Descriptor {
        what: &'static str,
        source: io::Error,
    },
    #[error(transparent)]
    Guest(#[from] AgentError),
}

/// What the Task API says of a process's streams; empty for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StdioPaths {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

impl StdioPaths {
    fn address(&self, stream: Stream) -> &str {
        match stream {
            Stream::Stdin => &self.stdin,
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    /// Opens one stream's end, and says what becomes of it without a reader.
    fn open(
        &self,
        stream: Stream,
        logged: bool,
        inherited: &Inherited,
    ) -> Result<Option<(Descriptor, Unread)>, StdioError> {
        let what = stream.name();
        let address = self.address(stream);
        if let Some(token) = address.strip_prefix(FD_SCHEME) {
            let fd = inherited.get(token, stream)?;
            let end = Descriptor::inherited(fd, stream.direction());
            let end = end.map_err(|source| StdioError::Descriptor { what, source })?;
            return Ok(Some((end, Unread::End)));
        }
        let Some(path) = fifo_path(address)? else {
            return Ok(None);
        };
        Ok(Some(match stream {
            Stream::Stdin => (open_stdin(&path)?, Unread::End),
            _ if logged => (open_output(what, &path, true)?, Unread::Drop),
            _ => (open_output(what, &path, false)?, Unread::Wait),
        }))
    }
}

/// The host ends of a process's streams, opened before the process is made.
#[derive(Debug)]
pub struct HostEnds {
    stdin: Option<Descriptor>,
    stdout: Option<Output>,
    stderr: Option<Output>,
}

/// The running copies between host ends and guest.
#[derive(Debug)]
pub struct Streams {
    close_stdin: watch::Sender<bool>,
    stdin: Option<JoinHandle<()>>,
    outputs: Vec<JoinHandle<()>>,
    progress: Arc<Progress>,
}

impl HostEnds {
    pub fn open(
        paths: &StdioPaths,
        log: Option<&Arc<JsonLog>>,
        inherited: &Inherited,
    ) -> Result<Self, StdioError> {
        let open = |stream: Stream| paths.open(stream, log.is_some(), inherited);
        let output = |stream: Stream| -> Result<Option<Output>, StdioError> {
            let sink = open(stream)?.map(|(end, unread)| Sink { end, unread });
            let log = log.map(|log| log.stream(stream.name()));
            Ok((sink.is_some() || log.is_some()).then_some(Output { sink, log }))
        };
        let ends = Self {
            stdin: open(Stream::Stdin)?.map(|(end, _)| end),
            stdout: output(Stream::Stdout)?,
            stderr: if paths.terminal {
                None
            } else {
                output(Stream::Stderr)?
            },
        };
        for address in [&paths.stdin, &paths.stdout, &paths.stderr] {
            if let Some(token) = address.strip_prefix(FD_SCHEME) {
                inherited.forget(token);
            }
        }
        Ok(ends)
    }

    /// Connects each end with the guest and starts to copy.
    pub async fn connect(self, guest: &GuestPorts) -> Result<(Streams, Stdio), StdioError> {
        let (close_stdin, closed) = watch::channel(false);
        let mut streams = Streams {
            close_stdin,
            stdin: None,
            outputs: Vec::new(),
            progress: Arc::default(),
        };
        let mut stdio = Stdio::default();
        if let Some(end) = self.stdin {
            let (stream, port) = guest.connect(ports::STREAM).await?;
            stdio.stdin_port = port;
            streams.stdin = Some(tokio::spawn(copy_stdin(end, stream, closed)));
        }
        for (output, port) in [
            (self.stdout, &mut stdio.stdout_port),
            (self.stderr, &mut stdio.stderr_port),
        ] {
            let Some(output) = output else { continue };
            let (stream, host_port) = guest.connect(ports::STREAM).await?;
            *port = host_port;
            let progress = Arc::clone(&streams.progress);
            let copy = copy_output(stream, output, progress);
            streams.outputs.push(tokio::spawn(copy));
        }
        Ok((streams, stdio))
    }
}

impl Streams {
    /// Ends stdin once what has been written so far is read.
    pub fn close_stdin(&self) {
        self.close_stdin.send_replace(true);
    }

    /// Waits, after the process's end, until its output is delivered. A reader who
    /// takes nothing is waited for, unless the process was `killed`.
    pub async fn finish(mut self, mut killed: watch::Receiver<bool>) {
        if let Some(stdin) = self.stdin.take() {
            stdin.abort();
        }
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in &mut outputs {
            self.delivered(output, &mut killed).await;
        }
    }

    /// All that the process itself wrote is on this side of the guest. More than the
    /// time to copy that is only given to readers, whatever else still comes.
    async fn delivered(&self, output: &mut JoinHandle<()>, killed: &mut watch::Receiver<bool>) {
        let mut looks = 0;
        while looks < DRAIN_LOOKS {
            tokio::select! {
                _ = &mut *output => return,
                () = tokio::time::sleep(DRAIN_GRACE / DRAIN_LOOKS) => {}
            }
            if !self.is_held() || *killed.borrow_and_update() {
                looks += 1;
            }
        }
        tracing::warn!("output of an ended process does not end, it is cut off");
        output.abort();
        let _ = output.await;
    }

    /// Whether a reader on the host is waited for.
    fn is_held(&self) -> bool {
        self.progress.held.load(Ordering::Relaxed) > 0
    }

    /// Lets a process end that cannot because its output has no taker: to be called
    /// every [`DRAIN_GRACE`] once it was killed. `seen` is the last call's answer.
    pub fn cut_if_stuck(&self, seen: Option<u64>) -> u64 {
        let moved = self.progress.bytes.load(Ordering::Relaxed);
        if seen == Some(moved) && self.is_held() {
            tracing::warn!("output of a killed process is taken by nobody, it is cut off");
            self.cut();
        }
        moved
    }

    pub fn cut(&self) {
        for output in &self.outputs {
            output.abort();
        }
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        for task in self.stdin.iter().chain(&self.outputs) {
            task.abort();
        }
    }
}

/// containerd gives paths, and addresses with a scheme.
fn fifo_path(address: &str) -> Result<Option<PathBuf>, StdioError> {
    if address.is_empty() {
        return Ok(None);
    }
    let path = address.strip_prefix("fifo://").unwrap_or(address);
    if path.contains("://") {
        return Err(StdioError::Scheme(address.to_owned()));
    }
    Ok(Some(path.into()))
}

fn check_fifo(what: &'static str, path: &Path) -> Result<(), StdioError> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.file_type().is_fifo() => Ok(()),
        Ok(_) => Err(StdioError::NotFifo {
            what,
            path: path.to_owned(),
        }),
        Err(source) => Err(StdioError::Open {
            what,
            path: path.to_owned(),
            source,
        }),
    }
}

/// Opened for reading alone, so that the last writer's close is the end. Before
/// the first writer comes there is no end to see: a FIFO without one is not
/// readable.
fn open_stdin(path: &Path) -> Result<Descriptor, StdioError> {
    open_fifo("stdin", path, OFlags::RDONLY, Direction::Input)
}

fn open_output(what: &'static str, path: &Path, lossy: bool) -> Result<Descriptor, StdioError> {
    let access = if lossy {
        OFlags::WRONLY
    } else {
        // An end of our own for reading keeps the FIFO alive without a reader.
        OFlags::RDWR
    };
    open_fifo(what, path, access, Direction::Output)
}

fn open_fifo(
    what: &'static str,
    path: &Path,
    access: OFlags,
    direction: Direction,
) -> Result<Descriptor, StdioError> {
    check_fifo(what, path)?;
    open(
        path,
        access | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(io::Error::from)
    .and_then(|fd| Descriptor::own(fd, direction))
    .map_err(|source| StdioError::Open {
        what,
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
