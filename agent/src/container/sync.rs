//! The talk between the agent and a container stage over one seqpacket socket.
//!
//! ```text
//! stage                          agent
//!   Created (+ pty master) ──▶
//!                          ◀──   start byte
//!   Executing              ──▶
//!   end of file (the socket is close-on-exec): execve has succeeded
//!   Failed at any point    ──▶
//! ```
//! An end of file without `Executing` before it means that the stage was killed.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, send, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;

use crate::failure::{Failure, OrFail, Result};
use crate::watched::{Watched, watch};

/// Longest message of a stage. A failure's text is cut to half of it.
const MESSAGE_MAX: usize = 16 * 1024;
const START: &[u8] = b"s";

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    Created,
    Executing,
    Failed(Failure),
}

/// The stage's end: plain blocking calls.
#[derive(Debug)]
pub(crate) struct StageSocket(OwnedFd);

impl StageSocket {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    pub(crate) fn created(&self, terminal: Option<BorrowedFd<'_>>) -> Result<()> {
        self.send(&Message::Created, terminal)
    }

    pub(crate) fn executing(&self) -> Result<()> {
        self.send(&Message::Executing, None)
    }

    pub(crate) fn failed(&self, mut failure: Failure) -> Result<()> {
        let mut end = failure.message.len().min(MESSAGE_MAX / 2);
        while !failure.message.is_char_boundary(end) {
            end -= 1;
        }
        failure.message.truncate(end);
        self.send(&Message::Failed(failure), None)
    }

    /// Blocks until the agent says start. False: the agent has let go of us.
    pub(crate) fn wait_for_start(&self) -> Result<bool> {
        let mut byte = [0_u8; 1];
        loop {
            match rustix::io::read(&self.0, &mut byte) {
                Ok(read) => return Ok(read == START.len()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).or_fail(|| "wait for the start of the container"),
            }
        }
    }

    fn send(&self, message: &Message, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        let doing = || "report to the agent";
        let text = serde_json::to_vec(message).or_fail(doing)?;
        let Some(fd) = fd else {
            // The system call that filters of the container forbid last.
            rustix::io::write(&self.0, &text).or_fail(doing)?;
            return Ok(());
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(
            &self.0,
            &[IoSlice::new(&text)],
            &mut control,
            SendFlags::NOSIGNAL,
        )
        .or_fail(doing)?;
        Ok(())
    }
}

/// The agent's end.
#[derive(Debug)]
pub(crate) struct AgentSocket(Watched);

impl AgentSocket {
    /// The agent's end and the descriptor for the stage.
    pub(crate) fn pair() -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .or_fail(|| "make a stage socket")?;
        rustix::io::ioctl_fionbio(&ours, true).or_fail(|| "make a stage socket")?;
        let ours = watch(ours, Interest::READABLE).or_fail(|| "register a stage socket")?;
        Ok((Self(ours), theirs))
    }

    /// Lets the stage go on to execve.
    pub(crate) fn start(&self) -> Result<()> {
        match send(self.0.get_ref(), START, SendFlags::NOSIGNAL) {
            // It was killed, which the end of file tells.
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            sent => sent.map(drop).or_fail(|| "start the process"),
        }
    }

    /// The stage's next message, or `None` at the end of file.
    pub(crate) async fn next(&self) -> Result<Option<(Message, Option<OwnedFd>)>> {
        let mut buffer = vec![0_u8; MESSAGE_MAX];
        let (length, fd) = self
            .0
            .async_io(Interest::READABLE, |socket| {
                match receive(socket.as_fd(), &mut buffer) {
                    // It was killed before it had read what was sent to it.
                    Err(Errno::CONNRESET) => Ok((0, None)),
                    received => Ok(received?),
                }
            })
            .await
            .or_fail(|| "hear from the container stage")?;
        if length == 0 {
            return Ok(None);
        }
        let message =
            serde_json::from_slice(&buffer[..length]).or_fail(|| "read a stage message")?;
        Ok(Some((message, fd)))
    }
}

fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> rustix::io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.into_iter().next();
        }
    }
    Ok((received.bytes, fd))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stage_that_was_killed_is_an_end_of_file_wherever_it_was() {
        let (before, stage) = AgentSocket::pair().expect("a pair");
        drop(stage);
        before.start().expect("nobody hears it");
        assert!(before.next().await.expect("an end").is_none());

        let (between, stage) = AgentSocket::pair().expect("a pair");
        between.start().expect("sent");
        drop(stage);
        assert!(between.next().await.expect("an end").is_none());
    }
}
