//! A guest's driver in miniature: rings in guest memory, FUSE messages in
//! descriptor chains.

use std::fs::{self, File};
use std::mem::size_of;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use virtio_queue::{Queue, QueueT};
use virtiofsd::filesystem::{FsOptions, ROOT_ID};
use virtiofsd::fuse::{
    CreateIn, EntryOut, InHeader, InitInCompat, InitInExt, InitOut, Opcode, OpenIn, OpenOut,
    OutHeader, ReadIn, WriteIn, WriteOut,
};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::config::FsConfig;
use crate::devices::virtio::fs::Fs;
use crate::devices::virtio::{Activation, ActiveQueue, GuestMemory, Interrupt, VirtioDevice};
use crate::event_loop::borrow;

const MEMORY: usize = 128 << 20;
const QUEUE_SIZE: u16 = 128;
const RINGS: u64 = 0x10000;
const RING_STRIDE: u64 = 0x10000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
const BUFFERS: u64 = 8 << 20;
/// Room for a request and a reply of 1 MiB and their headers.
const SLOT: u64 = 3 << 20;
const REPLY: u64 = SLOT / 2;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const PATIENCE: Duration = Duration::from_secs(30);

/// What a guest of today offers.
pub(super) const CAPABLE: FsOptions = FsOptions::all();

pub(super) struct Guest {
    pub(super) fs: Fs,
    pub(super) memory: GuestMemory,
    kicks: Vec<EventFd>,
    irq: EventFd,
    avail: [u16; 2],
    seen: u16,
    unique: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) unique: u64,
    pub(super) error: i32,
    pub(super) body: Vec<u8>,
}

impl Reply {
    pub(super) fn ok(self) -> Vec<u8> {
        assert_eq!(self.error, 0, "errno");
        self.body
    }

    pub(super) fn get<T: ByteValued + Default>(self) -> T {
        object(&self.ok())
    }

    pub(super) fn errno(&self) -> i32 {
        -self.error
    }
}

pub(super) fn object<T: ByteValued + Default>(bytes: &[u8]) -> T {
    let mut object = T::default();
    object
        .as_mut_slice()
        .copy_from_slice(&bytes[..size_of::<T>()]);
    object
}

pub(super) fn named(head: &[u8], names: &[&str]) -> Vec<u8> {
    let mut body = head.to_vec();
    for name in names {
        body.extend_from_slice(name.as_bytes());
        body.push(0);
    }
    body
}

pub(super) fn config(threads: u8) -> FsConfig {
    FsConfig {
        tag: "shared".into(),
        threads,
        dax_window_mib: 0,
        remembered_files: 1 << 14,
    }
}

pub(super) fn proc_self_fd() -> OwnedFd {
    File::open("/proc/self/fd").unwrap().into()
}

/// Descriptors of this process that are below `path`.
pub(super) fn open_below(path: &Path) -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.starts_with(path) && target != path)
        .count()
}

/// A directory that only user 1001 of the host may enter.
pub(super) fn directory_of_another(below: &Path) -> PathBuf {
    let dir = below.join("dir");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    chown(&dir, Some(1001), Some(1001)).unwrap();
    dir
}

