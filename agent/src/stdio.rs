//! The stdio of a process: its pipes or terminal on one side, the host's vsock
//! connections on the other, bytes copied between them as fast as both sides go.
//!
//! The process never gets a socket itself, because a socket cannot be opened again
//! through /dev/stdout. Each direction has one buffer and reads only when it has
//! written what it held, so that a slow reader slows the process down and nothing else.
//!
//! The host ends a direction by closing its connection. Output that has lost its reader
//! is read no more. A terminal lives as long as something is copied to or from it: once
//! the host has closed both connections, its terminal has hung up, and the process's
//! hangs up too.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use lazaret_protocol::agent::Stdio as Request;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::Shutdown;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::AbortHandle;

use crate::failure::{OrFail, Result};
use crate::streams::Streams;
use crate::watched::{Watched, watch};

/// One pipe full, and the largest vsock packet.
const CHUNK: usize = 64 * 1024;

pub(crate) type Endpoint = Arc<Watched>;

/// The host's connections of one process.
#[derive(Debug)]
pub(crate) struct Connections {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Connections {
    pub(crate) async fn take(streams: &Streams, request: &Request) -> Result<Self> {
        Ok(Self {
            stdin: streams.take(request.stdin_port).await?,
            stdout: streams.take(request.stdout_port).await?,
            stderr: streams.take(request.stderr_port).await?,
        })
    }

    /// Descriptors 0, 1 and 2 for a process without a terminal, and our side of them.
    pub(crate) fn into_pipes(self) -> Result<(Vec<OwnedFd>, Stdio)> {
        let mut stdio = Stdio::new();
        let input = match self.stdin {
            Some(connection) => {
                let (theirs, ours) = pipe()?;
                stdio.copy_input(endpoint(connection)?, endpoint(ours)?);
                theirs
            }
            None => open_null()?,
        };
        let mut fds = vec![input];
        for connection in [self.stdout, self.stderr] {
            fds.push(match connection {
                Some(connection) => {
                    let (ours, theirs) = pipe()?;
                    stdio.copy_output(endpoint(ours)?, endpoint(connection)?);
                    theirs
                }
                None => open_null()?,
            });
        }
        Ok((fds, stdio))
    }

    /// Our side of a terminal. Its process has put the peer on its own descriptors.
    pub(crate) fn into_terminal(self, master: OwnedFd) -> Result<Stdio> {
        let mut stdio = Stdio::new();
        let master = endpoint(master)?;
        stdio.terminal = Arc::downgrade(&master);
        if let Some(connection) = self.stdin {
            stdio.copy_input(endpoint(connection)?, Arc::clone(&master));
        }
        match self.stdout {
            Some(connection) => stdio.copy_output(master, endpoint(connection)?),
            // Nobody looks at it, and so nobody can hang up.
            None => stdio.unseen = Some(master),
        }
        Ok(stdio)
    }
}

/// What a process with a terminal holds until it has opened that.
pub(crate) fn null_fds() -> Result<Vec<OwnedFd>> {
    (0..3).map(|_| open_null()).collect()
}

/// The running copies of one process.
#[derive(Debug)]
pub(crate) struct Stdio {
    terminal: Weak<Watched>,
    /// A terminal without a connection for its output.
    unseen: Option<Endpoint>,
    exited: watch::Sender<bool>,
    close_stdin: Arc<Notify>,
    input: Option<AbortHandle>,
    outputs: Vec<AbortHandle>,
    drained: parking_lot::Mutex<Vec<oneshot::Receiver<()>>>,
}

impl Stdio {
    fn new() -> Self {
        Self {
            terminal: Weak::new(),
            unseen: None,
            exited: watch::Sender::new(false),
            close_stdin: Arc::new(Notify::new()),
            input: None,
            outputs: Vec::new(),
            drained: parking_lot::Mutex::default(),
        }
    }

    fn copy_input(&mut self, source: Endpoint, target: Endpoint) {
        let close = Arc::clone(&self.close_stdin);
        let task = tokio::spawn(copy_input(source, target, close));
        self.input = Some(task.abort_handle());
    }

    fn copy_output(&mut self, source: Endpoint, target: Endpoint) {
        let (sender, receiver) = oneshot::channel();
        let task = tokio::spawn(copy_output(source, target, self.exited.subscribe(), sender));
        self.outputs.push(task.abort_handle());
        self.drained.get_mut().push(receiver);
    }

