//! A process's standard streams on the host: FIFOs of the Task API and the log
//! file on one side, one vsock connection for each descriptor on the other.
//!
//! Every byte of output goes to the log first, then to the FIFO. A slow reader
//! of the FIFO slows the process down. Where there is a log, a reader that is
//! gone is done without; where there is none, the FIFO is the output's only
//! place, and the process waits for an engine that comes back.

pub mod handover;
mod json_log;

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use lazaret_protocol::agent::Stdio;
use lazaret_protocol::ports;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use json_log::{JsonLog, LogStream};

use crate::agent::{AgentError, GuestPorts};

/// As much as a pipe holds.
const BUFFER_LEN: usize = 64 * 1024;

/// What is read at once of what is left in a FIFO that is to be closed.
const CLOSING_READ_LEN: usize = 4096;

/// After the process's end, output that stays away this long is not waited for:
/// something else still holds the stream open. Docker waits as long.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

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

/// The host ends of a process's streams, opened before the process is made.
#[derive(Debug)]
pub struct HostEnds {
    stdin: Option<pipe::Receiver>,
    stdout: Option<Output>,
    stderr: Option<Output>,
}

#[derive(Debug)]
struct Output {
    sink: Option<Sink>,
    log: Option<LogStream>,
}

#[derive(Debug)]
struct Sink {
    pipe: pipe::Sender,
    /// Keep on without a reader.
    lossy: bool,
}

/// The running copies between host ends and guest.
#[derive(Debug)]
pub struct Streams {
    close_stdin: watch::Sender<bool>,
    stdin: Option<JoinHandle<()>>,
    outputs: Vec<JoinHandle<()>>,
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    bytes: AtomicU64,
    /// Copies that wait for a reader on the host.
    held: AtomicU64,
    stdin_done: AtomicBool,
}

impl HostEnds {
    pub fn open(paths: &StdioPaths, log: Option<&Arc<JsonLog>>) -> Result<Self, StdioError> {
        let stdin = match fifo_path(&paths.stdin)? {
            Some(path) => Some(open_stdin(&path)?),
            None => None,
        };
        let output = |address: &str, name| -> Result<Option<Output>, StdioError> {
            let sink = match fifo_path(address)? {
                Some(path) => Some(open_output(name, &path, log.is_some())?),
                None => None,
            };
            let log = log.map(|log| log.stream(name));
            Ok((sink.is_some() || log.is_some()).then_some(Output { sink, log }))
        };
        Ok(Self {
            stdin,
            stdout: output(&paths.stdout, "stdout")?,
            stderr: if paths.terminal {
                None
            } else {
                output(&paths.stderr, "stderr")?
            },
        })
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
        if let Some(pipe) = self.stdin {
            let (stream, port) = guest.connect(ports::STREAM).await?;
            stdio.stdin_port = port;
            let progress = Arc::clone(&streams.progress);
            streams.stdin = Some(tokio::spawn(async move {
                copy_stdin(pipe, stream, closed).await;
                progress.stdin_done.store(true, Ordering::Relaxed);
            }));
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

    /// Waits, after the process's end, until its output is delivered.
    pub async fn finish(mut self) {
        if let Some(stdin) = self.stdin.take() {
            stdin.abort();
        }
        let mut outputs = std::mem::take(&mut self.outputs);
        for output in &mut outputs {
            self.delivered(output).await;
        }
    }

    async fn delivered(&self, output: &mut JoinHandle<()>) {
        loop {
            let seen = self.progress.bytes.load(Ordering::Relaxed);
            tokio::select! {
                _ = &mut *output => return,
                () = tokio::time::sleep(DRAIN_GRACE) => {}
            }
            let still = seen == self.progress.bytes.load(Ordering::Relaxed);
            if still && self.progress.held.load(Ordering::Relaxed) == 0 {
                tracing::warn!("output of an ended process does not end, it is cut off");
                output.abort();
            }
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
fn open_stdin(path: &Path) -> Result<pipe::Receiver, StdioError> {
    check_fifo("stdin", path)?;
    pipe::OpenOptions::new()
        .open_receiver(path)
        .map_err(|source| StdioError::Open {
            what: "stdin",
            path: path.to_owned(),
            source,
        })
}

fn open_output(what: &'static str, path: &Path, lossy: bool) -> Result<Sink, StdioError> {
    check_fifo(what, path)?;
    let pipe = pipe::OpenOptions::new()
        // An end of our own for reading keeps the FIFO alive without a reader.
        .read_write(!lossy)
        .open_sender(path)
        .map_err(|source| StdioError::Open {
            what,
            path: path.to_owned(),
            source,
        })?;
    Ok(Sink { pipe, lossy })
}

/// Copies until the FIFO's writers are gone, or until it is to be closed and
/// what is in it has been read. Then the guest sees the end.
async fn copy_stdin(mut pipe: pipe::Receiver, guest: UnixStream, mut close: watch::Receiver<bool>) {
    let (mut guest_end, mut to_guest) = guest.into_split();
    let mut buffer = Vec::new();
    loop {
        let closing = *close.borrow_and_update();
        if closing {
            // Past the event loop, which may not have heard of the last bytes yet.
            buffer.resize(CLOSING_READ_LEN, 0);
            match rustix::io::read(&pipe, &mut buffer[..]) {
                Ok(0) | Err(_) => break,
                Ok(count) => buffer.truncate(count),
            }
        } else {
            let mut byte = [0];
            tokio::select! {
                read = pipe.read_buf(with_room(&mut buffer)) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                },
                changed = close.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                // The guest sends nothing here: it has closed its end.
                _ = guest_end.read(&mut byte) => return,
            }
        }
        if to_guest.write_all(&buffer).await.is_err() {
            return;
        }
        buffer.clear();
    }
    // Fails where the guest is gone already.
    let _ = to_guest.shutdown().await;
    // The connection stays until the guest closes it: what was sent is read.
    let mut byte = [0];
    let _ = guest_end.read(&mut byte).await;
}

fn with_room(buffer: &mut Vec<u8>) -> &mut Vec<u8> {
    buffer.reserve(4096);
    buffer
}

async fn copy_output(mut guest: UnixStream, mut output: Output, progress: Arc<Progress>) {
    let mut buffer = Vec::new();
    let mut log_failed = false;
    loop {
        // No buffer is held while there is nothing to copy.
        if guest.readable().await.is_err() {
            break;
        }
        buffer.reserve_exact(BUFFER_LEN);
        match guest.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => progress.bytes.fetch_add(count as u64, Ordering::Relaxed),
        };
        if let Some(log) = &mut output.log
            && let Err(err) = log.write(&buffer)
            && !log_failed
        {
            log_failed = true;
            tracing::error!("output is lost: cannot write the container's log: {err}");
        }
        if let Some(sink) = &mut output.sink {
            progress.held.fetch_add(1, Ordering::Relaxed);
            let written = sink.pipe.write_all(&buffer).await;
            progress.held.fetch_sub(1, Ordering::Relaxed);
            progress.bytes.fetch_add(1, Ordering::Relaxed);
            if written.is_err() && !sink.lossy {
                output.sink = None;
            }
        }
        buffer.clear();
    }
    if let Some(log) = &mut output.log
        && let Err(err) = log.finish()
    {
        tracing::error!("cannot write the container's log: {err}");
    }
}

#[cfg(test)]
mod tests;
