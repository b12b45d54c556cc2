//! What programs in a container do with files.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use virtiofsd::filesystem::ROOT_ID;
use virtiofsd::fuse::{
    AttrOut, CopyfilerangeIn, CreateIn, EntryOut, FallocateIn, GetattrIn, GetxattrIn, GetxattrOut,
    LinkIn, LseekIn, LseekOut, MkdirIn, MknodIn, Opcode, OpenOut, Rename2In, SetattrIn, SetxattrIn,
    WriteIn, WriteOut,
};
use vm_memory::ByteValued;

use super::driver::{Guest, directory_of_another, named, object};

fn mkdir(guest: &mut Guest, parent: u64, name: &str, mode: u32) -> u64 {
    let mkdir = MkdirIn { mode, umask: 0 };
    let body = named(mkdir.as_slice(), &[name]);
    guest
        .call(Opcode::Mkdir, parent, &body)
        .get::<EntryOut>()
        .nodeid
}

fn rename(guest: &mut Guest, from: (u64, &str), to: (u64, &str), flags: u32) -> i32 {
    let rename = Rename2In {
        newdir: to.0,
        flags,
        padding: 0,
    };
    let body = named(rename.as_slice(), &[from.1, to.1]);
    guest.call(Opcode::Rename2, from.0, &body).errno()
}

fn set_xattr(guest: &mut Guest, node: u64, name: &str, value: &[u8]) -> i32 {
    let set = SetxattrIn {
        size: u32::try_from(value.len()).unwrap(),
        ..SetxattrIn::default()
    };
    let mut body = named(set.as_slice(), &[name]);
    body.extend_from_slice(value);
    guest.call(Opcode::Setxattr, node, &body).errno()
}

fn xattr_request(name: &str, size: u32) -> Vec<u8> {
    let get = GetxattrIn {
        size,
        ..GetxattrIn::default()
    };
    named(get.as_slice(), &[name])
}

#[test]
fn what_is_written_is_read_on_both_sides() {
    let (mut guest, shared) = Guest::mounted(1);
    let (node, fh) = guest.create(ROOT_ID, "file", 0o640);
    let data: Vec<u8> = (0..1 << 20).map(|i| (i * 7 % 251) as u8).collect();
    assert_eq!(guest.write(node, fh, 0, &data), 1 << 20);
    assert_eq!(fs::read(shared.path().join("file")).unwrap(), data);
    assert_eq!(guest.read(node, fh, 0, 1 << 20).ok(), data);
    assert_eq!(guest.read(node, fh, 1 << 20, 4096).ok(), b"");
    assert_eq!(guest.read(node, fh, 10, 100).ok(), &data[10..110]);

    fs::write(shared.path().join("file"), "host").unwrap();
    assert_eq!(guest.read(node, fh, 0, 4096).ok(), b"host");
    let attr: AttrOut = guest
        .call(Opcode::Getattr, node, GetattrIn::default().as_slice())
        .get();
    assert_eq!((attr.attr.size, attr.attr.mode & 0o7777), (4, 0o640));
}

#[test]
fn unlinked_file_lives_while_it_is_open() {
    let (mut guest, shared) = Guest::mounted(1);
    let (node, fh) = guest.create(ROOT_ID, "file", 0o600);
    guest.call(Opcode::Unlink, ROOT_ID, b"file\0").ok();
    assert!(!shared.path().join("file").exists());
    assert_eq!(guest.write(node, fh, 0, b"still here"), 10);
    assert_eq!(guest.read(node, fh, 0, 10).ok(), b"still here");
    let again: OpenOut = guest.open(node, libc::O_RDONLY).get();
    assert_eq!(guest.read(node, again.fh, 6, 4).ok(), b"here");
}

#[test]
fn files_belong_to_the_caller_and_keep_their_mode() {
    let (mut guest, shared) = Guest::mounted(1);
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o777)).unwrap();
    (guest.uid, guest.gid) = (1234, 4321);
    guest.create(ROOT_ID, "file", 0o4755);
    mkdir(&mut guest, ROOT_ID, "dir", 0o750);
    let file = fs::metadata(shared.path().join("file")).unwrap();
    assert_eq!(
        (file.uid(), file.gid(), file.mode()),
        (1234, 4321, 0o104_755)
    );
    let dir = fs::metadata(shared.path().join("dir")).unwrap();
    assert_eq!((dir.uid(), dir.gid(), dir.mode()), (1234, 4321, 0o40_750));

    // The thread is root again: others' files can be made and changed.
    (guest.uid, guest.gid) = (0, 0);
    let (root, _) = guest.create(ROOT_ID, "root", 0o600);
    let chown = SetattrIn {
        valid: 1 << 1 | 1 << 2,
        uid: 99.into(),
        gid: 98.into(),
        ..SetattrIn::default()
    };
    guest.call(Opcode::Setattr, root, chown.as_slice()).ok();
    let file = fs::metadata(shared.path().join("root")).unwrap();
    assert_eq!((file.uid(), file.gid()), (99, 98));
}

