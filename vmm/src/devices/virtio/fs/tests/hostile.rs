//! What no driver sends: each ends in an error or in nothing, and the device
//! serves on.

use std::fs;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;

use virtiofsd::filesystem::ROOT_ID;
use virtiofsd::fuse::{
    EntryOut, InHeader, LinkIn, Opcode, OutHeader, ReadIn, Rename2In, SetattrIn, WriteIn,
};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::driver::{Guest, named};
use crate::config::FsConfig;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::fs::Fs;

const IN: u32 = size_of::<InHeader>() as u32;

/// The device still does what it should.
fn assert_alive(guest: &mut Guest) {
    guest.call(Opcode::Getattr, ROOT_ID, &[0; 16]).ok();
}

#[test]
fn names_cannot_leave_their_directory() {
    let (mut guest, shared) = Guest::mounted(1);
    fs::create_dir(shared.path().join("dir")).unwrap();
    fs::write(shared.path().join("dir/file"), "").unwrap();
    symlink("/", shared.path().join("root")).unwrap();
    let dir = guest.walk("dir");
    for name in ["..", ".", "", "../dir", "/etc", "a/../..", "root/etc"] {
        let looked = guest.lookup(dir, name);
        assert_eq!(looked.errno(), libc::EINVAL, "lookup {name:?}");
        let heads: [(Opcode, usize); 5] = [
            (Opcode::Mkdir, 8),
            (Opcode::Mknod, 16),
            (Opcode::Create, 16),
            (Opcode::Unlink, 0),
            (Opcode::Rmdir, 0),
        ];
        for (opcode, head) in &heads {
            let reply = guest.call(*opcode, dir, &named(&vec![0; *head], &[name]));
            assert_eq!(reply.errno(), libc::EINVAL, "{name:?}");
        }
        let reply = guest.call(Opcode::Symlink, dir, &named(&[], &[name, "target"]));
        assert_eq!(reply.errno(), libc::EINVAL, "symlink {name:?}");
        let link = LinkIn { oldnodeid: dir };
        let reply = guest.call(Opcode::Link, dir, &named(link.as_slice(), &[name]));
        assert_eq!(reply.errno(), libc::EINVAL, "link {name:?}");
        let rename = Rename2In {
            newdir: dir,
            ..Rename2In::default()
        };
        for names in [["file", name], [name, "file"]] {
            let reply = guest.call(Opcode::Rename2, dir, &named(rename.as_slice(), &names));
            assert_eq!(reply.errno(), libc::EINVAL, "rename {names:?}");
        }
    }
    // A symbolic link is a node of its own, for the guest to follow.
    let link: EntryOut = guest.lookup(ROOT_ID, "root").get();
    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert!(guest.open(link.nodeid, libc::O_RDONLY).errno() != 0);
    assert!(guest.lookup(link.nodeid, "etc").errno() != 0);
}

#[test]
fn every_opcode_takes_any_body() {
    let (mut guest, _shared) = Guest::mounted(2);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..30_000_u64 {
        let opcode = match random() % 64 {
            // Would end the session's mount.
            26 | 38 => 99,
            opcode => opcode as u32,
        };
        let len = (random() % 200) as usize;
        let mut body: Vec<u8> = (0..len).map(|_| (random() >> 24) as u8).collect();
        if random() % 2 == 0 {
            body.fill([0, 0xff, b'/', b'a'][(random() % 4) as usize]);
        }
        let node = [0, ROOT_ID, 2, 3, u64::MAX, 3 << 62, random()][(random() % 7) as usize];
        let mut header = guest.header(opcode, node, len);
        match random() % 8 {
            0 => header.len = random() as u32,
            1 => header.len = (random() % 64) as u32,
            2 => header.total_extlen = random() as u16,
            _ => {}
        }
        header.uid = (random() as u32 % 3).into();
        let room = [0, 1, 15, 16, 17, 100, 4096, 1 << 20][(random() % 8) as usize];
        let slot = (round % 8) as u16;
        guest.send(slot, header, &body, room);
        guest.wait_used(1, guest.offered(1));
    }
    assert_alive(&mut guest);
}

#[test]
fn unknown_opcodes_are_not_implemented() {
    let (mut guest, _shared) = Guest::mounted(1);
    for opcode in [0, 7, 19, 48, 49, 52, 4096, u32::MAX] {
        let reply = guest.raw(opcode, ROOT_ID, &[0; 64], 4096);
        assert_eq!(reply.errno(), libc::ENOSYS, "{opcode}");
    }
    // Locks are the guest's own.
    for opcode in [Opcode::Setlk, Opcode::Getlk, Opcode::Setlkw] {
        assert_eq!(guest.call(opcode, ROOT_ID, &[0; 48]).errno(), libc::ENOSYS);
    }
}

