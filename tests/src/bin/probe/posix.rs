//! The part of POSIX and Linux file systems that package managers, git, databases and compilers
//! stand on, checked call by call in one directory.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, bail, ensure};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, Timespec,
    Timestamps, XattrFlags,
};
use rustix::io::Errno;

type Check = fn(&Path) -> anyhow::Result<()>;

const CHECKS: &[(&str, Check)] = &[
    ("read, write, append, truncate", contents),
    ("mode, owner, times", attributes),
    ("extended attributes", extended_attributes),
    ("access control lists", access_control_list),
    ("hard links and symbolic links", links),
    ("rename, RENAME_NOREPLACE, RENAME_EXCHANGE", renames),
    ("unlinked file stays readable", unlinked),
    ("O_TMPFILE and linkat", temporary_file),
    ("fallocate, holes, SEEK_DATA", allocation),
    ("flock between two openings", advisory_lock),
    ("POSIX locks between two processes", record_lock),
    ("shared mmap", mapping),
    ("fifo", fifo),
    ("unix socket", unix_socket),
    ("directory of 500 entries, removed while read", directory),
    ("long names, and too long ones", names),
    ("copy_file_range and fsync", copying),
];

/// Runs all checks, each in a directory of its own, and names those that fail.
pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    let mut failed = 0;
    let mut stdout = std::io::stdout().lock();
    for (number, (name, check)) in CHECKS.iter().enumerate() {
        let directory = root.join(format!("check{number}"));
        fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
        let result = check(&directory)
            .and_then(|()| fs::remove_dir_all(&directory).context("directory cannot be removed"));
        match result {
            Ok(()) => writeln!(stdout, "ok      {name}")?,
            Err(error) => {
                failed += 1;
                writeln!(stdout, "FAILED  {name}: {error:#}")?;
            }
        }
    }
    ensure!(failed == 0, "{failed} of {} checks failed", CHECKS.len());
    Ok(())
}

fn create(path: &Path) -> anyhow::Result<File> {
    let options = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path);
    options.with_context(|| path.display().to_string())
}

fn contents(directory: &Path) -> anyhow::Result<()> {
    let path = directory.join("file");
    let file = create(&path)?;
    file.write_all_at(b"hello world", 0)?;
    file.write_all_at(b"W", 6)?;
    OpenOptions::new()
        .append(true)
        .open(&path)?
        .write_all(b"!")?;
    ensure!(fs::read(&path)? == b"hello World!");
    file.set_len(5)?;
    ensure!(fs::read(&path)? == b"hello");
    file.set_len(8)?;
    ensure!(fs::read(&path)? == b"hello\0\0\0");
    let big = vec![0xa5; 3 << 20];
    fs::write(&path, &big)?;
    ensure!(fs::read(&path)? == big, "three mebibytes differ");
    Ok(())
}

