//! One connection: a unix socket on one side, the guest's stream on the other.
//!
//! ```text
//!  host's CONNECT ─▶ Requesting ──RESPONSE──▶ Open ──▶ closed by RST,
//!  guest's REQUEST ───────────────────────────▲        after SHUTDOWNs
//! ```
//!
//! Each direction ends on its own: end of file at the host becomes SHUTDOWN
//! (send), the guest's SHUTDOWN (send) becomes `shutdown(SHUT_WR)` once what it
//! sent before has been written. A RST after it does not cut that off: the
//! connection lingers without a name. Credit (virtio 1.3, 5.10.6.3) bounds both:
//! what the guest may send fits `buf_alloc`, or the connection is reset.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use super::credit::{GuestCredit, Window};
use super::packet::{
    HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use crate::devices::virtio::buffers::Buffers;

/// The two ports that name a connection; the two CIDs are always the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Keep,
    /// Forget it; the guest knows.
    Drop,
    /// Forget it and tell the guest.
    Reset,
    /// The guest has forgotten it, but what it sent is still to be written.
    Linger,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest has not answered the REQUEST yet.
    Requesting,
    Open,
}

/// Control packets that wait for room in the guest's receive queue. Flags, not
/// a queue: the guest cannot make them pile up.
#[derive(Debug, Default)]
struct Due {
    request: bool,
    response: bool,
    credit_update: bool,
}

#[derive(Debug)]
pub(super) struct Connection {
    key: Key,
    guest_cid: u64,
    pub(super) socket: OwnedFd,
    /// epoll token of the socket.
    pub(super) token: u32,
    /// It is in the muxer's line for the receive queue.
    pub(super) in_line: bool,
    phase: Phase,
    due: Due,
    ready: Readiness,
    shutdown: Shutdowns,
    credit: GuestCredit,
    /// Bytes of the guest that the socket has not taken yet.
    pending: VecDeque<u8>,
    window: Window,
}

/// What the socket's edges have said, until EAGAIN takes it back.
#[derive(Debug)]
struct Readiness {
    readable: bool,
    writable: bool,
    /// The host has closed both directions.
    hung_up: bool,
}

/// SHUTDOWN flags.
#[derive(Debug, Default)]
struct Shutdowns {
    /// Those the host's side has come to, and those the guest was told.
    host: u32,
    told: u32,
    /// Those received, and those carried to the socket.
    guest: u32,
    socket: u32,
}

impl Connection {
    /// The host wants to reach `key.guest_port`.
    pub(super) fn to_guest(key: Key, guest_cid: u64, socket: OwnedFd, buf_alloc: u32) -> Self {
        Self {
            key,
            guest_cid,
            socket,
            token: 0,
            in_line: false,
            phase: Phase::Requesting,
            due: Due {
                request: true,
                ..Due::default()
            },
            ready: Readiness {
                readable: false,
                writable: true,
                hung_up: false,
            },
            shutdown: Shutdowns::default(),
            credit: GuestCredit::default(),
            pending: VecDeque::new(),
            window: Window::new(buf_alloc),
        }
    }

    /// The guest has reached `key.host_port` with `request`.
    pub(super) fn from_guest(key: Key, request: &Header, socket: OwnedFd, buf_alloc: u32) -> Self {
        let mut connection = Self::to_guest(key, request.src_cid, socket, buf_alloc);
        connection.phase = Phase::Open;
        connection.due.request = false;
        connection.due.response = true;
        connection.credit.update(request);
        connection
    }

    /// A packet of the guest other than REQUEST.
    pub(super) fn packet(&mut self, op: Op, header: &Header, payload: &Buffers<'_>) -> Fate {
        self.credit.update(header);
        match (op, self.phase) {
            (Op::Reset, _) => self.forgotten(),
            (Op::Response, Phase::Requesting) => self.accepted(),
            (Op::Data, Phase::Open) => self.receive(payload),
            (Op::Shutdown, Phase::Open) => {
                self.shutdown.guest |= header.flags & SHUTDOWN_BOTH;
                self.settle()
            }
            (Op::CreditUpdate, Phase::Open) => Fate::Keep,
            (Op::CreditRequest, Phase::Open) => {
                self.due.credit_update = true;
                Fate::Keep
            }
            _ => Fate::Reset,
        }
    }