    /// The terminal, as long as it has not hung up.
    pub(crate) fn terminal(&self) -> Option<Endpoint> {
        self.terminal.upgrade()
    }

    pub(crate) fn close_stdin(&self) {
        self.close_stdin.notify_one();
    }

    /// Called when the process has ended: answers when all it wrote is with the host.
    /// Children it has left behind may go on to write; their output still flows.
    pub(crate) async fn finish(&self) {
        if let Some(input) = &self.input {
            input.abort();
        }
        self.exited.send_replace(true);
        let drained = std::mem::take(&mut *self.drained.lock());
        for output in drained {
            // An error: the copy has ended, there is nothing more to wait for.
            let _ = output.await;
        }
    }

    /// Ends all copies, with whatever they still hold.
    pub(crate) fn abort(&self) {
        for task in self.outputs.iter().chain(&self.input) {
            task.abort();
        }
    }
}

impl Drop for Stdio {
    fn drop(&mut self) {
        self.abort();
    }
}

async fn copy_input(source: Endpoint, target: Endpoint, close: Arc<Notify>) {
    let mut buffer = vec![0_u8; CHUNK];
    loop {
        let read = tokio::select! {
            biased;
            read = read_some(&source, &mut buffer) => read,
            () = close.notified() => break,
        };
        match read {
            Ok(length) if length > 0 => {
                if write_all(&target, &buffer[..length]).await.is_err() {
                    break;
                }
            }
            Ok(_) | Err(_) => break,
        }
    }
}

async fn copy_output(
    source: Endpoint,
    target: Endpoint,
    mut exited: watch::Receiver<bool>,
    drained: oneshot::Sender<()>,
) {
    let mut buffer = vec![0_u8; CHUNK];
    let mut drained = Some(drained);
    let mut byte = [0];
    loop {
        let read = tokio::select! {
            read = read_some(&source, &mut buffer) => read,
            _ = exited.wait_for(|&exited| exited), if drained.is_some() => {
                // What the process left is here already, or it has left nothing.
                match rustix::io::read(source.get_ref(), &mut buffer) {
                    Err(Errno::AGAIN | Errno::INTR) => {
                        drained = None;
                        continue;
                    }
                    read => read.map_err(io::Error::from),
                }
            }
            // The host sends nothing here: it has closed its end.
            _ = read_some(&target, &mut byte) => break,
        };
        match read {
            Ok(length) if length > 0 => {
                if write_all(&target, &buffer[..length]).await.is_err() {
                    break;
                }
            }
            // A terminal without processes reads as an error.
            Ok(_) | Err(_) => break,
        }
    }
    // The host may have gone first.
    let _ = rustix::net::shutdown(target.get_ref(), Shutdown::Write);
}

async fn read_some(source: &Endpoint, buffer: &mut [u8]) -> io::Result<usize> {
    source
        .async_io(Interest::READABLE, |fd| {
            Ok(rustix::io::read(fd, &mut *buffer)?)
        })
        .await
}

async fn write_all(target: &Endpoint, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = target
            .async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?))
            .await?;
        bytes = &bytes[written..];
    }
    Ok(())
}

fn endpoint(fd: OwnedFd) -> Result<Endpoint> {
    rustix::io::ioctl_fionbio(&fd, true).or_fail(|| "prepare a stream")?;
    let endpoint =
        watch(fd, Interest::READABLE | Interest::WRITABLE).or_fail(|| "watch a stream")?;
    Ok(Arc::new(endpoint))
}

/// The read end, then the write end.
fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).or_fail(|| "make a pipe")
}

