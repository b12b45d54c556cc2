//! Name service on a loopback address: an engine's embedded resolver listens in the
//! network namespace on the host, and containers find it where they expect it.
//!
//! Queries cross to the host as they are; where they go there is the host's to say.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use lazaret_protocol::ports;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_vsock::{VsockAddr, VsockStream};

use crate::failure::{OrFail, Result};

const PORT: u16 = 53;

/// Longest message (RFC 1035, 4.2.2).
const MESSAGE_MAX: usize = 65_535;

/// Queries and connections under way; more wait their turn in the kernel. The host
/// takes as many.
const UNDER_WAY_MAX: usize = 32;

/// Resolvers give up after 5 seconds.
const QUERY_DEADLINE: Duration = Duration::from_secs(10);

/// RFC 7766, 6.2.3 asks for "a few seconds" between queries.
const STREAM_DEADLINE: Duration = Duration::from_secs(60);

/// How the host's end is reached.
pub trait Dial: Clone + Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;

    fn dial(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// The host's DNS port.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostDns;

impl Dial for HostDns {
    type Stream = VsockStream;

    async fn dial(&self) -> io::Result<VsockStream> {
        VsockStream::connect(VsockAddr::new(ports::HOST_CID, ports::DNS)).await
    }
}

/// Ends with its drop, at the latest.
#[derive(Debug)]
pub(super) struct NameServer {
    address: IpAddr,
    tasks: JoinSet<()>,
}

impl NameServer {
    pub(super) fn start<D: Dial>(address: IpAddr, host: D) -> Result<Self> {
        let place = SocketAddr::new(address, PORT);
        let doing = || format!("serve names on {place}");
        let datagrams = std::net::UdpSocket::bind(place).or_fail(doing)?;
        datagrams.set_nonblocking(true).or_fail(doing)?;
        let datagrams = UdpSocket::from_std(datagrams).or_fail(doing)?;
        let streams = std::net::TcpListener::bind(place).or_fail(doing)?;
        streams.set_nonblocking(true).or_fail(doing)?;
        let streams = TcpListener::from_std(streams).or_fail(doing)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_datagrams(datagrams, host.clone()));
        tasks.spawn(serve_streams(streams, host));
        Ok(Self { address, tasks })
    }

    /// Answers when its sockets are closed.
    pub(super) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    pub(super) fn address(&self) -> IpAddr {
        self.address
    }
}

async fn serve_datagrams<D: Dial>(socket: UdpSocket, host: D) {
    let socket = Arc::new(socket);
    let room = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    let mut under_way = JoinSet::new();
    let mut buffer = vec![0; MESSAGE_MAX];
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        while under_way.try_join_next().is_some() {}
        let (query, client) = match socket.recv_from(&mut buffer).await {
            Ok((length, client)) => (buffer[..length].to_vec(), client),
            Err(err) => return tracing::warn!(%err, "name service ends"),
        };
        let (socket, host) = (Arc::clone(&socket), host.clone());
        under_way.spawn(async move {
            // An answer that does not come is asked for again by the client.
            match timeout(QUERY_DEADLINE, ask(&host, &query)).await {
                Ok(Ok(answer)) => drop(socket.send_to(&answer, client).await),
                Ok(Err(err)) => tracing::debug!(%err, "a name query failed"),
                Err(_) => tracing::debug!("a name query was not answered"),
            }
            drop(permit);
        });
    }
}

async fn ask<D: Dial>(host: &D, query: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    let mut host = host.dial().await?;
    let mut message = vec![ports::DNS_DATAGRAM];
    message.extend_from_slice(&length.to_be_bytes());
    message.extend_from_slice(query);
    host.write_all(&message).await?;
    let length = host.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    host.read_exact(&mut answer).await?;
    Ok(answer)
}

async fn serve_streams<D: Dial>(listener: TcpListener, host: D) {
    let room = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    let mut under_way = JoinSet::new();
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        while under_way.try_join_next().is_some() {}
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            // This client's trouble.
            Err(err) if err.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(err) => return tracing::warn!(%err, "name service over TCP ends"),
        };
        let host = host.clone();
        under_way.spawn(async move {
            if let Ok(Err(err)) = timeout(STREAM_DEADLINE, join(&host, client)).await {
                tracing::debug!(%err, "name service over TCP failed");
            }
            drop(permit);
        });
    }
}

async fn join<D: Dial>(host: &D, mut client: TcpStream) -> io::Result<()> {
    let mut host = host.dial().await?;
    host.write_u8(ports::DNS_STREAM).await?;
    copy_bidirectional(&mut client, &mut host).await?;
    Ok(())
}
