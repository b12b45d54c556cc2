//! Name service on a loopback address: an engine's embedded resolver listens in the
//! network namespace on the host, and containers find it where they expect it.
//!
//! Queries cross to the host as they are; where they go there is the host's to say.
//! The agent listens on a port of the kernel's choice, to which the name service's is
//! led ([`Redirect`]).

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use lazaret_protocol::ports;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_vsock::{VsockAddr, VsockStream};

use super::namespace;
use super::redirect::Redirect;
use crate::failure::{OrFail, Result};

const PORT: u16 = 53;

/// Longest message (RFC 1035, 4.2.2).
const MESSAGE_MAX: usize = 65_535;

/// Tries to find a port that is free for both protocols.
const BINDS_MAX: usize = 16;

/// Queries and connections under way; more wait their turn in the kernel. The host
/// takes as many.
const UNDER_WAY_MAX: usize = 256;

/// When resolvers give up.
const QUERY_DEADLINE: Duration = Duration::from_secs(5);

/// RFC 7766, 6.2.3 asks for "a few seconds" between queries.
const STREAM_DEADLINE: Duration = Duration::from_secs(60);

/// Between attempts to hear of a client: a failure that lasts keeps no processor busy.
const PAUSE: Duration = Duration::from_millis(100);

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
    _redirect: Redirect,
}

impl NameServer {
    pub(super) fn start<D: Dial>(address: IpAddr, host: D) -> Result<Self> {
        let doing = || format!("serve names on {}", SocketAddr::new(address, PORT));
        let (datagrams, streams) = bind(address).or_fail(doing)?;
        let port = datagrams.local_addr().or_fail(doing)?.port();
        let namespace = namespace::cookie(datagrams.as_fd()).or_fail(doing)?;
        let redirect = Redirect::new(namespace, address, PORT, port).or_fail(doing)?;
        let room = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_datagrams(datagrams, Arc::clone(&room), host.clone()));
        let accept = move |context: &mut Context<'_>| streams.poll_accept(context);
        tasks.spawn(serve_streams(accept, room, host));
        Ok(Self {
            address,
            tasks,
            _redirect: redirect,
        })
    }

    /// Answers when its sockets are closed.
    pub(super) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    pub(super) fn address(&self) -> IpAddr {
        self.address
    }
}

/// One port of both protocols, of the kernel's choice.
fn bind(address: IpAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut attempt = 1;
    loop {
        let datagrams = std::net::UdpSocket::bind((address, 0))?;
        match std::net::TcpListener::bind(datagrams.local_addr()?) {
            Err(err) if err.kind() == io::ErrorKind::AddrInUse && attempt < BINDS_MAX => {
                attempt += 1;
            }
            streams => {
                let streams = streams?;
                datagrams.set_nonblocking(true)?;
                streams.set_nonblocking(true)?;
                return Ok((
                    UdpSocket::from_std(datagrams)?,
                    TcpListener::from_std(streams)?,
                ));
            }
        }
    }
}

/// What the next client sends, or who comes next. What fails meanwhile, for want of
/// memory, say, or with an error that the network had for a client (accept(2)), passes.
async fn next<T>(
    protocol: &str,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
) -> T {
    let mut failures = 0_u64;
    loop {
        match poll_fn(&mut poll).await {
            Ok(client) => return client,
            // This client's trouble.
            Err(err) if err.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(err) if failures == 0 => tracing::warn!(%err, protocol, "cannot hear of clients"),
            Err(err) => tracing::debug!(%err, protocol, failures, "cannot hear of clients"),
        }
        failures += 1;
        sleep(PAUSE).await;
    }
}

async fn serve_datagrams<D: Dial>(socket: UdpSocket, room: Arc<Semaphore>, host: D) {
    let socket = Arc::new(socket);
    let mut under_way = JoinSet::new();
    let mut buffer = vec![0; MESSAGE_MAX];
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        while under_way.try_join_next().is_some() {}
        let receive = |context: &mut Context<'_>| {
            let mut query = ReadBuf::new(&mut buffer);
            let client = ready!(socket.poll_recv_from(context, &mut query))?;
            Poll::Ready(Ok((query.filled().to_vec(), client)))
        };
        let (query, client) = next("UDP", receive).await;
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

async fn serve_streams<D: Dial>(
    mut accept: impl FnMut(&mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>>,
    room: Arc<Semaphore>,
    host: D,
) {
    let mut under_way = JoinSet::new();
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        while under_way.try_join_next().is_some() {}
        let (client, _) = next("TCP", &mut accept).await;
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

#[cfg(test)]
mod tests {
    use tokio::io::Interest;

    use super::super::tests::Reversing;
    use super::*;

    #[tokio::test]
    async fn connections_are_served_after_failures_to_accept() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("bound");
        let mut failures = [libc::ENOMEM, libc::ENETDOWN].into_iter();
        let accept = move |context: &mut Context<'_>| match failures.next() {
            Some(code) => Poll::Ready(Err(io::Error::from_raw_os_error(code))),
            None => listener.poll_accept(context),
        };
        let room = Arc::new(Semaphore::new(1));
        let _server = tokio::spawn(serve_streams(accept, room, Reversing));

        let mut client = TcpStream::connect(address).await.expect("connected");
        client.write_all(b"\0\x03abc").await.expect("sent");
        let mut answer = [0; 5];
        client.read_exact(&mut answer).await.expect("answered");
        assert_eq!(&answer, b"\0\x03cba");
    }

    #[tokio::test]
    async fn queries_are_answered_after_an_error_of_the_socket() {
        let server = UdpSocket::bind("127.0.53.1:0").await.expect("bound");
        let client = UdpSocket::bind("127.0.53.2:0").await.expect("bound");
        let client_address = client.local_addr().expect("bound");
        let server_address = server.local_addr().expect("bound");
        // To a connected socket the network's answer is an error.
        server.connect(client_address).await.expect("connected");
        drop(client);
        server.send(b"nobody is there").await.expect("sent");
        server.ready(Interest::ERROR).await.expect("refused");
        let room = Arc::new(Semaphore::new(1));
        let _server = tokio::spawn(serve_datagrams(server, room, Reversing));

        let client = UdpSocket::bind(client_address).await.expect("bound again");
        client.send_to(b"abc", server_address).await.expect("sent");
        let mut answer = [0; 4];
        let received = client.recv_from(&mut answer);
        let received = timeout(Duration::from_secs(60), received).await;
        let (length, _) = received.expect("in time").expect("answered");
        assert_eq!(&answer[..length], b"cba");
    }
}
