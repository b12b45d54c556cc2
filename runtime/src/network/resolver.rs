//! An engine's name server on a loopback address of the network namespace: found by
//! the container's `resolv.conf`, and asked on behalf of the guest.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use lazaret_protocol::ports;
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::time::timeout;

const PORT: u16 = 53;

/// What is read of a `resolv.conf`; a name server behind it is not found.
const RESOLV_CONF_MAX: u64 = 64 * 1024;

/// A local server that listens accepts at once.
const PROBE_DEADLINE: Duration = Duration::from_secs(1);

/// How long one query may take: resolvers wait no longer.
const QUERY_DEADLINE: Duration = Duration::from_secs(5);

/// How long one connection over TCP may last.
const STREAM_DEADLINE: Duration = Duration::from_secs(60);

/// Source of what is mounted on a container's `/etc/resolv.conf`.
pub fn resolv_conf(spec: &Value) -> Option<&str> {
    let mounts = spec["mounts"].as_array()?;
    let on_it = |mount: &&Value| mount["destination"] == "/etc/resolv.conf";
    mounts.iter().rfind(on_it)?["source"].as_str()
}

/// A container's `resolv.conf`. It is looked up once, before the container can have a
/// part in it; what may stand in its place later is not followed, and not opened.
/// Engines write a new text into the same file.
#[derive(Debug)]
pub(super) struct ResolvConf(OwnedFd);

impl ResolvConf {
    pub(super) fn find(path: &Path) -> io::Result<Self> {
        // Waits for nobody, whatever it is.
        let fd = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let kind = FileType::from_raw_mode(fstat(&fd)?.st_mode);
        if kind != FileType::RegularFile {
            return Err(ErrorKind::InvalidInput.into());
        }
        Ok(Self(fd))
    }

    /// A name server that it names, on a loopback address.
    pub(super) fn loopback_server(&self) -> io::Result<Option<SocketAddr>> {
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(open(path, flags, Mode::empty())?);
        let mut text = Vec::new();
        file.take(RESOLV_CONF_MAX).read_to_end(&mut text)?;
        let server = loopback_server(&String::from_utf8_lossy(&text));
        Ok(server.map(|server| SocketAddr::new(server, PORT)))
    }
}

/// Whether somebody listens there whom the guest cannot reach by itself. (A container
/// may as well run its own.)
pub(super) async fn listens(server: SocketAddr) -> bool {
    let connected = timeout(PROBE_DEADLINE, TcpStream::connect(server)).await;
    matches!(connected, Ok(Ok(_)))
}

fn loopback_server(text: &str) -> Option<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let server = (words.next()? == "nameserver").then(|| words.next())??;
            server.parse().ok()
        })
        .find(IpAddr::is_loopback)
}

