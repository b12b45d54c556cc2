//! Slots of the machine that have come to life: an empty one shows itself to its driver
//! as no device at all (virtio 1.3, 4.2.2, device id 0), so the kernel passes over it at
//! boot and containers do not see it. Once the host has filled it, it is probed again.

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::failure::{OrFail, Result};

const DEVICES: &str = "/sys/bus/platform/devices";
const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";
const PREFIX: &str = "virtio-mmio.";

/// Has the kernel look again at each slot that had no device.
pub(super) fn probe() -> Result<()> {
    let entries = match fs::read_dir(DEVICES) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.or_fail(|| format!("list {DEVICES}"))?,
    };
    for entry in entries {
        let entry = entry.or_fail(|| format!("list {DEVICES}"))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PREFIX) && !entry.path().join("driver").exists() {
            match fs::write(format!("{DRIVER}/bind"), name.as_bytes()) {
                // Still empty.
                Err(err) if Errno::from_io_error(&err) == Some(Errno::NODEV) => {}
                result => result.or_fail(|| format!("probe {name}"))?,
            }
        }
    }
    Ok(())
}

/// Has a slot's driver let go of it, and so its interface vanish. Says whether the
/// interface is a slot's.
pub(super) fn let_go(interface: &str) -> Result<bool> {
    let device = Path::new("/sys/class/net").join(interface).join("device");
    let Ok(device) = fs::canonicalize(device) else {
        return Ok(false);
    };
    let slot = device.parent().and_then(Path::file_name);
    let Some(slot) = slot.map(|slot| slot.to_string_lossy()) else {
        return Ok(false);
    };
    if !slot.starts_with(PREFIX) {
        return Ok(false);
    }
    fs::write(format!("{DRIVER}/unbind"), slot.as_bytes())
        .or_fail(|| format!("let go of {interface}"))?;
    Ok(true)
}