fn attributes(directory: &Path) -> anyhow::Result<()> {
    let path = directory.join("file");
    let file = create(&path)?;
    fs::set_permissions(&path, PermissionsExt::from_mode(0o4751))?;
    ensure!(file.metadata()?.mode() & 0o7777 == 0o4751, "mode");
    std::os::unix::fs::chown(&path, Some(1234), Some(5678))?;
    let metadata = fs::metadata(&path)?;
    ensure!((metadata.uid(), metadata.gid()) == (1234, 5678), "owner");
    ensure!(
        metadata.mode() & 0o7777 == 0o751,
        "chown keeps the set-user-id bit"
    );
    let time = Timespec {
        tv_sec: 1_000_000_000,
        tv_nsec: 123_456_789,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
    let metadata = fs::metadata(&path)?;
    ensure!(
        (metadata.mtime(), metadata.mtime_nsec()) == (1_000_000_000, 123_456_789),
        "times"
    );
    Ok(())
}

fn extended_attributes(directory: &Path) -> anyhow::Result<()> {
    let path = directory.join("file");
    create(&path)?;
    rustix::fs::setxattr(&path, "user.colour", b"blue", XattrFlags::CREATE).context("set")?;
    let again = rustix::fs::setxattr(&path, "user.colour", b"red", XattrFlags::CREATE);
    ensure!(
        again == Err(Errno::EXIST),
        "XATTR_CREATE on one that is there: {again:?}"
    );
    rustix::fs::setxattr(&path, "user.colour", b"green", XattrFlags::REPLACE).context("replace")?;
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(&path, "user.colour", &mut value).context("get")?;
    ensure!(value[..length] == *b"green");
    let mut list = [0; 256];
    let length = rustix::fs::listxattr(&path, &mut list).context("list")?;
    let names: Vec<_> = list[..length].split(|byte| *byte == 0).collect();
    ensure!(
        names.contains(&b"user.colour".as_slice()),
        "not in the list"
    );
    rustix::fs::removexattr(&path, "user.colour").context("remove")?;
    let gone = rustix::fs::getxattr(&path, "user.colour", &mut value);
    ensure!(gone == Err(Errno::NODATA), "after removal: {gone:?}");
    Ok(())
}

/// The attribute's form: a version, then tag, permissions and id of each entry
/// (Linux, `include/uapi/linux/posix_acl_xattr.h`).
fn access_control_list(directory: &Path) -> anyhow::Result<()> {
    const NO_ID: u32 = u32::MAX;
    let path = directory.join("file");
    create(&path)?;
    let entries: [(u16, u16, u32); 5] = [
        (0x01, 0o6, NO_ID), // the owner
        (0x02, 0o6, 1234),  // a user
        (0x04, 0o4, NO_ID), // the owning group
        (0x10, 0o6, NO_ID), // the mask
        (0x20, 0o0, NO_ID), // others
    ];
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    let name = "system.posix_acl_access";
    rustix::fs::setxattr(&path, name, &list, XattrFlags::empty()).context("set")?;
    let mut value = [0; 256];
    let length = rustix::fs::getxattr(&path, name, &mut value).context("get")?;
    ensure!(value[..length] == list, "what was set is not what is there");
    let mode = fs::metadata(&path)?.mode() & 0o777;
    ensure!(mode == 0o660, "the mode {mode:o} does not follow the mask");
    Ok(())
}

fn links(directory: &Path) -> anyhow::Result<()> {
    let (file, link) = (directory.join("file"), directory.join("link"));
    fs::write(&file, "x")?;
    fs::hard_link(&file, &link)?;
    let (first, second) = (fs::metadata(&file)?, fs::metadata(&link)?);
    ensure!(first.ino() == second.ino() && first.nlink() == 2);
    fs::remove_file(&file)?;
    ensure!(fs::metadata(&link)?.nlink() == 1);
    let symbolic = directory.join("symbolic");
    symlink("link", &symbolic)?;
    ensure!(fs::read_link(&symbolic)? == Path::new("link"));
    ensure!(fs::read(&symbolic)? == b"x");
    Ok(())
}

fn renames(directory: &Path) -> anyhow::Result<()> {
    let (a, b) = (directory.join("a"), directory.join("b"));
    fs::write(&a, "a")?;
    fs::write(&b, "b")?;
    let kept = rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::NOREPLACE);
    ensure!(kept == Err(Errno::EXIST), "NOREPLACE: {kept:?}");
    rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).context("EXCHANGE")?;
    ensure!(fs::read(&a)? == b"b" && fs::read(&b)? == b"a");
    fs::rename(&a, &b)?;
    ensure!(fs::read(&b)? == b"b" && !a.exists());
    let (c, d) = (directory.join("c"), directory.join("d"));
    fs::create_dir(&c)?;
    fs::write(c.join("inside"), "x")?;
    fs::rename(&c, &d)?;
    ensure!(fs::read(d.join("inside"))? == b"x");
    let full = fs::rename(&b, &d)
        .err()
        .and_then(|error| Errno::from_io_error(&error));
    ensure!(full == Some(Errno::ISDIR), "file over directory: {full:?}");
    Ok(())
}

fn unlinked(directory: &Path) -> anyhow::Result<()> {
    let path = directory.join("file");
    let mut file = create(&path)?;
    fs::remove_file(&path)?;
    file.write_all(b"still here")?;
    file.seek(SeekFrom::Start(0))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    ensure!(text == "still here");
    ensure!(file.metadata()?.nlink() == 0);
    Ok(())
}

fn temporary_file(directory: &Path) -> anyhow::Result<()> {
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let mut file = File::from(rustix::fs::open(
        directory,
        flags,
        Mode::from_raw_mode(0o600),
    )?);
    file.write_all(b"x")?;
    ensure!(
        fs::read_dir(directory)?.count() == 0,
        "it has a name already"
    );
    let (name, descriptor) = (directory.join("named"), file.as_raw_fd());
    let source = format!("/proc/self/fd/{descriptor}");
    rustix::fs::linkat(CWD, source, CWD, &name, AtFlags::SYMLINK_FOLLOW).context("linkat")?;
    ensure!(fs::read(&name)? == b"x");
    Ok(())
}

fn allocation(directory: &Path) -> anyhow::Result<()> {
    let file = create(&directory.join("file"))?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).context("allocate")?;
    ensure!(file.metadata()?.len() == 1 << 20);
    file.write_all_at(&vec![1; 1 << 20], 0)?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 0, 1 << 19).context("punch a hole")?;
    let mut byte = [9];
    file.read_exact_at(&mut byte, 4096)?;
    ensure!(byte == [0], "the hole is not empty");
    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).context("SEEK_DATA")?;
    ensure!(data == 0 || data == 1 << 19, "data begins at {data}");
    Ok(())
}

