//! A guest's vsock driver, packet by packet.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::VsockConfig;
use crate::devices::virtio::test_driver::{Machine, QueueSetup};
use crate::devices::virtio::vsock::packet::{HEADER_SIZE, HOST_CID, Header, Op, TYPE_STREAM};
use crate::devices::virtio::vsock::{VsockDevice, VsockHandle};

pub(super) const CID: u64 = 3;
/// Host port that takes connections.
pub(super) const OPEN: u32 = 1024;
/// Host port that is configured, but whose service refuses.
pub(super) const REFUSING: u32 = 1025;
/// Bytes of a receive buffer, as Linux posts them.
pub(super) const RX_BUFFER: u32 = 4096 + 44;
/// What the guest says it can take, unless a test says otherwise.
pub(super) const CREDIT: u32 = 1 << 20;

const SIZES: [u16; 3] = [128, 128, 8];
const RX: u32 = 0;
const TX: u32 = 1;
/// More than one packet's worth each.
const TX_BUFFER: u64 = 80 << 10;
const TX_BUFFERS: u64 = 64;

pub(super) struct Guest {
    pub(super) machine: Machine,
    pub(super) rx: QueueSetup,
    pub(super) tx: QueueSetup,
    pub(super) event: QueueSetup,
    pub(super) handle: VsockHandle,
    address: SocketAddr,
    connections: Receiver<(u32, OwnedFd)>,
    rx_buffers: HashMap<u16, u64>,
    tx_buffers: u64,
    next_tx: u64,
    /// Bytes received by each connection, for the credit told to the device.
    received: HashMap<(u32, u32), u32>,
    pub(super) credit: u32,
}

/// A packet from the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) header: Header,
    pub(super) data: Vec<u8>,
}

impl Packet {
    pub(super) fn op(&self) -> Option<Op> {
        Op::from_number(self.header.op)
    }
}

