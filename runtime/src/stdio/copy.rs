//! The copies between a stream's end on the host and its connection to the guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::LogStream;
use super::descriptor::Descriptor;

/// As much as a pipe holds.
const BUFFER_LEN: usize = 64 * 1024;

/// What is read at once of input: people type it, mostly. It doubles while there
/// is more.
const INPUT_LEN: usize = 4096;

#[derive(Debug)]
pub(super) struct Output {
    pub(super) sink: Option<Sink>,
    pub(super) log: Option<LogStream>,
}

#[derive(Debug)]
pub(super) struct Sink {
    pub(super) end: Descriptor,
    pub(super) unread: Unread,
}

/// What becomes of output that has no reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// It is lost here: it is in the log.
    Drop,
    /// It waits for one.
    Wait,
    /// The stream ends, for the process too.
    End,
}

/// What is seen of the copies from outside.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) bytes: AtomicU64,
    /// Copies that wait for a reader on the host.
    pub(super) held: AtomicU64,
}

/// Copies until the input's end, or until it is to be closed and what is in it
/// has been read. Then the guest sees the end.
pub(super) async fn copy_stdin(
    mut end: Descriptor,
    guest: UnixStream,
    mut close: watch::Receiver<bool>,
) {
    let (mut guest_end, mut to_guest) = guest.into_split();
    let mut buffer = vec![0; INPUT_LEN];
    loop {
        let closing = *close.borrow_and_update();
        let read = if closing {
            end.read_now(&mut buffer)
        } else {
            let mut byte = [0];
            tokio::select! {
                read = end.read(&mut buffer) => read,
                changed = close.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                // The guest sends nothing here: it has closed its end.
                _ = guest_end.read(&mut byte) => return,
            }
        };
        let count = match read {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        if to_guest.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        if count == buffer.len() && count < BUFFER_LEN {
            buffer.resize(count * 2, 0);
        }
    }
    drop((end, buffer));
    // Fails where the guest is gone already.
    let _ = to_guest.shutdown().await;
    // The connection stays until the guest closes it: what was sent is read.
    let mut byte = [0];
    let _ = guest_end.read(&mut byte).await;
}

pub(super) async fn copy_output(
    mut guest: UnixStream,
    mut output: Output,
    progress: Arc<Progress>,
) {
    let mut buffer = Vec::new();
    let mut log_failed = false;
    loop {
        // No buffer is held while there is nothing to copy.
        tokio::select! {
            ready = guest.readable() => if ready.is_err() {
                break;
            },
            () = output.ended() => break,
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
            let written = sink.end.write_all(&buffer).await;
            progress.held.fetch_sub(1, Ordering::Relaxed);
            progress.bytes.fetch_add(1, Ordering::Relaxed);
            match (written, sink.unread) {
                (Ok(()), _) | (Err(_), Unread::Drop) => {}
                (Err(_), Unread::Wait) => output.sink = None,
                (Err(err), Unread::End) => {
                    tracing::debug!("output ends: {err}");
                    break;
                }
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

impl Output {
    /// Answers when there is no use in more output.
    async fn ended(&self) {
        match &self.sink {
            Some(sink) if sink.unread == Unread::End => sink.end.unread_for_good().await,
            _ => std::future::pending().await,
        }
    }
}