#[test]
fn lengths_that_lie_are_refused() {
    let (mut guest, _shared) = Guest::mounted(1);
    for (len, errno) in [
        (0, libc::EINVAL),
        (IN - 1, libc::EINVAL),
        (IN + 100_000, libc::EINVAL),
        ((1 << 20) + 4096, libc::EINVAL),
        ((1 << 20) + 4097, libc::ENOMEM),
        (u32::MAX, libc::ENOMEM),
    ] {
        let mut header = guest.header(Opcode::Lookup as u32, ROOT_ID, 5);
        header.len = len;
        guest.send(0, header, b"name\0", 4096);
        guest.wait_used(1, guest.offered(1));
        assert_eq!(guest.reply(0).errno(), errno, "{len}");
    }
    // A name without an end.
    let reply = guest.call(Opcode::Lookup, ROOT_ID, b"name");
    assert_eq!(reply.errno(), libc::EINVAL);
    assert_alive(&mut guest);
}

#[test]
fn reply_that_does_not_fit_is_not_written() {
    let (mut guest, _shared) = Guest::mounted(1);
    let (node, fh) = guest.create(ROOT_ID, "file", 0o600);
    let read = ReadIn {
        fh,
        size: 4096,
        ..ReadIn::default()
    };
    for opcode in [
        Opcode::Read,
        Opcode::Readdir,
        Opcode::Readdirplus,
        Opcode::Getattr,
    ] {
        for room in [0, 1, 15] {
            let header = guest.header(opcode as u32, node, 40);
            guest.send(0, header, read.as_slice(), room);
            let index = guest.offered(1);
            guest.wait_used(1, index);
            assert_eq!(guest.used_len(1, index.wrapping_sub(1)), 0);
        }
    }
    assert_alive(&mut guest);
}

#[test]
fn offsets_past_the_end_of_numbers_are_refused() {
    let (mut guest, _shared) = Guest::mounted(1);
    let (node, fh) = guest.create(ROOT_ID, "file", 0o600);
    for offset in [u64::MAX, 1 << 63, i64::MAX as u64, i64::MAX as u64 - 10] {
        assert_eq!(guest.read(node, fh, offset, 100).errno(), libc::EINVAL);
        let write = WriteIn {
            fh,
            offset,
            size: 100,
            ..WriteIn::default()
        };
        let body = [write.as_slice(), &[0; 100]].concat();
        let reply = guest.call(Opcode::Write, node, &body);
        assert_eq!(reply.errno(), libc::EINVAL, "{offset:#x}");
    }
    let truncate = SetattrIn {
        valid: 1 << 3,
        size: u64::MAX,
        ..SetattrIn::default()
    };
    let reply = guest.call(Opcode::Setattr, node, truncate.as_slice());
    assert_eq!(reply.errno(), libc::EINVAL);
    assert_alive(&mut guest);
}

#[test]
fn handles_of_other_nodes_are_refused() {
    let (mut guest, _shared) = Guest::mounted(1);
    let (one, fh) = guest.create(ROOT_ID, "one", 0o600);
    let (two, _) = guest.create(ROOT_ID, "two", 0o600);
    guest.write(one, fh, 0, b"secret");
    assert_eq!(guest.read(two, fh, 0, 6).errno(), libc::EBADF);
    assert_eq!(guest.read(one, fh + 100, 0, 6).errno(), libc::EBADF);
    assert_eq!(guest.open(77, libc::O_RDONLY).errno(), libc::EBADF);
}

#[test]
fn open_flags_that_open_something_else_are_dropped() {
    let (mut guest, shared) = Guest::mounted(1);
    let tmpfile = libc::O_TMPFILE | libc::O_RDWR;
    assert_eq!(guest.open(ROOT_ID, tmpfile).errno(), libc::EISDIR);
    let (node, _) = guest.create(ROOT_ID, "file", 0o600);
    guest
        .open(node, libc::O_CREAT | libc::O_PATH | libc::O_ASYNC)
        .ok();
    assert_eq!(fs::read_dir(shared.path()).unwrap().count(), 1);
}

