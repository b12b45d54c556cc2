//! A process's standard streams as open descriptors, from `lazaret-oci` to the
//! sandbox process: one packet with the descriptors, one packet back.
//!
//! A request of the Task API names them afterwards as `fd:<token>` in each of
//! its fields; which descriptor is meant follows from the field. Three are sent:
//! stdin, stdout and stderr. With a terminal it is one, the slave of a
//! pseudo-terminal, for all of them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg,
    sendmsg, socket_with, sockopt,
};
use serde::{Deserialize, Serialize};

/// Name of the socket in a sandbox's directory (`SOCK_SEQPACKET`). It listens once
/// `start` has answered.
pub const STDIO_SOCKET: &str = "stdio.sock";

/// In front of a token in a request's `stdin`, `stdout` and `stderr`.
pub const FD_SCHEME: &str = "fd:";

/// Most descriptors of one process.
pub const FDS_MAX: usize = 3;

/// Longest packet: a token and what is around it, or an error's text.
pub const PACKET_MAX: usize = 1024;

/// How long the sandbox process may take for each step.
const PATIENCE: Duration = Duration::from_secs(30);

/// First packet, with the descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// The exec's id, or the container's for its own process.
    pub token: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverReply {
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error("cannot pass the standard streams on through {}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("the sandbox process does not take the standard streams: {0}")]
    Refused(String),
}

/// How a request names what was handed over.
pub fn address(token: &str) -> String {
    format!("{FD_SCHEME}{token}")
}

/// Hands descriptors over, and returns once they have arrived.
pub fn hand_over(socket: &Path, token: &str, fds: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
    let failed = |source| HandoverError::Socket {
        path: socket.to_owned(),
        source,
    };
    let reply = exchange(socket, token, fds).map_err(failed)?;
    if reply.ok {
        return Ok(());
    }
    let error = reply.error.unwrap_or_else(|| "no reason given".to_owned());
    Err(HandoverError::Refused(error))
}

fn exchange(path: &Path, token: &str, fds: &[BorrowedFd<'_>]) -> io::Result<HandoverReply> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    for timeout in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
        sockopt::set_socket_timeout(&socket, timeout, Some(PATIENCE))?;
    }
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let packet = serde_json::to_vec(&Handover {
        token: token.to_owned(),
    })?;
    send(socket.as_fd(), &packet, fds)?;
    let (packet, _) = receive(socket.as_fd())?;
    if packet.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&packet)?)
}

/// Sends one packet with descriptors.
pub fn send(socket: BorrowedFd<'_>, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors"));
    }
    sendmsg(
        socket,
        &[IoSlice::new(packet)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives one packet and its descriptors; an empty packet is the end.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut packet = vec![0; PACKET_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut packet)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    packet.truncate(received.bytes);
    Ok((packet, fds))
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, PipeWriter, Read, Write};

    use rustix::net::{accept, bind, listen};

    use super::*;

    fn serve(
        path: &Path,
        reply: &'static str,
    ) -> std::thread::JoinHandle<(Handover, Vec<OwnedFd>)> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        listen(&socket, 1).unwrap();
        std::thread::spawn(move || {
            let client = accept(&socket).unwrap();
            let (packet, fds) = receive(client.as_fd()).unwrap();
            send(client.as_fd(), reply.as_bytes(), &[]).unwrap();
            (serde_json::from_slice(&packet).unwrap(), fds)
        })
    }

    #[test]
    fn the_very_descriptors_arrive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(STDIO_SOCKET);
        let server = serve(&path, r#"{"ok":true}"#);
        let (mut reader, writer): (PipeReader, PipeWriter) = io::pipe().unwrap();
        let fds = [writer.as_fd(); 3];
        hand_over(&path, "box", &fds).unwrap();
        let (request, mut fds) = server.join().unwrap();
        assert_eq!(request.token, "box");
        assert_eq!(fds.len(), 3);
        drop(writer);
        PipeWriter::from(fds.remove(1)).write_all(b"x").unwrap();
        drop(fds);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn a_refusal_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(STDIO_SOCKET);
        let server = serve(&path, r#"{"ok":false,"error":"taken"}"#);
        let err = hand_over(&path, "box", &[]).unwrap_err();
        assert!(err.to_string().ends_with(": taken"), "{err}");
        server.join().unwrap();
    }

    #[test]
    fn nobody_there_is_an_error_that_names_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(STDIO_SOCKET);
        let err = hand_over(&path, "box", &[]).unwrap_err();
        assert!(err.to_string().contains("stdio.sock"), "{err}");
    }
}
