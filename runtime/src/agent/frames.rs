//! The connection to the agent with a bound on each of its messages: decoded, one
//! takes many times its length in memory, and ttrpc's own bound is 4 MiB.
//!
//! A message is a header of [`HEADER_LEN`] bytes, which begins with the payload's
//! length as a big-endian u32, and the payload. The first header that says more than
//! [`REPLY_MAX`] ends the connection.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use lazaret_protocol::REPLY_MAX;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const HEADER_LEN: usize = 10;

/// The length of the message that was too long, once there was one.
pub(super) type Breach = Arc<OnceLock<usize>>;

pub(super) struct Frames<S> {
    stream: S,
    breach: Breach,
    next: Next,
}

/// What the stream's next byte is of.
enum Next {
    Header {
        bytes: [u8; HEADER_LEN],
        filled: usize,
    },
    Payload {
        left: usize,
    },
}

impl Next {
    const HEADER: Self = Self::Header {
        bytes: [0; HEADER_LEN],
        filled: 0,
    };

    /// Follows the stream over bytes just read. Fails with a length that is too much.
    fn pass(&mut self, mut read: &[u8]) -> Result<(), usize> {
        while !read.is_empty() {
            match self {
                Self::Header { bytes, filled } => {
                    let taken = read.len().min(HEADER_LEN - *filled);
                    bytes[*filled..*filled + taken].copy_from_slice(&read[..taken]);
                    *filled += taken;
                    read = &read[taken..];
                    if *filled == HEADER_LEN {
                        let [a, b, c, d, ..] = *bytes;
                        let left = u32::from_be_bytes([a, b, c, d]) as usize;
                        if left > REPLY_MAX {
                            return Err(left);
                        }
                        *self = Self::Payload { left };
                    }
                }
                Self::Payload { left } => {
                    let taken = read.len().min(*left);
                    *left -= taken;
                    read = &read[taken..];
                }
            }
            if matches!(self, Self::Payload { left: 0 }) {
                *self = Self::HEADER;
            }
        }
        Ok(())
    }
}

impl<S> Frames<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            breach: Breach::default(),
            next: Next::HEADER,
        }
    }

    /// Where to look why the connection has ended.
    pub(super) fn breach(&self) -> Breach {
        Arc::clone(&self.breach)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Frames<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(length) = self.breach.get() {
            return Poll::Ready(Err(too_long(*length)));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if let Err(length) = self.next.pass(&buf.filled()[before..]) {
            buf.set_filled(before);
            // Set here alone, and not read on from.
            let _ = self.breach.set(length);
            return Poll::Ready(Err(too_long(length)));
        }
        Poll::Ready(Ok(()))
    }
}

fn too_long(length: usize) -> io::Error {
    let text = format!("a message of {length} bytes is longer than the {REPLY_MAX} allowed");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Frames<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    fn message(length: usize) -> Vec<u8> {
        let mut message = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        message.extend([0, 0, 0, 1, 2, 0]);
        message.resize(HEADER_LEN + length, b'x');
        message
    }

    /// Reads what comes in pieces of this size, and how it ends.
    async fn read(sent: &[u8], piece: usize) -> (Vec<u8>, io::Result<usize>) {
        let (mut agent, host) = duplex(piece);
        let mut frames = Frames::new(host);
        let mut received = Vec::new();
        let write = async {
            // Fails where the reader has had enough.
            let _ = agent.write_all(sent).await;
            drop(agent);
        };
        let read = async {
            let end = frames.read_to_end(&mut received).await;
            drop(frames);
            end
        };
        let ((), end) = tokio::join!(write, read);
        (received, end)
    }

    #[tokio::test]
    async fn messages_pass_however_they_are_split() {
        let sent = [message(3), message(0), message(20), message(1)].concat();
        for piece in [1, 3, HEADER_LEN, 11, 64] {
            let (received, end) = read(&sent, piece).await;
            assert_eq!(end.unwrap(), sent.len());
            assert_eq!(received, sent, "{piece}");
        }
    }

    #[tokio::test]
    async fn the_longest_message_passes_and_a_longer_one_ends_the_connection() {
        let longest = message(REPLY_MAX);
        let (received, end) = read(&longest, 4096).await;
        assert_eq!(end.unwrap(), longest.len());
        assert_eq!(received, longest);

        let sent = [longest.clone(), message(REPLY_MAX + 1)].concat();
        for piece in [7, 4096] {
            let (received, end) = read(&sent, piece).await;
            let err = end.unwrap_err().to_string();
            assert!(err.contains("65537 bytes is longer"), "{err}");
            assert!(received.len() < longest.len() + HEADER_LEN, "{piece}");
        }
    }

    #[tokio::test]
    async fn what_is_too_long_is_remembered_and_not_read_on_from() {
        let sent = [message(REPLY_MAX + 7), message(1)].concat();
        let mut frames = Frames::new(sent.as_slice());
        let breach = frames.breach();
        let mut header = [0; HEADER_LEN];
        assert!(frames.read_exact(&mut header).await.is_err());
        assert!(frames.read_exact(&mut header).await.is_err());
        assert_eq!(breach.get(), Some(&(REPLY_MAX + 7)));
    }
}