/// Carries one connection of the guest to the name server.
pub(super) async fn serve(mut guest: UnixStream, server: SocketAddr) {
    let work = async {
        match timeout(QUERY_DEADLINE, guest.read_u8()).await?? {
            ports::DNS_DATAGRAM => timeout(QUERY_DEADLINE, ask(&mut guest, server)).await?,
            ports::DNS_STREAM => {
                let mut server = TcpStream::connect(server).await?;
                let copied = copy_bidirectional(&mut guest, &mut server);
                timeout(STREAM_DEADLINE, copied).await?.map(drop)
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    };
    match timeout(STREAM_DEADLINE, work).await {
        Ok(Ok(())) => {}
        Ok(Err(err)) => tracing::debug!(%err, "a name query of the guest failed"),
        Err(_) => tracing::debug!("a name query of the guest took too long"),
    }
}

/// Asks one question, for as long as the guest waits for its answer.
async fn ask(guest: &mut UnixStream, server: SocketAddr) -> io::Result<()> {
    let length = guest.read_u16().await?;
    let mut question = vec![0; usize::from(length)];
    guest.read_exact(&mut question).await?;
    let answer = tokio::select! {
        answer = answer(&question, server) => answer?,
        // There is nothing more to be said.
        end = guest.read_u8() => return Err(match end {
            Ok(_) => io::ErrorKind::InvalidData.into(),
            Err(err) => err,
        }),
    };
    let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
    guest.write_all(&length.to_be_bytes()).await?;
    guest.write_all(&answer).await
}

async fn answer(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    // Many may wait, and then none of them holds memory for its answer.
    socket.readable().await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::unistd::mkfifo;
    use serde_json::json;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_first_loopback_server_counts() {
        let docker = "# Generated\nnameserver 127.0.0.11\nsearch lan\noptions ndots:0\n";
        assert_eq!(loopback_server(docker), Some([127, 0, 0, 11].into()));
        assert_eq!(loopback_server("nameserver\t::1"), "::1".parse().ok());
        assert_eq!(loopback_server("nameserver 10.0.0.1\n"), None);
        assert_eq!(loopback_server("#nameserver 127.0.0.1\nnameserver\n"), None);
    }

    #[test]
    fn the_last_mount_is_what_the_container_sees() {
        let mount = |source| json!({ "destination": "/etc/resolv.conf", "source": source });
        let spec = json!({ "mounts": [mount("/a"), { "destination": "/b" }, mount("/c")] });
        assert_eq!(resolv_conf(&spec), Some("/c"));
        assert_eq!(resolv_conf(&json!({})), None);
    }

    const NAMING: &str = "nameserver 127.93.81.7\n";

    #[tokio::test]
    async fn a_server_that_nobody_runs_does_not_listen() {
        // Nobody does on port 53 of this address in a test's environment.
        assert!(!listens("127.93.81.7:53".parse().unwrap()).await);
    }

    #[test]
    fn a_new_text_of_the_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("resolv.conf"), dir.path().join("link"));
        fs::write(&path, "nameserver 10.0.0.1\n").unwrap();
        // As the mount of it does.
        symlink(&path, &link).unwrap();
        for path in [&path, &link] {
            let resolv_conf = ResolvConf::find(path).unwrap();
            fs::write(path, "nameserver 10.0.0.1\n").unwrap();
            assert_eq!(resolv_conf.loopback_server().unwrap(), None);
            fs::write(path, NAMING).unwrap();
            let server = resolv_conf.loopback_server().unwrap();
            assert_eq!(server, "127.93.81.7:53".parse().ok());
        }
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&fifo, dir.path(), &dir.path().join("none")] {
            assert!(ResolvConf::find(path).is_err(), "{}", path.display());
        }
    }

    #[test]
    fn what_takes_the_files_place_is_not_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("resolv.conf"), "nameserver 10.0.0.1\n").unwrap();
        let resolv_conf = ResolvConf::find(&path("resolv.conf")).unwrap();
        fs::write(path("elsewhere"), NAMING).unwrap();
        symlink(path("elsewhere"), path("link")).unwrap();
        mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for other in ["link", "fifo"] {
            fs::rename(path(other), path("resolv.conf")).unwrap();
            assert_eq!(resolv_conf.loopback_server().unwrap(), None, "{other}");
        }
    }

    #[tokio::test]
    async fn datagrams_and_streams_reach_the_server() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let datagrams = UdpSocket::bind(address).await.unwrap();
        tokio::spawn(async move {
            let mut query = [0; 100];
            let (length, client) = datagrams.recv_from(&mut query).await.unwrap();
            query[..length].reverse();
            datagrams.send_to(&query[..length], client).await.unwrap();
            let (mut client, _) = listener.accept().await.unwrap();
            let mut query = [0; 5];
            client.read_exact(&mut query).await.unwrap();
            client.write_all(&query).await.unwrap();
        });
        for (query, expected) in [(b"u\0\x03abc", b"\0\x03cba"), (b"t\0\x03abc", b"\0\x03abc")] {
            let (mut guest, host) = UnixStream::pair().unwrap();
            let served = tokio::spawn(serve(host, address));
            guest.write_all(query).await.unwrap();
            if query[0] == ports::DNS_STREAM {
                guest.shutdown().await.unwrap();
            }
            let mut answer = Vec::new();
            guest.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, expected);
            served.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_question_ends_with_who_has_asked_it() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        let (mut guest, mut host) = UnixStream::pair().unwrap();
        let asked = tokio::spawn(async move { ask(&mut host, address).await });
        guest.write_all(b"\0\x05slow.").await.unwrap();
        let mut question = [0; 5];
        silent.recv(&mut question).await.unwrap();
        assert_eq!(question, *b"slow.");
        drop(guest);
        // Nothing else would end it.
        let asked = timeout(Duration::from_secs(60), asked).await.unwrap();
        let err = asked.unwrap().unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::UnexpectedEof);
    }
}
