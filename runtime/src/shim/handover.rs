//! The socket on which a process's standard streams are handed over.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};
use tokio::io::Interest;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::stdio::Inherited;
use crate::stdio::handover::{Handover, HandoverReply, receive, send};
use crate::watched::watch;

/// Connections that wait to be taken, and most that are served at a time.
const CLIENTS_MAX: u16 = 16;

/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long to wait for descriptors or memory that others have.
const RETRY: Duration = Duration::from_millis(100);

pub(super) fn bind_stdio(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, CLIENTS_MAX.into())?;
    Ok(socket)
}

/// Takes descriptors in until the sandbox process ends.
pub(super) async fn serve_stdio(listener: OwnedFd, inherited: Inherited) -> io::Result<()> {
    let listener = watch(listener, Interest::READABLE)?;
    let places = Arc::new(Semaphore::new(CLIENTS_MAX.into()));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return Ok(());
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = listener
            .async_io(Interest::READABLE, |fd| Ok(accept_with(fd, flags)?))
            .await;
        let client = match accepted {
            Err(err) if is_the_clients(&err) => continue,
            Err(err) if is_want(&err) => {
                tracing::warn!("a client that hands over standard streams has to wait: {err}");
                tokio::time::sleep(RETRY).await;
                continue;
            }
            result => result?,
        };
        let inherited = inherited.clone();
        tokio::spawn(async move {
            match timeout(PATIENCE, take(client, &inherited)).await {
                Ok(Ok(())) => {}
                Ok(Err(err)) => tracing::warn!("standard streams were not taken over: {err}"),
                Err(_) => tracing::warn!("a client that hands over standard streams says nothing"),
            }
            drop(place);
        });
    }
}

fn is_the_clients(err: &io::Error) -> bool {
    Errno::from_io_error(err).is_some_and(|errno| errno == Errno::CONNABORTED)
}

/// Others have what is wanting, and will give it back.
fn is_want(err: &io::Error) -> bool {
    Errno::from_io_error(err).is_some_and(|errno| {
        matches!(
            errno,
            Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM
        )
    })
}

async fn take(client: OwnedFd, inherited: &Inherited) -> io::Result<()> {
    let client = watch(client, Interest::READABLE)?;
    let (packet, fds) = client
        .async_io(Interest::READABLE, |fd| receive(fd.as_fd()))
        .await?;
    if packet.is_empty() {
        return Ok(());
    }
    let taken = serde_json::from_slice::<Handover>(&packet)
        .map_err(|err| err.to_string())
        .and_then(|request| inherited.put(&request.token, fds));
    let reply = HandoverReply {
        ok: taken.is_ok(),
        error: taken.err(),
    };
    // The answer fits into an empty socket's buffer.
    send(client.as_fd(), &serde_json::to_vec(&reply)?, &[])
}
