//! Packets between the queues and the muxer.
//!
//! Guest to host, a packet's bytes go from guest memory into the socket by one
//! system call; host to guest, one `readv` fills as many of the driver's
//! buffers as a turn allows. Bytes are copied only when a socket is full.

use vmm_sys_util::eventfd::EventFd;

use super::connection::{Fate, Key};
use super::muxer::Muxer;
use super::packet::{HEADER_SIZE, Header};
use crate::devices::virtio::buffers::Buffers;
use crate::devices::virtio::queue_loop::{LoopQueue, QueueBroken};
use crate::devices::virtio::{ActivateError, Activation, GuestMemory, Interrupt};
use crate::event_loop::Registrar;

/// Packets of the guest taken before its receive queue has a turn.
const TX_BURST: usize = 32;

/// Turns in the receive queue, or buffers that are of no use for one, before the
/// guest's packets have theirs.
const RX_BURST: usize = 16;

/// Most receive buffers filled by one read: 64 KiB of Linux's 4 KiB buffers.
const CHAINS_PER_TURN: usize = 16;

/// Most bytes of one turn, however large the driver's buffers.
const BYTES_PER_TURN: u32 = 64 * 1024;

/// Rounds before other devices of the event loop have a turn.
const ROUNDS: usize = 8;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`.
const TRANSPORT_RESET: u32 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Nothing can be done before the next event.
    Done,
    More,
}

pub(super) struct Datapath {
    pub(super) muxer: Muxer,
    memory: GuestMemory,
    rx: LoopQueue,
    tx: LoopQueue,
    event: LoopQueue,
    interrupt: Interrupt,
    /// The driver has not been told of a transport reset yet.
    reset_untold: bool,
}

impl Datapath {
    pub(super) fn new(
        activation: Activation,
        muxer: Muxer,
    ) -> Result<(Self, [EventFd; 3]), ActivateError> {
        let (queues, kicks) = LoopQueue::all_ready(activation.queues)?;
        let missing = |_| ActivateError::QueueNotReady(0);
        let [rx, tx, event] = <[LoopQueue; 3]>::try_from(queues).map_err(missing)?;
        let kicks = <[EventFd; 3]>::try_from(kicks).map_err(|_| ActivateError::QueueNotReady(0))?;
        let datapath = Self {
            muxer,
            memory: activation.memory,
            rx,
            tx,
            event,
            interrupt: activation.interrupt,
            reset_untold: false,
        };
        Ok((datapath, kicks))
    }

    /// Serves all queues until nothing moves, or others must have a turn.
    pub(super) fn serve(&mut self, registrar: &Registrar<'_>) -> Result<Progress, QueueBroken> {
        self.tell_reset()?;
        for _ in 0..ROUNDS {
            let taken = self.take_packets(registrar)?;
            let given = self.give_packets()?;
            self.signal()?;
            if !taken && !given && !self.wait_for_driver()? {
                return Ok(Progress::Done);
            }
        }
        Ok(Progress::More)
    }

    /// Closes all connections; the event queue tells the driver.
    pub(super) fn reset_transport(&mut self) {
        self.muxer.drop_connections();
        self.reset_untold = true;
    }

    /// Tries one buffer, so that a driver whose buffers have no room for the event
    /// holds nobody up; [`wait_for_driver`](Self::wait_for_driver) sees the next.
    fn tell_reset(&mut self) -> Result<(), QueueBroken> {
        let memory = GuestMemory::clone(&self.memory);
        if self.reset_untold
            && let Some(chain) = self.event.pop(&memory)?
        {
            let head = chain.head_index();
            let written = Buffers::writable(chain, &memory).map_or(0, |buffers| {
                buffers.copy_from(&TRANSPORT_RESET.to_le_bytes())
            });
            self.event.used(&memory, head, written)?;
            self.reset_untold = written != size_of_val(&TRANSPORT_RESET);
        }
        Ok(())
    }

    fn take_packets(&mut self, registrar: &Registrar<'_>) -> Result<bool, QueueBroken> {
        let memory = GuestMemory::clone(&self.memory);
        let mut taken = false;
        for _ in 0..TX_BURST {
            if !self.muxer.takes_packets() {
                break;
            }
            let Some(chain) = self.tx.pop(&memory)? else {
                break;
            };
            taken = true;
            let head = chain.head_index();
            // A chain that holds no packet names nobody to answer.
            if let Ok(packet) = Buffers::readable(chain, &memory) {
                self.take_packet(packet, registrar);
            }
            self.tx.used(&memory, head, 0)?;
        }
        Ok(taken)
    }

    fn take_packet(&mut self, mut packet: Buffers<'_>, registrar: &Registrar<'_>) {
        let mut header = [0; HEADER_SIZE];
        if packet.copy_to(&mut header) != HEADER_SIZE {
            return;
        }
        let mut header = Header::parse(&header);
        packet.skip(HEADER_SIZE);
        let len = header.len as usize;
        if len > packet.len() {
            // Its sender has lost count of the stream: number 0 is no operation,
            // which the muxer answers by a reset.
            header.op = 0;
        }
        packet.truncate(len);
        self.muxer.packet(&header, &packet, registrar);
    }

    fn give_packets(&mut self) -> Result<bool, QueueBroken> {
        let mut given = false;
        for _ in 0..RX_BURST {
            if !self.muxer.has_work() {
                break;
            }
            let Some(has_room) = self.next_has_room()? else {
                break;
            };
            given = true;
            if !has_room {
                continue;
            }
            if let Some(reset) = self.muxer.next_reset() {
                self.give_control(reset)?;
            } else if let Some(key) = self.muxer.next_in_line() {
                self.turn(key)?;
            }
        }
        Ok(given)
    }

    /// Whether the next receive buffer has room for a header. One that has not is
    /// given back: that is its driver's loss, not the packet's.
    fn next_has_room(&mut self) -> Result<Option<bool>, QueueBroken> {
        let Some(chain) = self.rx.pop(&self.memory)? else {
            return Ok(None);
        };
        let head = chain.head_index();
        let buffer = Buffers::writable(chain, &self.memory);
        let has_room = buffer.is_ok_and(|buffer| buffer.len() >= HEADER_SIZE);
        if has_room {
            self.rx.put_back(1);
        } else {
            self.rx.used(&self.memory, head, 0)?;
        }
        Ok(Some(has_room))
    }

    /// One connection's turn in the receive queue.
    fn turn(&mut self, key: Key) -> Result<(), QueueBroken> {
        let mut control = None;
        let mut bytes = 0;
        self.muxer.with(key, |connection| {
            control = connection.next_control();
            bytes = connection.readable_bytes();
            Fate::Keep
        });
        if let Some(header) = control {
            self.give_control(header)?;
        } else if bytes > 0 {
            self.give_data(key, bytes.min(BYTES_PER_TURN))?;
        }
        Ok(())
    }

    /// Puts a packet without data into the next buffer, which had room for it; a
    /// driver that has changed that meanwhile loses the packet.
    fn give_control(&mut self, header: Header) -> Result<(), QueueBroken> {
        if let Some(chain) = self.rx.pop(&self.memory)? {
            let head = chain.head_index();
            let written = Buffers::writable(chain, &self.memory)
                .map_or(0, |buffer| buffer.copy_from(&header.to_bytes()));
            self.rx.used(&self.memory, head, written)?;
        }
        Ok(())
    }

    /// Reads up to `limit` bytes of the connection's socket into the driver's
    /// buffers, a header before each buffer's share.
    fn give_data(&mut self, key: Key, limit: u32) -> Result<(), QueueBroken> {
        let memory = GuestMemory::clone(&self.memory);
        let limit = limit as usize;
        let mut taken: Vec<(u16, Buffers<'_>, usize)> = Vec::with_capacity(CHAINS_PER_TURN);
        let mut room = 0;
        while room < limit && taken.len() < CHAINS_PER_TURN {
            let Some(chain) = self.rx.pop(&memory)? else {
                break;
            };
            let head = chain.head_index();
            match Buffers::writable(chain, &memory) {
                Ok(buffer) if buffer.len() > HEADER_SIZE => {
                    let share = (buffer.len() - HEADER_SIZE).min(limit - room);
                    room += share;
                    taken.push((head, buffer, share));
                }
                // One without room for data ends the turn.
                _ if taken.is_empty() => {
                    self.rx.used(&memory, head, 0)?;
                    break;
                }
                // Its turn comes when it is the first.
                _ => {
                    self.rx.put_back(1);
                    break;
                }
            }
        }
        let mut data = Buffers::default();
        for (_, buffer, share) in &taken {
            let mut part = buffer.clone();
            part.skip(HEADER_SIZE);
            part.truncate(*share);
            data.append(part);
        }
        if data.is_empty() {
            self.muxer.with(key, |_| Fate::Keep);
            return Ok(());
        }
        let mut headers = Vec::with_capacity(taken.len());
        self.muxer.with(key, |connection| {
            let result = data.read_from(&connection.socket);
            let mut left = result.unwrap_or(0);
            for (_, _, share) in &taken {
                let part = left.min(*share);
                left -= part;
                // Fits: a turn is limited to far less.
                if let (1.., Ok(len)) = (part, u32::try_from(part)) {
                    headers.push(connection.data_header(len));
                }
            }
            connection.have_read(result)
        });
        let unused = taken.len() - headers.len();
        for ((head, buffer, _), header) in taken.iter().zip(&headers) {
            buffer.copy_from(&header.to_bytes());
            let written = HEADER_SIZE + header.len as usize;
            self.rx.used(&memory, *head, written)?;
        }
        self.rx.put_back(unused);
        Ok(())
    }

    /// Interrupts the driver where it wants to hear of used buffers.
    fn signal(&mut self) -> Result<(), QueueBroken> {
        let mut wanted = false;
        for queue in [&mut self.rx, &mut self.tx, &mut self.event] {
            wanted |= queue.wants_interrupt(&self.memory)?;
        }
        if wanted {
            self.interrupt.used_buffers();
        }
        Ok(())
    }

    /// Asks for kicks; true when there is something to do after all.
    fn wait_for_driver(&mut self) -> Result<bool, QueueBroken> {
        let packets = self.tx.wait(&self.memory)? && self.muxer.takes_packets();
        let buffers = self.rx.wait(&self.memory)? && self.muxer.has_work();
        let events = self.event.wait(&self.memory)? && self.reset_untold;
        if events {
            self.tell_reset()?;
        }
        Ok(packets || buffers || events)
    }
}