/// As root of a user namespace in the guest does: its kernel sees a capability
/// over the directory, the host a user like any other.
#[test]
fn caller_makes_files_in_a_directory_that_is_anothers() {
    let (mut guest, shared) = Guest::mounted(1);
    let dir = directory_of_another(shared.path());
    let parent = guest.walk("dir");
    (guest.uid, guest.gid) = (1000, 1002);
    // The second time, after the thread has changed its user and back.
    for round in ["1", "2"] {
        let name = |kind: &str| format!("{kind}-{round}");
        guest.create(parent, &name("file"), 0o600);
        mkdir(&mut guest, parent, &name("dir"), 0o700);
        let mknod = MknodIn {
            mode: libc::S_IFIFO | 0o600,
            ..MknodIn::default()
        };
        let body = named(mknod.as_slice(), &[&name("fifo")]);
        guest.call(Opcode::Mknod, parent, &body).ok();
        let body = named(&[], &[&name("link"), "/nowhere"]);
        guest.call(Opcode::Symlink, parent, &body).ok();
        for kind in ["file", "dir", "fifo", "link"] {
            let made = fs::symlink_metadata(dir.join(name(kind))).unwrap();
            assert_eq!((made.uid(), made.gid()), (1000, 1002), "{kind}");
        }
    }
}

#[test]
fn set_user_id_is_cleared_when_the_guest_asks() {
    let (mut guest, shared) = Guest::mounted(1);
    let (node, fh) = guest.create(ROOT_ID, "file", 0o6755);
    let mode = || fs::metadata(shared.path().join("file")).unwrap().mode() & 0o7777;
    assert_eq!(guest.write(node, fh, 0, b"x"), 1);
    assert_eq!(mode(), 0o6755);
    let write = WriteIn {
        fh,
        size: 1,
        write_flags: 1 << 2,
        ..WriteIn::default()
    };
    let body = [write.as_slice(), b"y"].concat();
    guest.call(Opcode::Write, node, &body).ok();
    assert_eq!(mode(), 0o755);
    // And the thread has its capability back.
    let chmod = SetattrIn {
        valid: 1,
        mode: 0o6711,
        ..SetattrIn::default()
    };
    guest.call(Opcode::Setattr, node, chmod.as_slice()).ok();
    guest.write(node, fh, 0, b"x");
    assert_eq!(mode(), 0o6711);
}

#[test]
fn hard_links_share_a_node() {
    let (mut guest, shared) = Guest::mounted(1);
    let (node, _) = guest.create(ROOT_ID, "one", 0o600);
    let link = LinkIn { oldnodeid: node };
    let body = named(link.as_slice(), &["two"]);
    let entry: EntryOut = guest.call(Opcode::Link, ROOT_ID, &body).get();
    assert_eq!((entry.nodeid, entry.attr.nlink), (node, 2));
    assert_eq!(fs::metadata(shared.path().join("two")).unwrap().nlink(), 2);
}

#[test]
fn rename_exchanges_and_does_not_replace() {
    let (mut guest, shared) = Guest::mounted(1);
    fs::write(shared.path().join("a"), "a").unwrap();
    fs::write(shared.path().join("b"), "b").unwrap();
    let dir = mkdir(&mut guest, ROOT_ID, "dir", 0o755);
    let read = |name| fs::read_to_string(shared.path().join(name)).unwrap();

    let exchange = libc::RENAME_EXCHANGE;
    assert_eq!(
        rename(&mut guest, (ROOT_ID, "a"), (ROOT_ID, "b"), exchange),
        0
    );
    assert_eq!((read("a"), read("b")), ("b".into(), "a".into()));
    let refused = rename(
        &mut guest,
        (ROOT_ID, "a"),
        (ROOT_ID, "b"),
        libc::RENAME_NOREPLACE,
    );
    assert_eq!(refused, libc::EEXIST);
    assert_eq!(rename(&mut guest, (ROOT_ID, "a"), (dir, "b"), 0), 0);
    assert_eq!(read("dir/b"), "b");
    let whiteout = libc::RENAME_WHITEOUT;
    assert_eq!(rename(&mut guest, (ROOT_ID, "b"), (dir, "c"), whiteout), 0);
    let left = fs::symlink_metadata(shared.path().join("b")).unwrap();
    assert!(left.file_type().is_char_device() && left.rdev() == 0);
}

