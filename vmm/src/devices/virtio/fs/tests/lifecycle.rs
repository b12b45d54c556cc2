//! Mounting, resetting, threads and limits.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use virtiofsd::filesystem::{FsOptions, ROOT_ID};
use virtiofsd::fuse::{EntryOut, GetattrIn, InitOut, Opcode};
use vm_memory::ByteValued;

use super::driver::{CAPABLE, Guest, config, device, directory, named, open_below, proc_self_fd};
use crate::config::FsConfig;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::fs::{Fs, FsError, WorkerError};

#[test]
fn configuration_space_has_the_tag_and_the_number_of_queues() {
    let shared = tempfile::tempdir().unwrap();
    let fs = device(shared.path(), 1);
    let mut space = [0xff; 48];
    fs.read_config(0, &mut space);
    assert_eq!(&space[..8], b"shared\0\0");
    assert_eq!(space[36..40], [1, 0, 0, 0]);
    assert_eq!(space[40..], [0xff; 8]);
    let mut past = [0xff; 4];
    fs.read_config(u64::MAX, &mut past);
    assert_eq!(past, [0xff; 4]);
}

#[test]
fn dax_window_is_refused_by_name() {
    let shared = tempfile::tempdir().unwrap();
    let config = FsConfig {
        dax_window_mib: 64,
        ..config(1)
    };
    let confine = Box::new(|| Ok(()));
    let made = Fs::new(&config, directory(shared.path()), proc_self_fd(), confine);
    assert!(matches!(made, Err(FsError::Dax(64))));
}

#[test]
fn each_thread_is_confined_before_it_serves() {
    let shared = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(HashSet::new()));
    let record = Arc::clone(&seen);
    let confine = Box::new(move || {
        record.lock().unwrap().insert(thread::current().id());
        Ok(())
    });
    let _fs = Fs::new(
        &config(3),
        directory(shared.path()),
        proc_self_fd(),
        confine,
    )
    .unwrap();
    assert_eq!(seen.lock().unwrap().len(), 3);
}

#[test]
fn thread_that_cannot_be_confined_fails_the_device() {
    let shared = tempfile::tempdir().unwrap();
    let count = AtomicUsize::new(0);
    let confine = Box::new(move || match count.fetch_add(1, Ordering::SeqCst) {
        1 => Err(io::Error::other("no")),
        _ => Ok(()),
    });
    let made = Fs::new(
        &config(2),
        directory(shared.path()),
        proc_self_fd(),
        confine,
    );
    assert!(matches!(
        made,
        Err(FsError::Worker(WorkerError::Confine(_)))
    ));
}

#[test]
fn guest_too_old_for_correct_permissions_is_refused() {
    let shared = tempfile::tempdir().unwrap();
    let mut guest = Guest::new(device(shared.path(), 1));
    guest.activate();
    for missing in [FsOptions::CREATE_SUPP_GROUP, FsOptions::HANDLE_KILLPRIV_V2] {
        assert_eq!(guest.init(CAPABLE - missing).errno(), libc::EPROTO);
    }
    let out: InitOut = guest.init_out();
    let options = FsOptions::from_bits_truncate(u64::from(out.flags) | u64::from(out.flags2) << 32);
    assert!(!options.contains(FsOptions::WRITEBACK_CACHE));
    assert!(!options.intersects(FsOptions::POSIX_LOCKS | FsOptions::FLOCK_LOCKS));
    assert_eq!((out.max_write, out.max_pages), (1 << 20, 256));
}

#[test]
fn unmounting_and_mounting_again_works_and_mounting_twice_does_not() {
    let (mut guest, _shared) = Guest::mounted(1);
    let (node, _) = guest.create(ROOT_ID, "file", 0o600);
    assert_eq!(guest.init(CAPABLE).errno(), libc::EBUSY);
    assert_eq!(guest.walk("file"), node);
    guest.call(Opcode::Destroy, 0, &[]).ok();
    assert_eq!(guest.lookup(ROOT_ID, "file").errno(), libc::EBADF);
    guest.init(CAPABLE).ok();
    guest.walk("file");
}

#[test]
fn reset_closes_everything_and_the_next_driver_starts_anew() {
    let (mut guest, shared) = Guest::mounted(2);
    for number in 0..500 {
        guest.create(ROOT_ID, &number.to_string(), 0o600);
    }
    assert_eq!(open_below(shared.path()), 1000);
    guest.fs.reset();
    assert_eq!(open_below(shared.path()), 0);
    for _ in 0..3 {
        guest.activate();
        guest.init(CAPABLE).ok();
        guest.walk("7");
        guest.fs.reset();
        guest.fs.reset();
    }
    drop(guest);
    assert_eq!(fs::read_dir(shared.path()).unwrap().count(), 500);
}

#[test]
fn reset_while_requests_are_served_leaves_guest_memory_alone() {
    let (mut guest, _shared) = Guest::mounted(4);
    for round in 0..20 {
        for slot in 0..16 {
            let name = format!("{round}-{slot}");
            let body = named(&[0; 16], &[&name]);
            let header = guest.header(Opcode::Create as u32, ROOT_ID, body.len());
            guest.send(slot, header, &body, 4096);
        }
        guest.fs.reset();
        let used = guest.used_index(1);
        let weak = Arc::downgrade(&guest.memory);
        assert_eq!(weak.strong_count(), 1, "memory is still held");
        assert_eq!(guest.used_index(1), used);
        guest.activate();
        guest.init(CAPABLE).ok();
    }
}

#[test]
fn threads_share_the_requests() {
    let (mut guest, shared) = Guest::mounted(4);
    for round in 0..50_u16 {
        let already = guest.offered(1);
        let mut uniques = vec![];
        for slot in 0..16 {
            let body = named(
                &[0xed, 0x41, 0, 0, 0, 0, 0, 0],
                &[&format!("{round}-{slot}")],
            );
            let header = guest.header(Opcode::Mkdir as u32, ROOT_ID, body.len());
            uniques.push(header.unique);
            guest.send(slot, header, &body, 4096);
        }
        guest.wait_used(1, already.wrapping_add(16));
        for (slot, unique) in (0..).zip(uniques) {
            let reply = guest.reply(slot);
            assert_eq!(reply.unique, unique);
            reply.get::<EntryOut>();
        }
    }
    assert_eq!(fs::read_dir(shared.path()).unwrap().count(), 800);
    guest
        .call(Opcode::Getattr, ROOT_ID, GetattrIn::default().as_slice())
        .ok();
}