#[test]
fn chains_outside_of_memory_are_returned_empty() {
    let (mut guest, _shared) = Guest::mounted(1);
    let header = guest.header(Opcode::Getattr as u32, ROOT_ID, 0);
    guest
        .memory
        .write_slice(header.as_slice(), GuestAddress(0x90_0000))
        .unwrap();
    let chains: [&[(u64, u32, u16, u16)]; 7] = [
        &[(0x1_0000_0000_0000, IN, 1, 1), (0x50_0000, 4096, 2, 0)],
        &[(0x90_0000, IN, 1, 1), (u64::MAX - 10, 4096, 2, 0)],
        &[(0x90_0000, u32::MAX, 1, 1), (0x50_0000, u32::MAX, 2, 0)],
        // Writable first, then readable.
        &[(0x50_0000, 4096, 3, 1), (0x90_0000, IN, 0, 0)],
        // A loop.
        &[(0x90_0000, IN, 1, 0)],
        // A next descriptor that is none.
        &[(0x90_0000, IN, 1, 5000)],
        // Nothing at all, and an indirect table of nothing.
        &[(0, 0, 4, 0)],
    ];
    for (number, chain) in chains.iter().enumerate() {
        for (index, fields) in (0..).zip(chain.iter()) {
            guest.descriptor(1, index, *fields);
        }
        guest.offer(1, 0);
        let index = guest.offered(1);
        guest.wait_used(1, index);
        let written = guest.used_len(1, index.wrapping_sub(1));
        assert!(written as usize <= size_of::<OutHeader>(), "chain {number}");
    }
    assert_alive(&mut guest);
}

#[test]
fn broken_ring_is_served_no_more_until_reset() {
    for index in [200_u16, u16::MAX] {
        let (mut guest, _shared) = Guest::mounted(2);
        let used = guest.used_index(1);
        guest.write_avail_index(1, index);
        guest.kick(1);
        guest.wait_interrupt(std::time::Duration::from_secs(30));
        assert_eq!(guest.used_index(1), used);
        guest.fs.reset();
        guest.activate();
        guest.init(super::driver::CAPABLE).ok();
        assert_alive(&mut guest);
    }
    // A head that is no descriptor.
    let (mut guest, _shared) = Guest::mounted(1);
    guest.offer(1, 5000);
    guest.wait_interrupt(std::time::Duration::from_secs(30));
    guest.fs.reset();
    guest.activate();
    guest.init(super::driver::CAPABLE).ok();
    assert_alive(&mut guest);
}

#[test]
fn alarm_is_given_when_many_files_are_remembered() {
    let shared = tempfile::tempdir().unwrap();
    for number in 0..1200 {
        fs::write(shared.path().join(number.to_string()), "").unwrap();
    }
    // Descriptors are counted, of which other tests have some.
    let others = fs::File::open(shared.path()).unwrap().as_raw_fd();
    let config = FsConfig {
        remembered_files: others.cast_unsigned() + 1000,
        ..super::driver::config(1)
    };
    let fs = Fs::new(
        &config,
        super::driver::directory(shared.path()),
        super::driver::proc_self_fd(),
        Box::new(|| Ok(())),
    );
    let fs = fs.unwrap();
    let alarm = fs.alarm().unwrap();
    let mut guest = Guest::new(fs);
    guest.activate();
    guest.init(super::driver::CAPABLE).ok();
    let mut walk = |numbers: std::ops::Range<u32>| {
        for number in numbers {
            guest.lookup(ROOT_ID, &number.to_string()).ok();
        }
    };
    walk(0..500);
    assert!(alarm.read().is_err());
    walk(500..1200);
    // More than once, where other tests close descriptors meanwhile.
    assert!(alarm.read().is_ok());
}

#[test]
fn descriptors_run_out_for_the_guest_alone() {
    let (mut guest, shared) = Guest::mounted_with_fd_limit(50);
    for number in 0..100 {
        fs::write(shared.path().join(number.to_string()), "").unwrap();
    }
    let errors: Vec<i32> = (0..100)
        .map(|number| guest.lookup(ROOT_ID, &number.to_string()).errno())
        .collect();
    assert_eq!(errors.iter().filter(|&&errno| errno == 0).count(), 49);
    assert!(errors[49..].iter().all(|&errno| errno == libc::ENFILE));
    assert_eq!(guest.open(2, libc::O_RDONLY).errno(), libc::ENFILE);
    guest.post(Opcode::Forget, 2, 1_u64.to_le_bytes().as_slice());
    guest.walk("99");
}
