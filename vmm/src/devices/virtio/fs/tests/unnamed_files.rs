//! `O_TMPFILE`.

use std::fs;
use std::mem::size_of;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use virtiofsd::filesystem::ROOT_ID;
use virtiofsd::fuse::{
    AttrOut, CreateIn, EntryOut, ForgetIn, GetattrIn, LinkIn, Opcode, SetattrIn,
};
use vm_memory::ByteValued;

use super::driver::{Guest, Reply, named, object};
use crate::devices::virtio::fs::unnamed::MAX_UNNAMED;

fn tmpfile(guest: &mut Guest, directory: u64, flags: i32) -> Reply {
    let create = CreateIn {
        flags: (libc::O_RDWR | flags) as u32,
        mode: libc::S_IFREG | 0o666,
        umask: 0o027,
        open_flags: 0,
    };
    let body = named(create.as_slice(), &["#1"]);
    guest.call(Opcode::TmpFile, directory, &body)
}

#[test]
fn file_without_a_name_gets_one() {
    let (mut guest, shared) = Guest::mounted(1);
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o777)).unwrap();
    (guest.uid, guest.gid) = (55, 66);
    let body = tmpfile(&mut guest, ROOT_ID, 0).ok();
    assert_eq!(body.len(), size_of::<EntryOut>() + 16);
    let entry: EntryOut = object(&body);
    let node = entry.nodeid;
    assert_eq!(
        (entry.attr.nlink, entry.attr.mode),
        (0, libc::S_IFREG | 0o640)
    );
    assert_eq!(fs::read_dir(shared.path()).unwrap().count(), 0);

    assert_eq!(guest.write(node, 0, 0, b"contents"), 8);
    assert_eq!(guest.read(node, 0, 0, 8).ok(), b"contents");
    let truncate = SetattrIn {
        valid: 1 << 3,
        size: 4,
        ..SetattrIn::default()
    };
    let attr: AttrOut = guest.call(Opcode::Setattr, node, truncate.as_slice()).get();
    assert_eq!(attr.attr.size, 4);

    let body = named(LinkIn { oldnodeid: node }.as_slice(), &["named"]);
    let linked: EntryOut = guest.call(Opcode::Link, ROOT_ID, &body).get();
    assert_eq!(linked.attr.ino, entry.attr.ino);
    assert_ne!(linked.nodeid, node);
    let file = shared.path().join("named");
    assert_eq!(fs::read(&file).unwrap(), b"cont");
    let meta = fs::metadata(&file).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (55, 66));
}

#[test]
fn exclusive_file_never_gets_a_name() {
    let (mut guest, _shared) = Guest::mounted(1);
    let entry: EntryOut = object(&tmpfile(&mut guest, ROOT_ID, libc::O_EXCL).ok());
    let body = named(
        LinkIn {
            oldnodeid: entry.nodeid,
        }
        .as_slice(),
        &["named"],
    );
    assert_eq!(
        guest.call(Opcode::Link, ROOT_ID, &body).errno(),
        libc::ENOENT
    );
}

#[test]
fn forgotten_file_is_closed_and_their_number_is_limited() {
    let (mut guest, _shared) = Guest::mounted(1);
    let nodes: Vec<u64> = (0..MAX_UNNAMED)
        .map(|_| object::<EntryOut>(&tmpfile(&mut guest, ROOT_ID, 0).ok()).nodeid)
        .collect();
    assert_eq!(tmpfile(&mut guest, ROOT_ID, 0).errno(), libc::ENFILE);
    guest.post(Opcode::Forget, nodes[0], ForgetIn { nlookup: 1 }.as_slice());
    let gone = guest.call(Opcode::Getattr, nodes[0], GetattrIn::default().as_slice());
    assert_eq!(gone.errno(), libc::EBADF);
    tmpfile(&mut guest, ROOT_ID, 0).ok();
    guest.call(Opcode::Destroy, 0, &[]).ok();
    let gone = guest.call(Opcode::Getattr, nodes[1], GetattrIn::default().as_slice());
    assert_eq!(gone.errno(), libc::EBADF);
}

#[test]
fn only_a_directory_can_hold_one() {
    let (mut guest, _shared) = Guest::mounted(1);
    let (file, _) = guest.create(ROOT_ID, "file", 0o600);
    assert_eq!(tmpfile(&mut guest, file, 0).errno(), libc::ENOTDIR);
    let unnamed: EntryOut = object(&tmpfile(&mut guest, ROOT_ID, 0).ok());
    assert_eq!(
        tmpfile(&mut guest, unnamed.nodeid, 0).errno(),
        libc::ENOTDIR
    );
}