    /// The socket's state has changed.
    pub(super) fn event(&mut self, events: EventFlags) -> Fate {
        if events.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR)
        {
            self.ready.readable = true;
        }
        self.ready.hung_up |= events.contains(EventFlags::HUP);
        if self.ready.hung_up && self.phase == Phase::Requesting {
            // A guest that was not asked yet need not hear of it.
            return if self.due.request {
                Fate::Drop
            } else {
                Fate::Reset
            };
        }
        if self.ready.hung_up && self.shutdown.host & SHUTDOWN_SEND != 0 {
            self.shutdown.host = SHUTDOWN_BOTH;
        }
        if events.intersects(EventFlags::OUT | EventFlags::HUP | EventFlags::ERR) {
            self.ready.writable = true;
            self.flush();
        }
        self.settle()
    }

    /// Bytes of the guest's data it may come to hold.
    pub(super) fn window(&self) -> u32 {
        self.window.size
    }

    /// It has something for the guest's receive queue.
    pub(super) fn has_work(&self) -> bool {
        let due = &self.due;
        due.request
            || due.response
            || self.credit_update_due()
            || self.shutdown_due()
            || self.wants_to_read()
    }

    /// The next control packet, now considered sent.
    pub(super) fn next_control(&mut self) -> Option<Header> {
        if std::mem::take(&mut self.due.request) {
            return Some(self.header(Op::Request));
        }
        if std::mem::take(&mut self.due.response) {
            return Some(self.header(Op::Response));
        }
        if self.credit_update_due() {
            return Some(self.header(Op::CreditUpdate));
        }
        if self.wants_to_read() && self.credit.bytes() == 0 && !self.credit.asked {
            self.credit.asked = true;
            return Some(self.header(Op::CreditRequest));
        }
        if self.shutdown_due() {
            self.shutdown.told = self.shutdown.host;
            let mut header = self.header(Op::Shutdown);
            header.flags = self.shutdown.host;
            return Some(header);
        }
        None
    }

    /// Bytes that may be read from the socket for the guest now.
    pub(super) fn readable_bytes(&self) -> u32 {
        if self.wants_to_read() {
            self.credit.bytes()
        } else {
            0
        }
    }

    /// What `read` on the socket came to.
    pub(super) fn have_read(&mut self, result: Result<usize, Errno>) -> Fate {
        match result {
            Ok(0) => {
                self.ready.readable = false;
                self.shutdown.host |= if self.ready.hung_up {
                    SHUTDOWN_BOTH
                } else {
                    SHUTDOWN_SEND
                };
                Fate::Keep
            }
            Ok(_) | Err(Errno::INTR) => Fate::Keep,
            Err(Errno::AGAIN) => {
                self.ready.readable = false;
                Fate::Keep
            }
            Err(_) => Fate::Reset,
        }
    }

    /// The header of a data packet, now considered sent.
    pub(super) fn data_header(&mut self, len: u32) -> Header {
        self.credit.spend(len);
        let mut header = self.header(Op::Data);
        header.len = len;
        header
    }

    /// A header with our credit in it: sending any packet updates the guest.
    fn header(&mut self, op: Op) -> Header {
        self.window.told();
        self.due.credit_update = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len: 0,
            kind: TYPE_STREAM,
            op: op.number(),
            flags: 0,
            buf_alloc: self.window.size,
            fwd_cnt: self.window.forwarded.0,
        }
    }

    /// Socket data is at hand and may go to the guest, credit aside.
    fn wants_to_read(&self) -> bool {
        self.phase == Phase::Open
            && self.ready.readable
            && self.shutdown.host & SHUTDOWN_SEND == 0
            && self.shutdown.guest & SHUTDOWN_RECEIVE == 0
            && (self.credit.bytes() > 0 || !self.credit.asked)
    }

    fn credit_update_due(&self) -> bool {
        self.phase == Phase::Open
            && (self.due.credit_update
                || self.window.is_half_unseen() && self.shutdown.guest & SHUTDOWN_SEND == 0)
    }

    fn shutdown_due(&self) -> bool {
        self.phase == Phase::Open && self.shutdown.host & !self.shutdown.told != 0
    }

    /// The guest has answered: the host's side is told its port.
    fn accepted(&mut self) -> Fate {
        self.phase = Phase::Open;
        let line = format!("OK {}\n", self.key.host_port);
        // A socket to which nothing was written takes a line whole or is closed.
        match send(&self.socket, line.as_bytes(), SendFlags::NOSIGNAL) {
            Ok(sent) if sent == line.len() => Fate::Keep,
            _ => Fate::Reset,
        }
    }

    fn receive(&mut self, payload: &Buffers<'_>) -> Fate {
        let room = self.window.size as usize - self.pending.len();
        if payload.len() > room || self.shutdown.guest & SHUTDOWN_SEND != 0 {
            return Fate::Reset;
        }
        self.flush();
        let mut written = 0;
        if self.pending.is_empty() && self.ready.writable {
            written = self.wrote(payload.write_to(&self.socket));
        }
        self.keep(payload, written);
        self.flush();
        Fate::Keep
    }

    /// Keeps what the socket did not take, within the credit checked before.
    fn keep(&mut self, payload: &Buffers<'_>, written: usize) {
        if written == payload.len() || self.shutdown.host & SHUTDOWN_RECEIVE != 0 {
            return;
        }
        if self.pending.capacity() == 0 {
            // Once, so that growing never takes twice the window.
            self.pending.reserve_exact(self.window.size as usize);
        }
        let mut skip = written;
        for slice in payload.slices() {
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            let mut bytes = vec![0; slice.len() - skip];
            let copied = vm_memory::Bytes::read(slice, &mut bytes, skip).unwrap_or(0);
            self.pending.extend(&bytes[..copied]);
            skip = 0;
        }
    }

    fn flush(&mut self) {
        while self.ready.writable && !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            let result = send(&self.socket, front, SendFlags::NOSIGNAL);
            let written = self.wrote(result);
            self.pending.drain(..written.min(self.pending.len()));
        }
        if self.pending.is_empty() {
            // Most connections never stall; one that did gives the memory back.
            self.pending = VecDeque::new();
        }
    }

    /// Books what a write came to; says how many bytes it took.
    fn wrote(&mut self, result: Result<usize, Errno>) -> usize {
        match result {
            Ok(bytes) => {
                self.window.forward(bytes);
                bytes
            }
            Err(Errno::INTR) => 0,
            Err(Errno::AGAIN) => {
                self.ready.writable = false;
                0
            }
            // The host reads no more. What the guest still sends is thrown away.
            Err(_) => {
                self.ready.writable = false;
                self.shutdown.host |= SHUTDOWN_RECEIVE;
                self.pending.clear();
                0
            }
        }
    }

    /// The guest has reset it. That cuts off what it sent, unless it had said before
    /// that this was all: Linux tires of waiting for the answer to its SHUTDOWN
    /// after 8 s, and the host may take longer to read.
    fn forgotten(&mut self) -> Fate {
        self.flush();
        if self.pending.is_empty() || self.shutdown.guest & SHUTDOWN_SEND == 0 {
            return Fate::Drop;
        }
        self.shutdown.guest = SHUTDOWN_BOTH;
        self.settle();
        Fate::Linger
    }

    /// Carries the guest's shutdown to the socket as far as it has come.
    fn settle(&mut self) -> Fate {
        let mut reached = self.shutdown.guest;
        if !self.pending.is_empty() {
            reached &= SHUTDOWN_RECEIVE;
        }
        if reached == SHUTDOWN_BOTH {
            return Fate::Reset;
        }
        // Once each: a shutdown is an event of the socket too.
        let news = reached & !self.shutdown.socket;
        self.shutdown.socket |= news;
        // Failure means that the peer is gone, and its end that nothing is left
        // to shut down.
        if news & SHUTDOWN_RECEIVE != 0 {
            let _ = shutdown(&self.socket, Shutdown::Read);
        }
        if news & SHUTDOWN_SEND != 0 {
            let _ = shutdown(&self.socket, Shutdown::Write);
        }
        Fate::Keep
    }
}
