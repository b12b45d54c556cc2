//! An initramfs whose PID 1 is `probe`, told how to behave.
//! <https://docs.kernel.org/driver-api/early-userspace/buffer-format.html>

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Major and minor number of /dev/console.
const CONSOLE: (u32, u32) = (5, 1);

/// A cpio archive (newc) of /init, /dev/console and /behaviour.
pub(crate) fn initramfs(init: &[u8], behaviour: &str) -> Vec<u8> {
    let mut archive = Vec::new();
    append(&mut archive, "dev", DIRECTORY, (0, 0), &[]);
    append(&mut archive, "dev/console", CHARACTER_DEVICE, CONSOLE, &[]);
    append(
        &mut archive,
        "behaviour",
        PROGRAM,
        (0, 0),
        behaviour.as_bytes(),
    );
    append(&mut archive, "init", PROGRAM, (0, 0), init);
    append(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    archive
}

fn append(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), data: &[u8]) {
    let size = u32::try_from(data.len()).expect("a small file");
    let name_size = u32::try_from(name.len() + 1).expect("a short name");
    let inode = u32::try_from(archive.len()).expect("a small archive");
    let (major, minor) = device;
    let fields = [
        inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0,
    ];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(data);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}
