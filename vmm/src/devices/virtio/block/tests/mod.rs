//! The device under a driver, with each engine.

mod hostile;
mod requests;
mod slot;

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{Block, Engines, Medium, QUEUE_SIZE};
use crate::devices::virtio::slot::{Reply, Slot, SlotEvent, SlotEvents};
use crate::devices::virtio::test_driver::{Machine, QueueSetup};

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const FAILED: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Nothing has been written to a status.
const UNANSWERED: u8 = 0xaa;

const DISK_LEN: u64 = 1 << 20;

/// A block device under a driver.
struct Guest {
    machine: Machine,
    slot: Slot<Medium>,
    queue: QueueSetup,
}

/// One chain, and where its status will be.
struct Asked {
    status: u64,
    data: u64,
}

/// Runs a test with every engine that this host has.
fn with_each_engine(test: impl Fn(&Engines)) {
    let best = Engines::new(|| Ok(())).unwrap();
    if matches!(best, Engines::Rings) {
        test(&best);
    }
    test(&Engines::threads(|| Ok(())).unwrap());
}

fn file() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(DISK_LEN).unwrap();
    file
}

fn medium(file: &File, read_only: bool) -> Medium {
    let file = file.try_clone().unwrap().into();
    Medium { file, read_only }
}

impl Guest {
    fn new(engines: &Engines) -> Self {
        Self::without(engines, 0)
    }

    fn without(engines: &Engines, refused: u64) -> Self {
        let mut machine = Machine::new();
        let block = Block::new(3, engines, &machine.events()).unwrap();
        let slot = block.slot();
        let queues = machine.start_without(Box::new(block), &[QUEUE_SIZE], refused);
        let [queue] = queues.try_into().unwrap();
        Self {
            machine,
            slot,
            queue,
        }
    }

    /// A guest and a disk of [`DISK_LEN`] zeroes.
    fn with_disk(engines: &Engines) -> (Self, File) {
        let (mut guest, file) = (Self::new(engines), file());
        assert_eq!(guest.connect(medium(&file, false)), None);
        assert!(guest.machine.interrupted());
        (guest, file)
    }

    fn ask_slot(&mut self, ask: impl FnOnce(&Slot<Medium>, Reply)) -> Option<String> {
        let (replies, events, _wake) = SlotEvents::new().unwrap();
        ask(&self.slot, replies.reply(7));
        loop {
            self.machine.settle();
            match events.try_recv() {
                Ok(SlotEvent::Answer { id: 7, refusal }) => return refusal,
                Ok(other) => panic!("{other:?}"),
                Err(_) => self.machine.wait(),
            }
        }
    }

    fn connect(&mut self, medium: Medium) -> Option<String> {
        self.ask_slot(|slot, reply| slot.connect(medium, reply))
    }

    fn disconnect(&mut self) -> Option<String> {
        self.ask_slot(Slot::disconnect)
    }

    fn sectors(&self) -> u64 {
        u64::from_le_bytes(self.machine.config(0, 8).try_into().unwrap())
    }

    /// Makes a request of a header, data for or from the device, and a status.
    fn ask(&mut self, kind: u32, sector: u64, data: Data<'_>) -> Asked {
        let len = data.len();
        let header = self.machine.buffer(16 + u64::from(len) + 1);
        let (at, status) = (header + 16, header + 16 + u64::from(len));
        self.machine.write(header, &header_bytes(kind, sector));
        self.machine.write(status, &[UNANSWERED]);
        if let Data::Out(bytes) = data {
            self.machine.write(at, bytes);
        }
        let writable = matches!(data, Data::In(_));
        let mut parts = vec![(header, 16, false)];
        if len > 0 {
            parts.push((at, len, writable));
        }
        parts.push((status, 1, true));
        self.queue.add(&self.machine, &parts);
        Asked { status, data: at }
    }

    /// Waits for the answer to a request.
    fn answer(&mut self, asked: &Asked) -> u8 {
        self.machine.kick(0);
        while self.status(asked) == UNANSWERED {
            self.machine.wait();
        }
        self.machine.settle();
        self.status(asked)
    }

    fn status(&self, asked: &Asked) -> u8 {
        self.machine.read(asked.status, 1)[0]
    }

    fn request(&mut self, kind: u32, sector: u64, data: Data<'_>) -> u8 {
        let asked = self.ask(kind, sector, data);
        self.answer(&asked)
    }

    fn read(&mut self, sector: u64, len: u32) -> Vec<u8> {
        let asked = self.ask(READ, sector, Data::In(len));
        assert_eq!(self.answer(&asked), OK);
        self.machine.read(asked.data, len.into())
    }
}

#[derive(Clone, Copy)]
enum Data<'d> {
    None,
    In(u32),
    Out(&'d [u8]),
}

impl Data<'_> {
    fn len(self) -> u32 {
        match self {
            Data::None => 0,
            Data::In(len) => len,
            Data::Out(bytes) => u32::try_from(bytes.len()).unwrap(),
        }
    }
}

fn header_bytes(kind: u32, sector: u64) -> Vec<u8> {
    [
        kind.to_le_bytes().as_slice(),
        &[0; 4],
        &sector.to_le_bytes(),
    ]
    .concat()
}

/// The range of a discard or a write of zeroes.
fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [
        sector.to_le_bytes().as_slice(),
        &sectors.to_le_bytes(),
        &flags.to_le_bytes(),
    ]
    .concat()
}

fn on_disk(file: &File, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes
}
