//! Directories as they are listed.

use std::collections::HashSet;
use std::fs;
use std::mem::size_of;
use std::sync::mpsc::{self, TryRecvError};
use std::thread;

use virtiofsd::filesystem::ROOT_ID;
use virtiofsd::fuse::{
    Dirent, EntryOut, ForgetIn, ForgetOne, GetattrIn, Opcode, OpenIn, OpenOut, ReadIn, ReleaseIn,
};
use vm_memory::ByteValued;

use super::driver::{Guest, object, open_below};

/// A reply with room for one name of at most eight bytes.
const ONE_NAME: u32 = (size_of::<EntryOut>() + size_of::<Dirent>() + 8) as u32;

/// Names of the root directory with the node of each, read in replies of `size`
/// bytes.
fn list(guest: &mut Guest, size: u32) -> Vec<(String, u64)> {
    let open: OpenOut = guest
        .call(Opcode::Opendir, ROOT_ID, OpenIn::default().as_slice())
        .get();
    let mut names = vec![];
    let mut offset = 0;
    loop {
        let read = ReadIn {
            fh: open.fh,
            offset,
            size,
            ..ReadIn::default()
        };
        let body = guest
            .call(Opcode::Readdirplus, ROOT_ID, read.as_slice())
            .ok();
        if body.is_empty() {
            break;
        }
        let mut rest = &body[..];
        while !rest.is_empty() {
            let entry: EntryOut = object(rest);
            let dirent: Dirent = object(&rest[size_of::<EntryOut>()..]);
            let start = size_of::<EntryOut>() + size_of::<Dirent>();
            let len = dirent.namelen as usize;
            let name = String::from_utf8(rest[start..start + len].to_vec()).unwrap();
            if name != "." && name != ".." {
                names.push((name, entry.nodeid));
            }
            offset = dirent.off;
            rest = &rest[(start + len).next_multiple_of(8)..];
        }
    }
    let release = ReleaseIn {
        fh: open.fh,
        ..ReleaseIn::default()
    };
    guest
        .call(Opcode::Releasedir, ROOT_ID, release.as_slice())
        .ok();
    names
}

fn forget(guest: &mut Guest, nodes: &[u64]) {
    let mut body = u32::try_from(nodes.len()).unwrap().to_le_bytes().to_vec();
    body.extend([0; 4]);
    for &nodeid in nodes {
        body.extend(ForgetOne { nodeid, nlookup: 1 }.as_slice());
    }
    guest.post(Opcode::BatchForget, 0, &body);
}

#[test]
fn big_directory_is_read_whole_and_forgotten() {
    const FILES: usize = 5000;
    let (mut guest, shared) = Guest::mounted(1);
    for number in 0..FILES {
        let name = format!("{number}-{}", "long".repeat(50));
        fs::write(shared.path().join(name), "").unwrap();
    }
    let listed = list(&mut guest, 64 << 10);
    let (names, nodes): (HashSet<_>, Vec<_>) = listed.into_iter().unzip();
    assert_eq!((names.len(), nodes.len()), (FILES, FILES));

    assert_eq!(open_below(shared.path()), FILES);
    forget(&mut guest, &nodes[1..]);
    guest.post(Opcode::Forget, nodes[0], ForgetIn { nlookup: 1 }.as_slice());
    assert_eq!(open_below(shared.path()), 0);
    let gone = guest.call(Opcode::Getattr, nodes[0], GetattrIn::default().as_slice());
    assert_eq!(gone.errno(), libc::EBADF);
}

/// Each name is the first of its reply, where an error would end the listing.
#[test]
fn names_that_vanish_do_not_end_a_listing() {
    const FILES: usize = 16;
    const LISTINGS: usize = 200;
    let (mut guest, shared) = Guest::mounted(1);
    for number in 0..FILES {
        fs::write(shared.path().join(format!("stay{number}")), "").unwrap();
    }
    let vanishing = (0..FILES).map(|number| shared.path().join(format!("gone{number}")));
    let vanishing: Vec<_> = vanishing.collect();
    let (listing, listed) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            while listed.try_recv() != Err(TryRecvError::Disconnected) {
                for path in &vanishing {
                    fs::write(path, "").unwrap();
                }
                for path in &vanishing {
                    fs::remove_file(path).unwrap();
                }
            }
        });
        // Dropped when an assertion fails, too.
        let _listing = listing;
        for _ in 0..LISTINGS {
            let names = list(&mut guest, ONE_NAME);
            let (names, nodes): (Vec<_>, Vec<_>) = names.into_iter().unzip();
            let stayed = names.iter().filter(|name| name.starts_with("stay"));
            assert_eq!(stayed.collect::<HashSet<_>>().len(), FILES);
            forget(&mut guest, &nodes);
        }
    });
}

#[test]
fn names_that_cannot_be_looked_up_are_listed_without_a_node() {
    const FILES: usize = 100;
    const DESCRIPTORS: usize = 50;
    let (mut guest, shared) = Guest::mounted_with_fd_limit(DESCRIPTORS as u64);
    for number in 0..FILES {
        fs::write(shared.path().join(number.to_string()), "").unwrap();
    }
    for size in [ONE_NAME, 64 << 10] {
        let listed = list(&mut guest, size);
        let (names, nodes): (HashSet<_>, Vec<_>) = listed.into_iter().unzip();
        assert_eq!(names.len(), FILES);
        let nodes: Vec<_> = nodes.into_iter().filter(|&node| node != 0).collect();
        // The root and the directory's handle have theirs.
        assert_eq!(nodes.len(), DESCRIPTORS - 2);
        forget(&mut guest, &nodes);
    }
    // Asked for itself, such a name is an error still.
    assert_eq!(guest.lookup(ROOT_ID, "absent").errno(), libc::ENOENT);
}
