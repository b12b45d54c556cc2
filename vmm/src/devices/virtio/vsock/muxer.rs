//! All connections: who gets a packet, whose turn it is in the guest's receive
//! queue, and how many there may be.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use rustix::io::ioctl_fionbio;
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, socketpair};

use super::HostPorts;
use super::connection::{Connection, Fate, Key};
use super::handshake::{self, Line};
use super::packet::{HOST_CID, Header, Op, TYPE_STREAM};
use crate::devices::virtio::buffers::Buffers;
use crate::event_loop::Registrar;

/// Most connections at once, those that linger among them; each costs a
/// descriptor and a buffer.
pub(super) const CONNECTIONS_MAX: usize = 1024;

/// Most host connections that have not sent their line yet. The oldest makes
/// room: only a process that connects and says nothing can be that old.
pub(super) const HANDSHAKES_MAX: usize = 128;

/// Most answers to packets of no connection that wait for room in the receive
/// queue; then the guest's packets wait too.
const RESETS_MAX: usize = 64;

/// Our receive buffer for one connection: four packets of the largest size
/// that Linux sends.
pub(super) const BUFFER: u32 = 256 * 1024;

/// Connections that get [`BUFFER`], and what the others get: a guest whose
/// host peers read nothing makes the VMM hold at most 46 MiB.
pub(super) const LARGE_BUFFERS: usize = 64;
const SMALL_BUFFER: u32 = 32 * 1024;

/// First port given to the host's side of a connection it makes. No service
/// of the host lives that high.
pub(super) const FIRST_HOST_PORT: u32 = 1 << 30;

/// epoll tokens from here up are sockets.
pub(super) const FIRST_SOCKET_TOKEN: u32 = 16;

/// Most host connections accepted in one go.
const ACCEPT_BURST: usize = 32;

#[derive(Debug)]
enum Source {
    Handshake(OwnedFd),
    Connection(Key),
    Lingering,
}

pub(super) struct Muxer {
    guest_cid: u64,
    /// Host ports the guest may connect to.
    open_ports: Vec<u32>,
    host_ports: Arc<dyn HostPorts>,
    sources: HashMap<u32, Source>,
    /// Tokens of handshakes, oldest first.
    handshakes: VecDeque<u32>,
    connections: HashMap<Key, Connection>,
    /// Connections that the guest has forgotten, by token: their names are free.
    lingering: HashMap<u32, Connection>,
    /// Connections with something for the receive queue, each once.
    line: VecDeque<Key>,
    resets: VecDeque<Header>,
    large_buffers: usize,
    next_token: u32,
    next_host_port: u32,
}

impl Muxer {
    pub(super) fn new(
        guest_cid: u32,
        open_ports: Vec<u32>,
        host_ports: Arc<dyn HostPorts>,
    ) -> Self {
        Self {
            guest_cid: u64::from(guest_cid),
            open_ports,
            host_ports,
            sources: HashMap::new(),
            handshakes: VecDeque::new(),
            connections: HashMap::new(),
            lingering: HashMap::new(),
            line: VecDeque::new(),
            resets: VecDeque::new(),
            large_buffers: 0,
            next_token: FIRST_SOCKET_TOKEN,
            next_host_port: FIRST_HOST_PORT,
        }
    }

    /// Takes waiting host connections from the listener, which stays readable
    /// while there are more.
    pub(super) fn accept(&mut self, listener: &OwnedFd, registrar: &Registrar<'_>) {
        for _ in 0..ACCEPT_BURST {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let Ok(socket) = accept_with(listener, flags) else {
                return;
            };
            if self.is_full() {
                tracing::warn!(
                    "vsock connection from the host refused: {CONNECTIONS_MAX} are open"
                );
                continue;
            }
            self.shake_hands(socket, registrar);
        }
    }

    fn shake_hands(&mut self, socket: OwnedFd, registrar: &Registrar<'_>) {
        if self.handshakes.len() == HANDSHAKES_MAX
            && let Some(oldest) = self.handshakes.pop_front()
        {
            self.sources.remove(&oldest);
            tracing::warn!("vsock connection from the host closed: it asked for no port");
        }
        let token = self.token();
        if add(registrar, &socket, token) {
            self.sources.insert(token, Source::Handshake(socket));
            self.handshakes.push_back(token);
            self.hear(token, registrar);
        }
    }