fn open_null() -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open("/dev/null", flags, Mode::empty()).or_fail(|| "open /dev/null")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn connections(stdin: bool) -> (Connections, UnixStream, Option<UnixStream>) {
        let (host, guest) = UnixStream::pair().expect("socket pair");
        let (input, guest_input) = UnixStream::pair().expect("socket pair");
        let connections = Connections {
            stdin: stdin.then(|| guest_input.into()),
            stdout: Some(guest.into()),
            stderr: None,
        };
        (connections, host, stdin.then_some(input))
    }

    async fn read_all(mut host: UnixStream) -> Vec<u8> {
        let read = tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            host.read_to_end(&mut all).map(|_| all)
        });
        read.await.expect("reader lives").expect("socket reads")
    }

    #[tokio::test]
    async fn output_left_in_the_pipe_is_out_before_finish_answers() {
        let (connections, host, _) = connections(false);
        let (mut fds, stdio) = connections.into_pipes().expect("pipes");
        rustix::io::write(&fds[1], b"last words").expect("pipe takes it");
        // Somebody else still holds the pipe open, as a background child would.
        let held = fds.swap_remove(1);
        stdio.finish().await;
        rustix::io::write(&held, b", and more").expect("pipe takes it");
        drop((held, fds));
        assert_eq!(read_all(host).await, b"last words, and more");
    }

    #[tokio::test]
    async fn end_of_input_reaches_the_process() {
        let (connections, _host, input) = connections(true);
        let (fds, _stdio) = connections.into_pipes().expect("pipes");
        let mut input = input.expect("asked for");
        input.write_all(b"hello").expect("socket takes it");
        drop(input);
        let stdin = fds.into_iter().next().expect("stdin");
        let read = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            std::fs::File::from(stdin)
                .read_to_string(&mut text)
                .map(|_| text)
        });
        assert_eq!(read.await.expect("lives").expect("reads"), "hello");
    }

    /// The agent's master and the process's peer of a new terminal.
    fn terminal() -> (OwnedFd, OwnedFd) {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a pty");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let peer = ioctl_tiocgptpeer(&master, flags).expect("a peer");
        (master, peer)
    }

    #[tokio::test]
    async fn terminal_hangs_up_once_the_host_has_closed_both_connections() {
        let (connections, host, input) = connections(true);
        let (master, peer) = terminal();
        let stdio = connections.into_terminal(master).expect("a terminal");
        drop(input);
        // Input alone may end: there is still somebody to look.
        let mut host_reader = host.try_clone().expect("duplicate");
        rustix::io::write(&peer, b"seen").expect("terminal takes it");
        let seen = tokio::task::spawn_blocking(move || {
            let mut seen = [0; 4];
            host_reader.read_exact(&mut seen).map(|()| seen)
        });
        assert_eq!(&seen.await.expect("lives").expect("reads"), b"seen");
        assert!(stdio.terminal().is_some());
        drop(host);
        let end = tokio::task::spawn_blocking(move || rustix::io::read(&peer, &mut [0; 8]));
        // A reader that waits already is told otherwise than one that comes later.
        let end = end.await.expect("lives");
        assert!(matches!(end, Ok(0) | Err(Errno::IO)), "{end:?}");
        assert!(stdio.terminal().is_none());
    }

    #[tokio::test]
    async fn terminal_that_nobody_looks_at_does_not_hang_up() {
        let nobody = Connections {
            stdin: None,
            stdout: None,
            stderr: None,
        };
        let (master, peer) = terminal();
        let stdio = nobody.into_terminal(master).expect("a terminal");
        tokio::task::yield_now().await;
        assert!(stdio.terminal().is_some());
        rustix::io::write(&peer, b"unseen").expect("terminal takes it");
    }

    #[tokio::test]
    async fn output_without_a_reader_fails_the_next_write() {
        let (connections, host, _) = connections(false);
        let (fds, _stdio) = connections.into_pipes().expect("pipes");
        drop(host);
        let stdout = fds.into_iter().nth(1).expect("stdout");
        let broken = tokio::task::spawn_blocking(move || {
            // Until the agent has heard of it, the pipe takes what fits.
            loop {
                if let Err(errno) = rustix::io::write(&stdout, &[0; 4096]) {
                    return errno;
                }
            }
        });
        assert_eq!(broken.await.expect("lives"), Errno::PIPE);
    }

    #[tokio::test]
    async fn large_output_arrives_whole() {
        let (connections, host, _) = connections(false);
        let (fds, stdio) = connections.into_pipes().expect("pipes");
        let sent: Vec<u8> = (0_u32..500_000).flat_map(u32::to_le_bytes).collect();
        let expected = sent.clone();
        let writer = tokio::task::spawn_blocking(move || {
            let stdout = fds.into_iter().nth(1).expect("stdout");
            std::fs::File::from(stdout).write_all(&sent)
        });
        let received = read_all(host).await;
        writer.await.expect("lives").expect("writes");
        stdio.finish().await;
        assert!(received == expected, "{} bytes", received.len());
    }
}