#[test]
fn extended_attributes_are_kept_on_files_directories_and_links() {
    let (mut guest, _shared) = Guest::mounted(1);
    let (file, _) = guest.create(ROOT_ID, "file", 0o600);
    let dir = mkdir(&mut guest, ROOT_ID, "dir", 0o755);
    for node in [file, dir] {
        assert_eq!(set_xattr(&mut guest, node, "user.x", b"value"), 0);
        let size: GetxattrOut = guest
            .call(Opcode::Getxattr, node, &xattr_request("user.x", 0))
            .get();
        assert_eq!(size.size, 5);
        let value = guest.call(Opcode::Getxattr, node, &xattr_request("user.x", 64));
        assert_eq!(value.ok(), b"value");
        let short = guest.call(Opcode::Getxattr, node, &xattr_request("user.x", 2));
        assert_eq!(short.errno(), libc::ERANGE);
        let list = GetxattrIn {
            size: 4096,
            ..GetxattrIn::default()
        };
        let names = guest.call(Opcode::Listxattr, node, list.as_slice()).ok();
        assert!(names.split(|b| *b == 0).any(|name| name == b"user.x"));
        guest.call(Opcode::Removexattr, node, b"user.x\0").ok();
        let gone = guest.call(Opcode::Getxattr, node, &xattr_request("user.x", 64));
        assert_eq!(gone.errno(), libc::ENODATA);
    }
    let link: EntryOut = guest
        .call(Opcode::Symlink, ROOT_ID, &named(&[], &["link", "/nowhere"]))
        .get();
    // No file system takes user.* on a symbolic link; trusted.* needs root.
    assert_eq!(
        set_xattr(&mut guest, link.nodeid, "user.x", b"v"),
        libc::EPERM
    );
    assert_eq!(set_xattr(&mut guest, link.nodeid, "trusted.x", b"v"), 0);
    assert_eq!(
        guest.call(Opcode::Readlink, link.nodeid, &[]).ok(),
        b"/nowhere"
    );
    // The thread is back in the shared directory.
    guest.create(ROOT_ID, "after", 0o600);
}

#[test]
fn file_capabilities_pass_and_a_write_takes_them_away() {
    let (mut guest, _shared) = Guest::mounted(1);
    let (file, fh) = guest.create(ROOT_ID, "file", 0o755);
    // Version 2, effective, CAP_NET_RAW.
    let mut capability = 0x0200_0001_u32.to_le_bytes().to_vec();
    for word in [1_u32 << 13, 0, 0, 0] {
        capability.extend(word.to_le_bytes());
    }
    assert_eq!(
        set_xattr(&mut guest, file, "security.capability", &capability),
        0
    );
    let get = xattr_request("security.capability", 64);
    assert_eq!(guest.call(Opcode::Getxattr, file, &get).ok(), capability);
    guest.write(file, fh, 0, b"x");
    assert_eq!(
        guest.call(Opcode::Getxattr, file, &get).errno(),
        libc::ENODATA
    );
}