impl Guest {
    /// A guest with plenty of receive buffers.
    pub(super) fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.post(100);
        guest
    }

    pub(super) fn without_buffers() -> Self {
        let (address, device, connections, mut machine) = Self::device();
        let handle = device.handle();
        let queues = machine.start(Box::new(device), &SIZES);
        Self::with(machine, queues, handle, address, connections)
    }

    /// A connection asked for before the driver was there, and the guest.
    pub(super) fn after_a_connection(line: &[u8]) -> (UnixStream, Self) {
        let (address, device, connections, mut machine) = Self::device();
        let mut host = UnixStream::connect_addr(&address).unwrap();
        host.write_all(line).unwrap();
        let handle = device.handle();
        let queues = machine.start(Box::new(device), &SIZES);
        let mut guest = Self::with(machine, queues, handle, address, connections);
        guest.post(100);
        (host, guest)
    }

    fn device() -> (SocketAddr, VsockDevice, Receiver<(u32, OwnedFd)>, Machine) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lazaret-vsock-test-{}-{number}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let (sender, connections) = channel();
        let sender = parking_lot::Mutex::new(sender);
        let host_ports = move |port, socket| {
            if port == REFUSING {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            sender.lock().send((port, socket)).map_err(io::Error::other)
        };
        let config = VsockConfig {
            guest_cid: 3,
            host_ports: vec![OPEN, REFUSING],
        };
        let machine = Machine::new();
        let device = VsockDevice::new(
            config,
            listener.into(),
            Arc::new(host_ports),
            machine.events(),
        )
        .unwrap();
        (address, device, connections, machine)
    }

    fn with(
        mut machine: Machine,
        queues: Vec<QueueSetup>,
        handle: VsockHandle,
        address: SocketAddr,
        connections: Receiver<(u32, OwnedFd)>,
    ) -> Self {
        let [rx, tx, event] = queues.try_into().unwrap();
        let tx_buffers = machine.buffer(TX_BUFFER * TX_BUFFERS);
        Self {
            machine,
            rx,
            tx,
            event,
            handle,
            address,
            connections,
            rx_buffers: HashMap::new(),
            tx_buffers,
            next_tx: 0,
            received: HashMap::new(),
            credit: CREDIT,
        }
    }

    /// Resets the device and brings it up again.
    pub(super) fn reset(&mut self) {
        self.machine.reset();
        let queues = self.machine.restart(&SIZES);
        [self.rx, self.tx, self.event] = queues.try_into().unwrap();
        self.rx_buffers.clear();
        self.received.clear();
        self.post(100);
    }

    /// Posts this many receive buffers.
    pub(super) fn post(&mut self, count: usize) {
        for _ in 0..count {
            let buffer = self.machine.buffer(u64::from(RX_BUFFER));
            self.repost(buffer);
        }
        self.machine.kick(RX);
    }

    fn repost(&mut self, buffer: u64) {
        let head = self.rx.add(&self.machine, &[(buffer, RX_BUFFER, true)]);
        self.rx_buffers.insert(head, buffer);
    }

    /// What the device has sent; the buffers are posted again.
    pub(super) fn receive(&mut self) -> Vec<Packet> {
        self.machine.settle();
        let mut packets = Vec::new();
        loop {
            let used = self.rx.take_used_chains(&self.machine);
            if used.is_empty() {
                return packets;
            }
            for (head, len) in used {
                let buffer = self.rx_buffers.remove(&head).unwrap();
                packets.push(self.packet(buffer, len));
                self.repost(buffer);
            }
            self.machine.kick(RX);
        }
    }

    fn packet(&mut self, buffer: u64, len: u32) -> Packet {
        let bytes = self.machine.read(buffer, u64::from(len));
        let (header, data) = bytes.split_first_chunk().unwrap();
        let header = Header::parse(header);
        assert_eq!(header.len as usize, data.len());
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        if header.op == Op::Data.number() {
            *self
                .received
                .entry((header.src_port, header.dst_port))
                .or_default() += header.len;
        }
        Packet {
            header,
            data: data.to_vec(),
        }
    }

    /// The one packet the device has sent.
    pub(super) fn receive_one(&mut self, op: Op) -> Packet {
        let mut packets = self.receive();
        assert_eq!(packets.len(), 1, "{packets:?}");
        let packet = packets.remove(0);
        assert_eq!(packet.op(), Some(op), "{packet:?}");
        packet
    }

    pub(super) fn receive_nothing(&mut self) {
        assert_eq!(self.receive(), []);
    }

    /// All data that has come, when nothing else has.
    pub(super) fn receive_data(&mut self) -> Vec<u8> {
        let packets = self.receive();
        packets.into_iter().fold(Vec::new(), |mut all, packet| {
            assert_eq!(packet.op(), Some(Op::Data), "{packet:?}");
            all.extend(packet.data);
            all
        })
    }

    /// A header from `guest_port` to `host_port`.
    pub(super) fn header(&self, op: Op, host_port: u32, guest_port: u32) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            len: 0,
            kind: TYPE_STREAM,
            op: op.number(),
            flags: 0,
            buf_alloc: self.credit,
            fwd_cnt: self
                .received
                .get(&(host_port, guest_port))
                .copied()
                .unwrap_or(0),
        }
    }

    pub(super) fn send(&mut self, header: Header, data: &[u8]) {
        self.queue(header, data);
        self.machine.kick(TX);
        self.tx.take_used(&self.machine);
    }

    /// Makes a packet available without a kick.
    pub(super) fn queue(&mut self, header: Header, data: &[u8]) {
        let buffer = self.tx_buffers + self.next_tx % TX_BUFFERS * TX_BUFFER;
        self.next_tx += 1;
        self.machine.write(buffer, &header.to_bytes());
        self.machine.write(buffer + HEADER_SIZE as u64, data);
        let len = u32::try_from(HEADER_SIZE + data.len()).unwrap();
        self.tx.add(&self.machine, &[(buffer, len, false)]);
    }

    pub(super) fn control(&mut self, op: Op, (host_port, guest_port): (u32, u32)) {
        let header = self.header(op, host_port, guest_port);
        self.send(header, &[]);
    }

    pub(super) fn shut_down(&mut self, flags: u32, (host_port, guest_port): (u32, u32)) {
        let mut header = self.header(Op::Shutdown, host_port, guest_port);
        header.flags = flags;
        self.send(header, &[]);
    }

    pub(super) fn data(&mut self, (host_port, guest_port): (u32, u32), data: &[u8]) {
        let mut header = self.header(Op::Data, host_port, guest_port);
        header.len = u32::try_from(data.len()).unwrap();
        self.send(header, data);
    }

    /// Sends what credit there is to a host that does not read; says how much.
    pub(super) fn fill(&mut self, ports: (u32, u32), window: u32) -> u32 {
        let mut sent: u32 = 0;
        let mut forwarded = 0;
        loop {
            let room = window - (sent - forwarded);
            let len = room.min(60_000);
            if len == 0 {
                return sent;
            }
            self.data(ports, &vec![7; len as usize]);
            sent += len;
            self.control(Op::CreditRequest, ports);
            for packet in self.receive() {
                assert_eq!(packet.op(), Some(Op::CreditUpdate));
                forwarded = packet.header.fwd_cnt;
            }
        }
    }

    /// A host process that has sent `line` to the listener.
    pub(super) fn host(&mut self, line: &[u8]) -> UnixStream {
        let mut host = UnixStream::connect_addr(&self.address).unwrap();
        host.write_all(line).unwrap();
        host
    }

    /// A connection that the host has made to port 1024 of the guest.
    pub(super) fn connect_from_host(&mut self) -> (UnixStream, (u32, u32)) {
        let mut host = self.host(b"CONNECT 1024\n");
        let request = self.receive_one(Op::Request).header;
        let ports = (request.src_port, request.dst_port);
        self.control(Op::Response, ports);
        assert_eq!(line(&mut host), format!("OK {}\n", ports.0));
        (host, ports)
    }

    /// A connection that the guest has made from `guest_port`.
    pub(super) fn connect_to_host(&mut self, guest_port: u32) -> (UnixStream, (u32, u32)) {
        let ports = (OPEN, guest_port);
        self.control(Op::Request, ports);
        self.receive_one(Op::Response);
        (self.connected(), ports)
    }

    /// The host's end of the guest's latest connection.
    pub(super) fn connected(&mut self) -> UnixStream {
        let (port, socket) = self.connections.try_recv().unwrap();
        assert_eq!(port, OPEN);
        socket.into()
    }

    pub(super) fn nothing_connected(&mut self) {
        assert!(self.connections.try_recv().is_err());
    }
}

/// Two for each connection that there may be, and those of the other tests.
pub(super) fn allow_many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum.map(|most| most.min(8192)),
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

/// A line that has been sent already.
pub(super) fn line(socket: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        line.extend(byte);
    }
    String::from_utf8(line).unwrap()
}

/// What can be read without waiting, and whether the stream has ended.
pub(super) fn drain(socket: &UnixStream) -> (Vec<u8>, bool) {
    socket.set_nonblocking(true).unwrap();
    let mut bytes = Vec::new();
    let ended = (&mut &*socket).read_to_end(&mut bytes).is_ok();
    socket.set_nonblocking(false).unwrap();
    (bytes, ended)
}

/// The stream has ended, or was cut off, with nothing left in it.
pub(super) fn is_closed(socket: &UnixStream) -> bool {
    socket.set_nonblocking(true).unwrap();
    match (&mut &*socket).read(&mut [0]) {
        Ok(bytes) => bytes == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}