    /// The socket with `token` has changed.
    pub(super) fn event(&mut self, token: u32, events: EventFlags, registrar: &Registrar<'_>) {
        match self.sources.get(&token) {
            Some(&Source::Connection(key)) => {
                self.with(key, |connection| connection.event(events));
            }
            Some(Source::Handshake(_)) => self.hear(token, registrar),
            Some(Source::Lingering) => self.linger_on(token, events),
            // Closed earlier in the same round.
            None => {}
        }
    }

    fn hear(&mut self, token: u32, registrar: &Registrar<'_>) {
        let Some(Source::Handshake(socket)) = self.sources.get(&token) else {
            return;
        };
        let line = handshake::receive(socket);
        if line == Line::Incomplete {
            return;
        }
        self.handshakes.retain(|t| *t != token);
        if let (Some(Source::Handshake(socket)), Line::Port(port)) =
            (self.sources.remove(&token), line)
        {
            self.connect(socket, token, port, registrar);
        }
    }

    /// Asks the guest for a connection to `guest_port`.
    fn connect(&mut self, socket: OwnedFd, token: u32, guest_port: u32, registrar: &Registrar<'_>) {
        if self.is_full() {
            tracing::warn!(
                "vsock connection to port {guest_port} refused: {CONNECTIONS_MAX} are open"
            );
            return;
        }
        let key = self.free_key(guest_port);
        let buffer = self.buffer();
        let mut connection = Connection::to_guest(key, self.guest_cid, socket, buffer);
        connection.token = token;
        // Data may have come behind the line, before its edge could matter.
        if rearm(registrar, &connection.socket, token) {
            self.insert(key, connection);
        }
    }

    /// One packet of the guest.
    pub(super) fn packet(
        &mut self,
        header: &Header,
        payload: &Buffers<'_>,
        registrar: &Registrar<'_>,
    ) {
        // Not ours; there is nobody to answer either.
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return;
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let op = Op::from_number(header.op).filter(|_| header.kind == TYPE_STREAM);
        let open = self.connections.contains_key(&key);
        match op {
            Some(Op::Request) if !open => self.requested(key, header, registrar),
            Some(Op::Reset) if !open => {}
            Some(op) if open && op != Op::Request => {
                self.with(key, |connection| connection.packet(op, header, payload));
            }
            // A second REQUEST for a connection, an unknown operation or type,
            // or no such connection.
            _ => {
                if header.kind == TYPE_STREAM {
                    self.remove(key);
                }
                self.reset(key, header.kind);
            }
        }
    }

    /// The guest asks for a connection to one of the host's ports.
    fn requested(&mut self, key: Key, request: &Header, registrar: &Registrar<'_>) {
        let allowed = self.open_ports.contains(&key.host_port);
        if !allowed || self.is_full() {
            self.reset(key, TYPE_STREAM);
            return;
        }
        match self.open(key, request, registrar) {
            Ok(connection) => self.insert(key, connection),
            Err(error) => {
                tracing::debug!(port = key.host_port, %error, "host port takes no connection");
                self.reset(key, TYPE_STREAM);
            }
        }
    }