#[test]
fn default_acl_of_a_directory_is_inherited_and_umask_ignored() {
    let (mut guest, shared) = Guest::mounted(1);
    let dir = mkdir(&mut guest, ROOT_ID, "dir", 0o755);
    // version 2; user::rwx, user:7:rw, group::r-x, mask::rwx, other::---
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in [
        (1_u16, 7_u16, u32::MAX),
        (2, 6, 7),
        (4, 5, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    assert_eq!(
        set_xattr(&mut guest, dir, "system.posix_acl_default", &acl),
        0
    );
    let create = CreateIn {
        flags: (libc::O_CREAT | libc::O_EXCL | libc::O_RDWR) as u32,
        mode: libc::S_IFREG | 0o666,
        umask: 0o022,
        open_flags: 0,
    };
    for (parent, expected) in [(dir, 0o660), (ROOT_ID, 0o644)] {
        let body = named(create.as_slice(), &["file"]);
        let entry: EntryOut = object(&guest.call(Opcode::Create, parent, &body).ok());
        assert_eq!(entry.attr.mode & 0o777, expected);
    }
    assert!(shared.path().join("dir/file").exists());
}

#[test]
fn space_is_reserved_punched_and_found() {
    let (mut guest, shared) = Guest::mounted(1);
    let (node, fh) = guest.create(ROOT_ID, "file", 0o600);
    let mut allocate = |mode: i32, offset, length| {
        let allocate = FallocateIn {
            fh,
            offset,
            length,
            mode: mode as u32,
            padding: 0,
        };
        guest
            .call(Opcode::Fallocate, node, allocate.as_slice())
            .errno()
    };
    assert_eq!(allocate(0, 0, 1 << 20), 0);
    assert_eq!(
        fs::metadata(shared.path().join("file")).unwrap().len(),
        1 << 20
    );
    guest.write(node, fh, 0, &vec![1; 64 << 10]);
    guest.write(node, fh, 512 << 10, &vec![2; 64 << 10]);
    let mut allocate = |mode: i32, offset, length| {
        let allocate = FallocateIn {
            fh,
            offset,
            length,
            mode: mode as u32,
            padding: 0,
        };
        guest
            .call(Opcode::Fallocate, node, allocate.as_slice())
            .errno()
    };
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    assert_eq!(allocate(punch, 0, 64 << 10), 0);
    assert_eq!(guest.read(node, fh, 0, 4096).ok(), vec![0; 4096]);
    let seek = LseekIn {
        fh,
        offset: 0,
        whence: libc::SEEK_DATA as u32,
        padding: 0,
    };
    let data: LseekOut = guest.call(Opcode::Lseek, node, seek.as_slice()).get();
    assert_eq!(data.offset, 512 << 10);
}

#[test]
fn ranges_are_copied_between_files() {
    let (mut guest, shared) = Guest::mounted(1);
    let (from, fh_in) = guest.create(ROOT_ID, "from", 0o600);
    let (to, fh_out) = guest.create(ROOT_ID, "to", 0o600);
    guest.write(from, fh_in, 0, b"0123456789");
    let copy = CopyfilerangeIn {
        fh_in,
        off_in: 2,
        nodeid_out: to,
        fh_out,
        off_out: 1,
        len: 5,
        ..CopyfilerangeIn::default()
    };
    let copied: WriteOut = guest
        .call(Opcode::CopyFileRange, from, copy.as_slice())
        .get();
    assert_eq!(copied.size, 5);
    assert_eq!(fs::read(shared.path().join("to")).unwrap(), b"\x0023456");
}

#[test]
fn fifos_sockets_and_whiteouts_can_be_made_but_no_devices() {
    let (mut guest, shared) = Guest::mounted(1);
    let mut mknod = |name, mode, rdev| {
        let mknod = MknodIn {
            mode,
            rdev,
            umask: 0,
            padding: 0,
        };
        let body = named(mknod.as_slice(), &[name]);
        guest.call(Opcode::Mknod, ROOT_ID, &body).errno()
    };
    assert_eq!(mknod("fifo", libc::S_IFIFO | 0o600, 0), 0);
    assert_eq!(mknod("sock", libc::S_IFSOCK | 0o600, 0), 0);
    assert_eq!(mknod("whiteout", libc::S_IFCHR, 0), 0);
    assert_eq!(mknod("null", libc::S_IFCHR | 0o666, 0x103), libc::EPERM);
    assert_eq!(mknod("sda", libc::S_IFBLK | 0o666, 0x800), libc::EPERM);
    assert_eq!(mknod("block", libc::S_IFBLK | 0o666, 0), libc::EPERM);
    assert!(
        fs::metadata(shared.path().join("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );

    // Opening one would wait for a writer.
    let fifo = guest.walk("fifo");
    assert_eq!(guest.open(fifo, libc::O_RDONLY).errno(), libc::EBADF);
}

#[test]
fn private_root_is_cached_and_the_rest_is_not() {
    let (mut guest, shared) = Guest::mounted(1);
    fs::create_dir_all(shared.path().join("c1/rootfs/etc")).unwrap();
    fs::create_dir_all(shared.path().join("c1/mounts/0")).unwrap();
    let private = guest.walk("c1/rootfs/etc");
    let volume = guest.walk("c1/mounts/0");
    let (file, fh) = guest.create(private, "hosts", 0o644);
    guest.write(file, fh, 0, b"x");

    let entry: EntryOut = guest.lookup(private, "hosts").get();
    assert!(entry.entry_valid > 3600 && entry.attr_valid > 3600);
    assert_eq!(entry.nodeid, file);
    let open: OpenOut = guest.open(file, libc::O_RDONLY).get();
    assert_eq!(open.open_flags, 1 << 1, "cache is kept");
    let absent: EntryOut = guest.lookup(private, "absent").get();
    assert!(absent.nodeid == 0 && absent.entry_valid > 3600);

    let (file, _) = guest.create(volume, "data", 0o644);
    let entry: EntryOut = guest.lookup(volume, "data").get();
    assert_eq!((entry.entry_valid, entry.entry_valid_nsec), (0, 1_000_000));
    let open: OpenOut = guest.open(file, libc::O_RDONLY).get();
    assert_eq!(open.open_flags, 0);
    assert_eq!(guest.lookup(volume, "absent").errno(), libc::ENOENT);
}
