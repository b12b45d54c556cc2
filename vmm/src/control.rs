//! The socket between a sandbox process and its `lazaret-vmm`: JSON messages,
//! one a packet (`SOCK_SEQPACKET`), with descriptors attached (`SCM_RIGHTS`).
//!
//! The first packet is a [`VmConfig`](crate::config::VmConfig) with its
//! [`VmFds`](crate::config::VmFds). Then requests go one way and events the
//! other. The end of the socket means that the other process is gone: a VMM
//! whose sandbox is gone ends its microVM.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Descriptor number under which `lazaret-vmm` finds its control socket.
pub const CONTROL_FD: i32 = 3;

/// Longest message, bytes. A configuration is under 1 KiB.
const MESSAGE_MAX: usize = 16 * 1024;

/// Most descriptors with one message.
const FDS_MAX: usize = 16;

/// What a sandbox process asks of a running VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum VmmRequest {
    /// End the microVM at once; answered by [`VmmEvent::Exited`].
    Stop,
    /// Stop the vCPUs; answered by [`VmmEvent::Paused`].
    Pause,
    /// Let the vCPUs run on; answered by [`VmmEvent::Resumed`].
    Resume,
    /// Take this much memory from the guest, MiB.
    SetBalloon { mib: u32 },
    /// Change what is behind a slot; answered by [`VmmEvent::Backend`] with the
    /// same `id`.
    Backend { id: u64, change: BackendChange },
}

/// A change of what is behind a net or block slot. Slots of each kind are
/// counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BackendChange {
    /// A tap device is attached (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`): frames
    /// flow and the link is up.
    ConnectNet { slot: u8 },
    /// The tap is closed and the link down.
    DisconnectNet { slot: u8 },
    /// A regular file or a block device is attached: the slot has its size.
    ConnectBlock { slot: u8, read_only: bool },
    /// Requests in flight are finished, the file is closed, the slot is empty.
    DisconnectBlock { slot: u8 },
}

/// What a VMM tells its sandbox process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum VmmEvent {
    /// The microVM is built and its kernel about to be entered.
    Started,
    Paused,
    Resumed,
    /// The guest has connected to a host port; the connection's end is attached.
    VsockConnection {
        port: u32,
    },
    /// The guest remembers as many shared files as the configuration lets it, or
    /// many more than when this was told last.
    ManyFiles,
    /// The change that was asked for with this `id` is made, or why not.
    Backend {
        id: u64,
        refusal: Option<String>,
    },
    /// The last message. `vm_exits` counts `KVM_RUN` returns by kind.
    Exited {
        reason: ExitReason,
        vm_exits: Vec<(String, u64)>,
    },
}

/// Why a microVM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ExitReason {
    #[error("the guest powered off")]
    Shutdown,
    #[error("the guest reset itself")]
    Reset,
    #[error("the guest kernel panicked")]
    Panic,
    #[error("the guest crashed (triple fault)")]
    TripleFault,
    #[error("stopped by its sandbox process")]
    Stopped,
    #[error("the microVM could not be started: {0}")]
    Start(String),
    #[error("the virtual machine monitor failed: {0}")]
    Vmm(String),
}

/// Why a message was not sent or received.
#[derive(Debug, Error)]
pub enum ControlError {
    #[error("control socket failed")]
    Socket(#[from] Errno),
    #[error("control message of {0} bytes is longer than {MESSAGE_MAX}")]
    TooLong(usize),
    #[error("control message lost some of its bytes")]
    Truncated,
    #[error("descriptors of a control message could not be taken: too many files are open")]
    Descriptors,
    #[error("control message is not understood")]
    Decode(#[from] serde_json::Error),
}

/// One end of the control socket.
#[derive(Debug)]
pub struct ControlSocket(OwnedFd);

impl ControlSocket {
    /// A connected pair, both ends close-on-exec.
    pub fn pair() -> Result<(Self, Self), ControlError> {
        let (a, b) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(a), Self(b)))
    }

    /// Sends one message with its descriptors, whole or not at all.
    pub fn send<M: Serialize>(
        &self,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ControlError> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MESSAGE_MAX {
            return Err(ControlError::TooLong(bytes.len()));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(ControlError::Descriptors);
        }
        sendmsg(
            &self.0,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Receives one message; `None` when the other end is closed. On a
    /// non-blocking socket without a message: [`Errno::AGAIN`].
    pub fn recv<M: DeserializeOwned>(&self) -> Result<Option<(M, Vec<OwnedFd>)>, ControlError> {
        let mut bytes = vec![0; MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Err(ControlError::Truncated);
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(ControlError::Descriptors);
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        Ok(Some((
            serde_json::from_slice(&bytes[..received.bytes])?,
            fds,
        )))
    }
}

impl From<OwnedFd> for ControlSocket {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<ControlSocket> for OwnedFd {
    fn from(socket: ControlSocket) -> Self {
        socket.0
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_arrives_with_its_descriptors() {
        let (sandbox, vmm) = ControlSocket::pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        vmm.send(&VmmEvent::VsockConnection { port: 1024 }, &[writer.as_fd()])
            .unwrap();
        let (event, fds) = sandbox.recv::<VmmEvent>().unwrap().unwrap();
        assert_eq!(event, VmmEvent::VsockConnection { port: 1024 });
        rustix::io::write(&fds[0], b"x").unwrap();
        let mut byte = [0];
        rustix::io::read(&reader, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn closed_socket_is_the_end_not_an_error() {
        let (sandbox, vmm) = ControlSocket::pair().unwrap();
        drop(vmm);
        assert!(sandbox.recv::<VmmEvent>().unwrap().is_none());
    }

    #[test]
    fn unknown_message_is_refused() {
        let (sandbox, vmm) = ControlSocket::pair().unwrap();
        vmm.send(&"reboot", &[]).unwrap();
        assert!(matches!(
            sandbox.recv::<VmmEvent>(),
            Err(ControlError::Decode(_))
        ));
    }
}
