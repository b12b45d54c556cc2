//! The disk comes and goes.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_RO;

use super::*;
use crate::devices::virtio::VirtioDevice;

#[test]
fn empty_slot_has_no_sectors_and_fails_every_request() {
    with_each_engine(|engines| {
        let mut guest = Guest::new(engines);
        assert_eq!(guest.sectors(), 0);
        assert_eq!(guest.request(READ, 0, Data::In(512)), FAILED);
        assert_eq!(guest.request(WRITE, 0, Data::Out(&[1; 512])), FAILED);
        assert_eq!(guest.request(FLUSH, 0, Data::None), FAILED);
        assert_eq!(guest.queue.take_used(&guest.machine), [513, 1, 1]);
    });
}

#[test]
fn capacity_changes_by_interrupt_as_disks_come_and_go() {
    with_each_engine(|engines| {
        let (mut guest, _file) = Guest::with_disk(engines);
        assert_eq!(guest.sectors(), DISK_LEN / 512);
        assert_eq!(guest.disconnect(), None);
        assert!(guest.machine.interrupted());
        assert_eq!(guest.sectors(), 0);
        assert_eq!(guest.request(READ, 0, Data::In(512)), FAILED);
        let other = file();
        other.set_len(1000).unwrap();
        assert_eq!(guest.connect(medium(&other, false)), None);
        assert_eq!(guest.sectors(), 1, "the rest of a sector is none");
        assert_eq!(guest.read(0, 512), [0; 512]);
    });
}

#[test]
fn disk_leaves_when_its_requests_are_done() {
    with_each_engine(|engines| {
        let (mut guest, file) = Guest::with_disk(engines);
        let asked: Vec<_> = (0..30)
            .map(|at| guest.ask(WRITE, at, Data::Out(&[8; 512])))
            .collect();
        guest.machine.kick(0);
        assert_eq!(guest.disconnect(), None);
        for asked in &asked {
            assert_eq!(guest.status(asked), OK);
        }
        assert_eq!(on_disk(&file, 0, 30 * 512), [8; 30 * 512]);
        assert_eq!(guest.disconnect(), None, "as asked for already");
    });
}

#[test]
fn what_is_no_disk_is_refused_with_the_reason() {
    let engines = Engines::new(|| Ok(())).unwrap();
    let mut guest = Guest::new(&engines);
    let mut refusal =
        |file: std::os::fd::OwnedFd, read_only| guest.connect(Medium { file, read_only }).unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let text = refusal(socket.into(), false);
    assert!(text.contains("a Socket is no disk"), "{text}");
    let null = File::open("/dev/null").unwrap();
    let text = refusal(null.into(), true);
    assert!(text.contains("a CharacterDevice is no disk"), "{text}");
    let short = tempfile::tempfile().unwrap();
    short.set_len(511).unwrap();
    let text = refusal(short.into(), false);
    assert!(text.contains("511 bytes has no sector"), "{text}");
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(512).unwrap();
    let text = refusal(File::open(named.path()).unwrap().into(), false);
    assert!(text.contains("not open for reading and writing"), "{text}");
    let appending = file();
    let flags = fcntl_getfl(appending.as_fd()).unwrap();
    fcntl_setfl(appending.as_fd(), flags | OFlags::APPEND).unwrap();
    let text = refusal(appending.into(), false);
    assert!(text.contains("open for appending"), "{text}");
    assert_eq!(guest.sectors(), 0);
    assert_eq!(guest.connect(medium(&file(), false)), None);
    let text = guest.connect(medium(&file(), false)).unwrap();
    assert!(text.contains("a disk in the slot already"), "{text}");
}

#[test]
fn driver_that_starts_after_a_read_only_disk_came_knows_it() {
    let engines = Engines::new(|| Ok(())).unwrap();
    let mut machine = Machine::new();
    let block = Block::new(0, &engines, &machine.events()).unwrap();
    assert_eq!(block.features() & 1 << VIRTIO_BLK_F_RO, 0);
    let (replies, events, _wake) = SlotEvents::new().unwrap();
    block
        .slot()
        .connect(medium(&file(), true), replies.reply(1));
    machine.settle();
    drop(events.try_recv().unwrap());
    assert_ne!(block.features() & 1 << VIRTIO_BLK_F_RO, 0);
    machine.start(Box::new(block), &[QUEUE_SIZE]);
    assert!(machine.interrupted(), "it may have looked too early");
}

#[test]
fn block_device_is_a_disk() {
    let Some(device) = loop_device() else { return };
    let (mut guest, _) = Guest::with_disk(&Engines::new(|| Ok(())).unwrap());
    assert_eq!(guest.disconnect(), None);
    let disk = File::options()
        .read(true)
        .write(true)
        .open(&device.0)
        .unwrap();
    assert_eq!(guest.connect(medium(&disk, false)), None);
    assert_eq!(guest.sectors(), DISK_LEN / 512);
    assert_eq!(guest.request(WRITE, 5, Data::Out(&[3; 512])), OK);
    assert_eq!(guest.request(FLUSH, 0, Data::None), OK);
    assert_eq!(guest.read(5, 512), [3; 512]);
    let zeroes = range(5, 1, 1);
    assert_eq!(guest.request(WRITE_ZEROES, 0, Data::Out(&zeroes)), OK);
    assert_eq!(guest.read(5, 512), [0; 512]);
}

/// A loop device, which goes when dropped.
struct LoopDevice(String);

fn loop_device() -> Option<LoopDevice> {
    let backing = tempfile::NamedTempFile::new().unwrap();
    backing.as_file().set_len(DISK_LEN).unwrap();
    let made = std::process::Command::new("losetup")
        .args(["--find", "--show"])
        .arg(backing.path())
        .output();
    match made {
        Ok(made) if made.status.success() => {
            let path = String::from_utf8(made.stdout).unwrap();
            Some(LoopDevice(path.trim().to_owned()))
        }
        other => {
            eprintln!("SKIPPED: no loop device: {other:?}");
            None
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup")
            .args(["--detach", &self.0])
            .status();
    }
}