pub(super) fn directory(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

pub(super) fn device(path: &Path, threads: u8) -> Fs {
    let confine = Box::new(|| Ok(()));
    Fs::new(&config(threads), directory(path), proc_self_fd(), confine).unwrap()
}

impl Guest {
    /// A mounted device that serves a new directory.
    pub(super) fn mounted(threads: u8) -> (Self, TempDir) {
        let shared = tempfile::tempdir().unwrap();
        let guest = Self::mount(device(shared.path(), threads));
        (guest, shared)
    }

    /// Served by threads that are confined as those of a microVM.
    pub(super) fn mounted_in_the_jail(threads: u8) -> (Self, TempDir) {
        let shared = tempfile::tempdir().unwrap();
        let confine = Box::new(crate::seccomp::confine_fs);
        let root = directory(shared.path());
        let fs = Fs::new(&config(threads), root, proc_self_fd(), confine);
        (Self::mount(fs.unwrap()), shared)
    }

    /// With so few descriptors for the guest.
    pub(super) fn mounted_with_fd_limit(limit: u64) -> (Self, TempDir) {
        let shared = tempfile::tempdir().unwrap();
        let confine = Box::new(|| Ok(()));
        let root = directory(shared.path());
        let fs = Fs::with_guest_fd_limit(&config(1), root, proc_self_fd(), confine, limit);
        (Self::mount(fs.unwrap()), shared)
    }

    fn mount(fs: Fs) -> Self {
        let mut guest = Self::new(fs);
        guest.activate();
        guest.init(CAPABLE).ok();
        guest
    }

    pub(super) fn new(fs: Fs) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        Self {
            fs,
            memory: Arc::new(memory),
            kicks: vec![],
            irq: EventFd::new(EFD_NONBLOCK).unwrap(),
            avail: [0; 2],
            seen: 0,
            unique: 1,
            uid: 0,
            gid: 0,
        }
    }

    pub(super) fn activate(&mut self) {
        let mut queues = vec![];
        self.kicks.clear();
        for number in 0..2 {
            let rings = RINGS + number * RING_STRIDE;
            self.zero(rings, RING_STRIDE);
            let mut queue = Queue::new(QUEUE_SIZE).unwrap();
            queue.set_size(QUEUE_SIZE);
            queue
                .try_set_desc_table_address(GuestAddress(rings))
                .unwrap();
            queue
                .try_set_avail_ring_address(GuestAddress(rings + AVAIL))
                .unwrap();
            queue
                .try_set_used_ring_address(GuestAddress(rings + USED))
                .unwrap();
            queue.set_ready(true);
            let kick = EventFd::new(EFD_NONBLOCK).unwrap();
            self.kicks.push(kick.try_clone().unwrap());
            queues.push(ActiveQueue { queue, kick });
        }
        self.avail = [0; 2];
        self.seen = 0;
        self.fs
            .activate(Activation {
                memory: Arc::clone(&self.memory),
                queues,
                interrupt: Interrupt::new(self.irq.try_clone().unwrap()),
                driver_features: self.fs.features(),
            })
            .unwrap();
    }

    fn zero(&self, at: u64, len: u64) {
        let zeros = vec![0; usize::try_from(len).unwrap()];
        self.memory.write_slice(&zeros, GuestAddress(at)).unwrap();
    }

    pub(super) fn descriptor(&self, queue: u64, index: u16, fields: (u64, u32, u16, u16)) {
        let (address, len, flags, next) = fields;
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let at = RINGS + queue * RING_STRIDE + u64::from(index) * 16;
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Makes the chain that starts at `head` available.
    pub(super) fn offer(&mut self, queue: u64, head: u16) {
        let avail = &mut self.avail[usize::try_from(queue).unwrap()];
        let ring = RINGS + queue * RING_STRIDE + AVAIL;
        let entry = ring + 4 + u64::from(*avail % QUEUE_SIZE) * 2;
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        *avail = avail.wrapping_add(1);
        let index = *avail;
        self.write_avail_index(queue, index);
        self.kick(queue);
    }

    pub(super) fn write_avail_index(&self, queue: u64, index: u16) {
        let ring = RINGS + queue * RING_STRIDE + AVAIL;
        self.memory
            .write_obj(index, GuestAddress(ring + 2))
            .unwrap();
    }

    pub(super) fn kick(&self, queue: u64) {
        self.kicks[usize::try_from(queue).unwrap()]
            .write(1)
            .unwrap();
    }

    pub(super) fn used_index(&self, queue: u64) -> u16 {
        let ring = RINGS + queue * RING_STRIDE + USED;
        self.memory.read_obj(GuestAddress(ring + 2)).unwrap()
    }

    /// Bytes that the device says it wrote to the chain used as number `index`.
    pub(super) fn used_len(&self, queue: u64, index: u16) -> u32 {
        let ring = RINGS + queue * RING_STRIDE + USED;
        let at = ring + 4 + u64::from(index % QUEUE_SIZE) * 8 + 4;
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Waits until `count` chains of `queue` have been used.
    pub(super) fn wait_used(&self, queue: u64, count: u16) {
        let deadline = Instant::now() + PATIENCE;
        while self.used_index(queue) != count {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no reply");
            self.wait_interrupt(left);
        }
    }

    pub(super) fn wait_interrupt(&self, patience: Duration) {
        let mut fds = [PollFd::from_borrowed_fd(borrow(&self.irq), PollFlags::IN)];
        let patience = Timespec::try_from(patience).unwrap();
        poll(&mut fds, Some(&patience)).unwrap();
        // The next round looks at the ring, whoever took the event.
        let _ = self.irq.read();
    }

    pub(super) fn header(&mut self, opcode: u32, node: u64, body: usize) -> InHeader {
        self.unique += 2;
        InHeader {
            len: u32::try_from(size_of::<InHeader>() + body).unwrap(),
            opcode,
            unique: self.unique,
            nodeid: node,
            uid: self.uid.into(),
            gid: self.gid.into(),
            ..InHeader::default()
        }
    }

    fn buffer(slot: u16) -> u64 {
        BUFFERS + u64::from(slot) * SLOT
    }

    /// Puts a request into a slot and offers it, without waiting.
    pub(super) fn send(&mut self, slot: u16, header: InHeader, body: &[u8], room: u32) {
        let request = [header.as_slice(), body].concat();
        let at = Self::buffer(slot);
        self.memory.write_slice(&request, GuestAddress(at)).unwrap();
        let len = u32::try_from(request.len()).unwrap();
        let (first, second) = (slot * 2, slot * 2 + 1);
        if room > 0 {
            self.descriptor(1, first, (at, len, NEXT, second));
            self.descriptor(1, second, (at + REPLY, room, WRITE, 0));
        } else {
            self.descriptor(1, first, (at, len, 0, 0));
        }
        self.offer(1, first);
    }

    pub(super) fn reply(&self, slot: u16) -> Reply {
        let at = GuestAddress(Self::buffer(slot) + REPLY);
        let header: OutHeader = self.memory.read_obj(at).unwrap();
        let len = usize::try_from(header.len).unwrap() - size_of::<OutHeader>();
        let mut body = vec![0; len];
        self.memory
            .read_slice(
                &mut body,
                GuestAddress(at.0 + size_of::<OutHeader>() as u64),
            )
            .unwrap();
        Reply {
            unique: header.unique,
            error: header.error,
            body,
        }
    }

    pub(super) fn raw(&mut self, opcode: u32, node: u64, body: &[u8], room: u32) -> Reply {
        let header = self.header(opcode, node, body.len());
        self.send(0, header, body, room);
        self.seen = self.avail[1];
        self.wait_used(1, self.seen);
        let reply = self.reply(0);
        assert_eq!(reply.unique, header.unique, "reply to another request");
        let used = self.used_len(1, self.seen.wrapping_sub(1));
        assert_eq!(used as usize, size_of::<OutHeader>() + reply.body.len());
        reply
    }

    pub(super) fn call(&mut self, opcode: Opcode, node: u64, body: &[u8]) -> Reply {
        self.raw(opcode as u32, node, body, 1 << 20)
    }

    pub(super) fn init(&mut self, capable: FsOptions) -> Reply {
        let compat = InitInCompat {
            major: 7,
            minor: 38,
            max_readahead: 128 << 10,
            flags: capable.bits() as u32,
        };
        let ext = InitInExt {
            flags2: (capable.bits() >> 32) as u32,
            ..InitInExt::default()
        };
        let body = [compat.as_slice(), ext.as_slice()].concat();
        self.call(Opcode::Init, 0, &body)
    }

    pub(super) fn init_out(&mut self) -> InitOut {
        self.init(CAPABLE).get()
    }

    pub(super) fn lookup(&mut self, parent: u64, name: &str) -> Reply {
        self.call(Opcode::Lookup, parent, &named(&[], &[name]))
    }

    /// Node id at a path below the root.
    pub(super) fn walk(&mut self, path: &str) -> u64 {
        path.split('/').fold(ROOT_ID, |parent, name| {
            self.lookup(parent, name).get::<EntryOut>().nodeid
        })
    }

    pub(super) fn open(&mut self, node: u64, flags: i32) -> Reply {
        let open = OpenIn {
            flags: flags as u32,
            open_flags: 0,
        };
        self.call(Opcode::Open, node, open.as_slice())
    }

    /// Node and handle of a new file.
    pub(super) fn create(&mut self, parent: u64, name: &str, mode: u32) -> (u64, u64) {
        let create = CreateIn {
            flags: (libc::O_CREAT | libc::O_EXCL | libc::O_RDWR) as u32,
            mode: libc::S_IFREG | mode,
            ..CreateIn::default()
        };
        let body = self
            .call(Opcode::Create, parent, &named(create.as_slice(), &[name]))
            .ok();
        let open: OpenOut = object(&body[size_of::<EntryOut>()..]);
        (object::<EntryOut>(&body).nodeid, open.fh)
    }

    pub(super) fn write(&mut self, node: u64, fh: u64, offset: u64, data: &[u8]) -> u32 {
        let write = WriteIn {
            fh,
            offset,
            size: u32::try_from(data.len()).unwrap(),
            ..WriteIn::default()
        };
        let body = [write.as_slice(), data].concat();
        self.call(Opcode::Write, node, &body).get::<WriteOut>().size
    }

    /// The reply's buffer is as long as the kernel makes it: exactly.
    pub(super) fn read(&mut self, node: u64, fh: u64, offset: u64, size: u32) -> Reply {
        let read = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        let room = size + u32::try_from(size_of::<OutHeader>()).unwrap();
        self.raw(Opcode::Read as u32, node, read.as_slice(), room)
    }

    /// Sends a request that has no reply, on the queue for such.
    pub(super) fn post(&mut self, opcode: Opcode, node: u64, body: &[u8]) {
        let header = self.header(opcode as u32, node, body.len());
        let request = [header.as_slice(), body].concat();
        let at = Self::buffer(1);
        self.memory.write_slice(&request, GuestAddress(at)).unwrap();
        let len = u32::try_from(request.len()).unwrap();
        self.descriptor(0, 0, (at, len, 0, 0));
        self.offer(0, 0);
        self.wait_used(0, self.avail[0]);
    }

    /// Chains offered on `queue` since activation.
    pub(super) fn offered(&self, queue: usize) -> u16 {
        self.avail[queue]
    }
}
