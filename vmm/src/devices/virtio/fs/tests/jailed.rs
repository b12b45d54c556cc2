//! What is otherwise for a server without capabilities over the host: each test
//! runs itself again in namespaces like the jail's.
#![expect(unsafe_code, reason = "enters namespaces between fork and exec")]

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use virtiofsd::fuse::{AttrOut, CopyfilerangeIn, Opcode, OpenOut, SetattrIn, WriteIn};
use vm_memory::ByteValued;

use super::driver::{Guest, directory_of_another};
use crate::jail;

const INSIDE: &str = "LAZARET_TEST_INSIDE";

const KILL_ON_WRITE: u32 = 1 << 2;
const KILL_ON_SETATTR: u32 = 1 << 11;

/// Whether this is the inside, after the test of this name has passed there.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let (_, module) = module_path!().split_once("::").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("{module}::{test}")]);
    command.env(INSIDE, "");
    // SAFETY: the child has one thread, and the C library's heap can be used in it.
    unsafe { command.pre_exec(|| jail::enter_namespaces().map_err(io::Error::other)) };
    let output = command.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{:?}: {told}", output.status);
    assert!(told.contains("1 passed"), "{told}");
    false
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn write_request(fh: u64, write_flags: u32) -> Vec<u8> {
    let write = WriteIn {
        fh,
        size: 1,
        write_flags,
        ..WriteIn::default()
    };
    [write.as_slice(), b"x"].concat()
}

fn write(guest: &mut Guest, (node, fh): (u64, u64), write_flags: u32) {
    let body = write_request(fh, write_flags);
    guest.call(Opcode::Write, node, &body).ok();
}

fn truncate(guest: &mut Guest, node: u64, kill: u32) -> u32 {
    let truncate = SetattrIn {
        valid: 1 << 3 | kill,
        size: 1,
        ..SetattrIn::default()
    };
    let attr: AttrOut = guest.call(Opcode::Setattr, node, truncate.as_slice()).get();
    attr.attr.mode & 0o7777
}

fn open(guest: &mut Guest, node: u64, flags: i32) -> (u64, u64) {
    let open: OpenOut = guest.open(node, flags).get();
    (node, open.fh)
}

#[test]
fn caller_makes_files_in_a_directory_that_is_anothers() {
    if !inside("caller_makes_files_in_a_directory_that_is_anothers") {
        return;
    }
    let (mut guest, shared) = Guest::mounted_in_the_jail(1);
    let dir = directory_of_another(shared.path());
    let parent = guest.walk("dir");
    (guest.uid, guest.gid) = (1000, 1002);
    guest.create(parent, "file", 0o600);
    let made = fs::metadata(dir.join("file")).unwrap();
    assert_eq!((made.uid(), made.gid()), (1000, 1002));
}

#[test]
fn set_user_id_outlives_roots_own_writes() {
    if !inside("set_user_id_outlives_roots_own_writes") {
        return;
    }
    for (directory, kept) in [("c/rootfs", 0o6755), ("c/mounts", 0o755)] {
        let (mut guest, shared) = Guest::mounted_in_the_jail(2);
        let below = shared.path().join(directory);
        fs::create_dir_all(&below).unwrap();
        let sudo = below.join("sudo");
        fs::write(&sudo, "old").unwrap();
        let set = || fs::set_permissions(&sudo, fs::Permissions::from_mode(0o6755)).unwrap();
        set();
        let node = guest.walk(&format!("{directory}/sudo"));

        let file = open(&mut guest, node, libc::O_WRONLY | libc::O_TRUNC);
        assert_eq!(mode(&sudo), kept, "{directory}: open");
        set();
        write(&mut guest, file, 0);
        assert_eq!(mode(&sudo), kept, "{directory}: write");
        set();
        assert_eq!(truncate(&mut guest, node, 0), kept, "{directory}: truncate");
        assert_eq!(mode(&sudo), kept);

        // What the guest's kernel asks for is done as before.
        set();
        write(&mut guest, file, KILL_ON_WRITE);
        assert_eq!(mode(&sudo), 0o755);
        write(&mut guest, file, 0);
        assert_eq!(mode(&sudo), 0o755, "bits come from nowhere");
        set();
        assert_eq!(truncate(&mut guest, node, KILL_ON_SETATTR), 0o755);

        // And so is a change of the mode itself.
        let chmod = SetattrIn {
            valid: 1,
            mode: 0o711,
            ..SetattrIn::default()
        };
        set();
        guest.call(Opcode::Setattr, node, chmod.as_slice()).ok();
        assert_eq!(mode(&sudo), 0o711);
    }
}

/// Writes of root's on all threads, and among them one of somebody else's.
#[test]
fn set_user_id_never_outlives_a_write_of_anothers() {
    const ROUNDS: usize = 300;
    const WRITES: u16 = 8;
    if !inside("set_user_id_never_outlives_a_write_of_anothers") {
        return;
    }
    let (mut guest, shared) = Guest::mounted_in_the_jail(4);
    fs::create_dir_all(shared.path().join("c/rootfs")).unwrap();
    let root = guest.walk("c/rootfs");
    let (node, fh) = guest.create(root, "sudo", 0o4755);
    let sudo = shared.path().join("c/rootfs/sudo");
    for _ in 0..ROUNDS {
        fs::set_permissions(&sudo, fs::Permissions::from_mode(0o4755)).unwrap();
        let already = guest.offered(1);
        for slot in 0..WRITES {
            let kill = if slot == WRITES / 2 { KILL_ON_WRITE } else { 0 };
            let body = write_request(fh, kill);
            let header = guest.header(Opcode::Write as u32, node, body.len());
            guest.send(slot, header, &body, 4096);
        }
        guest.wait_used(1, already.wrapping_add(WRITES));
        for slot in 0..WRITES {
            guest.reply(slot).ok();
        }
        assert_eq!(mode(&sudo), 0o755);
    }
}

/// A copy clears the bits whoever asks for it: the guest's kernel is to write.
#[test]
fn ranges_are_not_copied_to_a_file_whose_set_user_id_is_to_stay() {
    let (mut guest, shared) = Guest::mounted(1);
    fs::create_dir_all(shared.path().join("c/rootfs")).unwrap();
    let root = guest.walk("c/rootfs");
    let (from, fh_in) = guest.create(root, "from", 0o600);
    guest.write(from, fh_in, 0, b"new");
    let copied = |guest: &mut Guest, name: &str, mode| {
        let (nodeid_out, fh_out) = guest.create(root, name, mode);
        let copy = CopyfilerangeIn {
            fh_in,
            nodeid_out,
            fh_out,
            len: 3,
            ..CopyfilerangeIn::default()
        };
        guest
            .call(Opcode::CopyFileRange, from, copy.as_slice())
            .errno()
    };
    assert_eq!(copied(&mut guest, "plain", 0o755), 0);
    assert_eq!(copied(&mut guest, "sudo", 0o4755), libc::EXDEV);
}
