//! The socket of the Task API: its clients are counted, since a sandbox nobody
//! is connected to may end.

use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use containerd_shim_protos::shim_async::create_task;
use futures_core::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use super::task::TaskService;
use crate::sandbox::{Client, Sandbox};

/// Serves the Task API until the server is shut down.
pub(super) async fn serve(
    sandbox: &Arc<Sandbox>,
    listener: StdUnixListener,
) -> Result<Server, ServeError> {
    listener.set_nonblocking(true)?;
    let clients = Clients {
        listener: UnixListener::from_std(listener)?,
        sandbox: Arc::clone(sandbox),
    };
    let service = create_task(Arc::new(TaskService::new(Arc::clone(sandbox))));
    let mut server = Server::new()
        .add_listener(Listener::new(clients))
        .register_service(service);
    server.start().await?;
    Ok(server)
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on the task socket")]
    Listen(#[from] io::Error),
    #[error("cannot serve the task socket")]
    Ttrpc(#[from] ttrpc::Error),
}

/// Connections as they come.
struct Clients {
    listener: UnixListener,
    sandbox: Arc<Sandbox>,
}

impl Stream for Clients {
    type Item = io::Result<Connection>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.listener.poll_accept(context).map(|accepted| {
            Some(accepted.map(|(stream, _)| Connection {
                stream,
                _client: self.sandbox.client(),
            }))
        })
    }
}

/// A client's socket, counted as long as it is open.
struct Connection {
    stream: UnixStream,
    _client: Client,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