fn advisory_lock(directory: &Path) -> anyhow::Result<()> {
    let path = directory.join("file");
    let first = create(&path)?;
    let second = File::open(&path)?;
    rustix::fs::flock(&first, FlockOperation::LockExclusive).context("lock")?;
    let taken = rustix::fs::flock(&second, FlockOperation::NonBlockingLockShared);
    ensure!(taken == Err(Errno::WOULDBLOCK), "a second lock: {taken:?}");
    rustix::fs::flock(&first, FlockOperation::Unlock)?;
    rustix::fs::flock(&second, FlockOperation::NonBlockingLockShared).context("after unlock")?;
    Ok(())
}

fn record_lock(directory: &Path) -> anyhow::Result<()> {
    let path = directory.join("file");
    let file = create(&path)?;
    rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive).context("lock")?;
    let other = Command::new("/proc/self/exe")
        .arg("locked")
        .arg(&path)
        .status()?;
    ensure!(other.success(), "another process got the lock");
    Ok(())
}

/// Succeeds if another process holds a POSIX lock on this file.
pub(crate) fn locked(path: &Path) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(()),
        other => bail!("not locked: {other:?}"),
    }
}

#[expect(unsafe_code, reason = "a mapping of a file is what is to be checked")]
fn mapping(directory: &Path) -> anyhow::Result<()> {
    use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
    const LENGTH: usize = 8192;
    let path = directory.join("file");
    let file = create(&path)?;
    file.set_len(LENGTH as u64)?;
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, of a file that nobody else truncates.
    let address = unsafe {
        mmap(
            std::ptr::null_mut(),
            LENGTH,
            protection,
            MapFlags::SHARED,
            &file,
            0,
        )
    }
    .context("mmap")?;
    // SAFETY: the mapping is LENGTH bytes long, writable, and known to this function alone.
    let memory = unsafe { std::slice::from_raw_parts_mut(address.cast::<u8>(), LENGTH) };
    memory[4090..4100].copy_from_slice(b"0123456789");
    // SAFETY: exactly the mapping.
    unsafe { msync(address, LENGTH, MsyncFlags::SYNC) }.context("msync")?;
    let mut read = [0; 10];
    file.read_exact_at(&mut read, 4090)?;
    // SAFETY: exactly the mapping, and `memory` is not used any more.
    unsafe { munmap(address, LENGTH) }.context("munmap")?;
    ensure!(
        &read == b"0123456789",
        "what was written to memory is not in the file"
    );
    Ok(())
}

fn fifo(directory: &Path) -> anyhow::Result<()> {
    let path = directory.join("fifo");
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    let writer = thread::spawn({
        let path = path.clone();
        move || fs::write(path, "through the fifo")
    });
    let text = fs::read_to_string(&path)?;
    if let Ok(written) = writer.join() {
        written?;
    }
    ensure!(text == "through the fifo");
    Ok(())
}

fn unix_socket(directory: &Path) -> anyhow::Result<()> {
    let path = directory.join("socket");
    let listener = UnixListener::bind(&path).context("bind")?;
    UnixStream::connect(&path)
        .context("connect")?
        .write_all(b"hello")?;
    let mut text = String::new();
    listener.accept()?.0.read_to_string(&mut text)?;
    ensure!(text == "hello");
    Ok(())
}

fn directory(directory: &Path) -> anyhow::Result<()> {
    const ENTRIES: usize = 500;
    for number in 0..ENTRIES {
        create(&directory.join(format!("entry{number}")))?;
    }
    let mut seen = 0;
    for entry in fs::read_dir(directory)? {
        fs::remove_file(entry?.path())?;
        seen += 1;
    }
    ensure!(seen == ENTRIES, "{seen} of {ENTRIES} entries read");
    Ok(())
}

fn names(directory: &Path) -> anyhow::Result<()> {
    let longest = "n".repeat(255);
    create(&directory.join(&longest))?;
    ensure!(directory.join(&longest).exists());
    let longer = CString::new("n".repeat(256))?;
    let Err(error) = fs::metadata(directory.join(longer.to_str()?)) else {
        bail!("a name of 256 bytes was found");
    };
    ensure!(
        Errno::from_io_error(&error) == Some(Errno::NAMETOOLONG),
        "{error}"
    );
    Ok(())
}

fn copying(directory: &Path) -> anyhow::Result<()> {
    let source = create(&directory.join("source"))?;
    source.write_all_at(b"some bytes to copy", 0)?;
    let target = create(&directory.join("target"))?;
    let copied = rustix::fs::copy_file_range(&source, None, &target, None, 1 << 16)?;
    ensure!(copied == 18, "{copied} bytes copied");
    target.sync_all().context("fsync")?;
    target.sync_data().context("fdatasync")?;
    File::open(directory)?
        .sync_all()
        .context("fsync of a directory")?;
    ensure!(fs::read(directory.join("target"))? == b"some bytes to copy");
    Ok(())
}
