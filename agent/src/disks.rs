//! Disks that the host has put into block slots.
//!
//! The driver looks at a disk's size and at whether it may be written to when it
//! starts, and hears of a new size only some time later: it is started anew, and
//! knows all there is to know when that is done.

use std::fs;
use std::path::{Path, PathBuf};

use lazaret_protocol::agent::Disk;
use parking_lot::Mutex;

use crate::failure::{Code, Failure, OrFail, Result};

const BLOCK_DEVICES: &str = "/sys/block";
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_blk";

/// Names are given in the order in which drivers start: one disk at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Makes the disk in `slot` usable.
pub(crate) fn start(slot: u32) -> Result<Disk> {
    let _turn = ONE_AT_A_TIME.lock();
    let device = device_of(slot)?;
    for step in ["unbind", "bind"] {
        let name = device.file_name().unwrap_or_default();
        fs::write(Path::new(DRIVER).join(step), name.as_encoded_bytes())
            .or_fail(|| format!("{step} the disk in slot {slot}"))?;
    }
    let (name, place) = block_device(&device.join("block"))
        .ok_or_else(|| missing(format!("the disk in slot {slot} has not come back")))?;
    let doing = || format!("look at disk {name}");
    let size = fs::read_to_string(place.join("size")).or_fail(doing)?;
    if size.trim() == "0" {
        return Err(missing(format!("there is no disk in slot {slot}")));
    }
    let number = fs::read_to_string(place.join("dev")).or_fail(doing)?;
    let (major, minor) = parse_number(&number)
        .ok_or_else(|| Failure::internal(format!("disk {name} has the number {number:?}")))?;
    Ok(Disk {
        name,
        major,
        minor,
        ..Disk::default()
    })
}

/// The virtio device whose disk says that it is in `slot`.
fn device_of(slot: u32) -> Result<PathBuf> {
    let serial = format!("slot-{slot}");
    let entries = fs::read_dir(BLOCK_DEVICES).or_fail(|| "list the disks")?;
    for entry in entries {
        let path = entry.or_fail(|| "list the disks")?.path();
        // Other disks have no serial, or fail to say it.
        let found = fs::read_to_string(path.join("serial"));
        if found.is_ok_and(|found| found.trim() == serial) {
            return fs::canonicalize(path.join("device"))
                .or_fail(|| format!("find the device of slot {slot}"));
        }
    }
    Err(missing(format!("this guest has no block slot {slot}")))
}

/// The only entry of a device's directory of block devices.
fn block_device(directory: &Path) -> Option<(String, PathBuf)> {
    let entry = fs::read_dir(directory).ok()?.next()?.ok()?;
    Some((entry.file_name().into_string().ok()?, entry.path()))
}

fn parse_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.trim().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn missing(message: String) -> Failure {
    Failure::new(Code::NotFound, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_parted() {
        assert_eq!(parse_number("254:16\n"), Some((254, 16)));
        assert_eq!(parse_number("254"), None);
        assert_eq!(parse_number("-1:0"), None);
    }

    #[test]
    fn slot_that_is_not_there_is_named() {
        let failure = start(4711).unwrap_err();
        assert!(failure.to_string().contains("4711"), "{failure}");
    }
}