    fn open(
        &mut self,
        key: Key,
        request: &Header,
        registrar: &Registrar<'_>,
    ) -> std::io::Result<Connection> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        ioctl_fionbio(&ours, true)?;
        self.host_ports.connected(key.host_port, theirs)?;
        let token = self.token();
        registrar.add(&ours, token, SOCKET_EVENTS)?;
        let mut connection = Connection::from_guest(key, request, ours, self.buffer());
        connection.token = token;
        Ok(connection)
    }

    fn insert(&mut self, key: Key, connection: Connection) {
        self.large_buffers += usize::from(connection.window() == BUFFER);
        self.sources
            .insert(connection.token, Source::Connection(key));
        self.connections.insert(key, connection);
        self.line_up(key);
    }

    /// Takes a connection off its name.
    fn take(&mut self, key: Key) -> Option<Connection> {
        let mut connection = self.connections.remove(&key)?;
        if std::mem::take(&mut connection.in_line) {
            self.line.retain(|k| *k != key);
        }
        Some(connection)
    }

    fn remove(&mut self, key: Key) {
        if let Some(connection) = self.take(key) {
            self.release(&connection);
        }
    }

    /// Counts a connection that is about to be dropped no longer.
    fn release(&mut self, connection: &Connection) {
        self.large_buffers -= usize::from(connection.window() == BUFFER);
        self.sources.remove(&connection.token);
    }

    /// Keeps a connection that the guest has forgotten until the host has read
    /// what the guest sent, or reads no more.
    fn linger(&mut self, key: Key) {
        if let Some(connection) = self.take(key) {
            self.sources.insert(connection.token, Source::Lingering);
            self.lingering.insert(connection.token, connection);
        }
    }

    fn linger_on(&mut self, token: u32, events: EventFlags) {
        if let Some(connection) = self.lingering.get_mut(&token)
            && connection.event(events) != Fate::Keep
            && let Some(connection) = self.lingering.remove(&token)
        {
            self.release(&connection);
        }
    }

    fn is_full(&self) -> bool {
        self.connections.len() + self.lingering.len() >= CONNECTIONS_MAX
    }

    /// Lets the connection `key` do something and carries its fate out.
    pub(super) fn with(&mut self, key: Key, act: impl FnOnce(&mut Connection) -> Fate) {
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        match act(connection) {
            Fate::Keep => self.line_up(key),
            Fate::Drop => self.remove(key),
            Fate::Reset => {
                self.remove(key);
                self.reset(key, TYPE_STREAM);
            }
            Fate::Linger => self.linger(key),
        }
    }

    fn line_up(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(&key)
            && !connection.in_line
            && connection.has_work()
        {
            connection.in_line = true;
            self.line.push_back(key);
        }
    }

    /// The guest's packets may be taken: what answers them has room.
    pub(super) fn takes_packets(&self) -> bool {
        self.resets.len() < RESETS_MAX
    }

    pub(super) fn has_work(&self) -> bool {
        !self.resets.is_empty() || !self.line.is_empty()
    }

    pub(super) fn next_reset(&mut self) -> Option<Header> {
        self.resets.pop_front()
    }

    /// The connection whose turn it is. It goes to the end of the line by
    /// [`with`](Self::with).
    pub(super) fn next_in_line(&mut self) -> Option<Key> {
        let key = self.line.pop_front()?;
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.in_line = false;
        }
        Some(key)
    }

    /// Closes every connection (virtio 1.3, 5.10.6.7: transport reset).
    pub(super) fn drop_connections(&mut self) {
        self.connections.clear();
        self.lingering.clear();
        self.sources
            .retain(|_, source| matches!(source, Source::Handshake(_)));
        self.line.clear();
        self.resets.clear();
        self.large_buffers = 0;
    }

    fn reset(&mut self, key: Key, kind: u16) {
        // Only events of sockets can find the line full, packets wait for room;
        // those are at most one a connection.
        self.resets.push_back(Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: key.host_port,
            dst_port: key.guest_port,
            kind,
            op: Op::Reset.number(),
            ..Header::default()
        });
    }

    fn buffer(&self) -> u32 {
        if self.large_buffers < LARGE_BUFFERS {
            BUFFER
        } else {
            SMALL_BUFFER
        }
    }

    fn token(&mut self) -> u32 {
        loop {
            let token = self.next_token;
            self.next_token = token.checked_add(1).unwrap_or(FIRST_SOCKET_TOKEN);
            if !self.sources.contains_key(&token) {
                return token;
            }
        }
    }

    /// A host port that makes a new name together with `guest_port`.
    fn free_key(&mut self, guest_port: u32) -> Key {
        loop {
            let host_port = self.next_host_port;
            self.next_host_port = host_port
                .checked_add(1)
                .filter(|port| *port < FIRST_HOST_PORT << 1)
                .unwrap_or(FIRST_HOST_PORT);
            let used = self.connections.keys().any(|k| k.host_port == host_port);
            if !used && !self.open_ports.contains(&host_port) {
                return Key {
                    host_port,
                    guest_port,
                };
            }
        }
    }
}

/// Edges only: a level would have to be masked whenever the guest has no room.
const SOCKET_EVENTS: EventFlags = EventFlags::IN
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP)
    .union(EventFlags::ET);

fn add(registrar: &Registrar<'_>, socket: &OwnedFd, token: u32) -> bool {
    let added = registrar.add(socket, token, SOCKET_EVENTS);
    if let Err(error) = &added {
        tracing::warn!(%error, "vsock connection closed: cannot wait for it");
    }
    added.is_ok()
}

/// Asks for the socket's present state as a new edge.
fn rearm(registrar: &Registrar<'_>, socket: &OwnedFd, token: u32) -> bool {
    let modified = registrar.modify(socket, token, SOCKET_EVENTS);
    if let Err(error) = &modified {
        tracing::warn!(%error, "vsock connection closed: cannot wait for it");
    }
    modified.is_ok()
}
