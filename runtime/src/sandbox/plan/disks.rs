//! What of a spec is a disk: file systems mounted from one, and block devices.
//! Both become a block slot of the microVM; other devices are the guest's own or
//! an error.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{PathKind, PlanError};

/// File systems that lie on a block device or in an image file.
const DISK_FILE_SYSTEMS: [&str; 13] = [
    "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660", "ntfs3", "squashfs",
    "udf", "vfat", "xfs",
];

/// Those of them that nobody writes to.
const NEVER_WRITTEN: [&str; 3] = ["erofs", "iso9660", "squashfs"];

/// Character devices that mean in the guest what they mean on the host: memory
/// and randomness, terminals, tun, FUSE, loop control and the kernel's log.
const GUESTS_OWN: [(u64, u64); 13] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (1, 11),
    (5, 0),
    (5, 1),
    (5, 2),
    (10, 183),
    (10, 200),
    (10, 229),
    (10, 237),
];

/// A disk of the host that a container is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    pub source: DiskSource,
    pub read_only: bool,
    uses: Vec<DiskUse>,
}

/// Where on the host it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskSource {
    /// A block device or an image file.
    Path(PathBuf),
    /// A block device by its number.
    Number { major: u64, minor: u64 },
}

/// Where in the spec it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DiskUse {
    Mount(usize),
    Device(usize),
}

/// A disk as the guest knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestDisk {
    pub path: String,
    pub major: u64,
    pub minor: u64,
}

/// Finds the disks, and refuses devices that a microVM cannot have.
pub(super) fn plan(
    spec: &mut Value,
    bundle: &Path,
    kind_of: &impl Fn(&Path) -> io::Result<PathKind>,
) -> Result<Vec<Disk>, PlanError> {
    let mut disks = Vec::new();
    let mounts = spec.get_mut("mounts").and_then(Value::as_array_mut);
    for (at, mount) in mounts.into_iter().flatten().enumerate() {
        if let Some((source, read_only)) = mounted_disk(mount, bundle, kind_of)? {
            add(&mut disks, source, read_only, DiskUse::Mount(at));
        }
    }
    plan_devices(spec, &mut disks)?;
    Ok(disks)
}

/// Puts the guest's names and numbers in place of the host's.
pub fn place(spec: &mut Value, disks: &[Disk], placed: &[GuestDisk]) {
    for (disk, guest) in disks.iter().zip(placed) {
        for place in &disk.uses {
            match *place {
                DiskUse::Mount(at) => spec["mounts"][at]["source"] = guest.path.as_str().into(),
                DiskUse::Device(at) => {
                    let device = &mut spec["linux"]["devices"][at];
                    device["major"] = guest.major.into();
                    device["minor"] = guest.minor.into();
                }
            }
        }
    }
    // All at once: a number of the guest may be another disk's on the host.
    let rules = spec.pointer_mut("/linux/resources/devices");
    for rule in rules.and_then(Value::as_array_mut).into_iter().flatten() {
        let of_rule = disks
            .iter()
            .zip(placed)
            .find(|(disk, _)| disk.is_named_by(rule));
        if let Some((_, guest)) = of_rule {
            rule["major"] = guest.major.into();
            rule["minor"] = guest.minor.into();
        }
    }
}

impl Disk {
    fn is_named_by(&self, rule: &Value) -> bool {
        match self.source {
            DiskSource::Number { major, minor } => names(rule, major, minor),
            DiskSource::Path(_) => false,
        }
    }
}

fn add(disks: &mut Vec<Disk>, source: DiskSource, read_only: bool, place: DiskUse) {
    if let Some(disk) = disks.iter_mut().find(|disk| disk.source == source) {
        disk.read_only &= read_only;
        disk.uses.push(place);
    } else {
        disks.push(Disk {
            source,
            read_only,
            uses: vec![place],
        });
    }
}

/// The disk under a file system that is to be mounted, and whether it is only read.
fn mounted_disk(
    mount: &mut Value,
    bundle: &Path,
    kind_of: &impl Fn(&Path) -> io::Result<PathKind>,
) -> Result<Option<(DiskSource, bool)>, PlanError> {
    let kind = mount["type"].as_str().unwrap_or_default().to_owned();
    if !DISK_FILE_SYSTEMS.contains(&kind.as_str()) {
        return Ok(None);
    }
    let destination = mount["destination"].as_str();
    let destination = destination
        .ok_or(PlanError::Spec("a mount has no destination"))?
        .to_owned();
    let source = mount["source"].as_str();
    let source = source.ok_or(PlanError::Spec("a mount of a disk has no source"))?;
    let source_path = bundle.join(source);
    match kind_of(&source_path) {
        Ok(PathKind::File | PathKind::BlockDevice) => {}
        Ok(kind) => {
            return Err(PlanError::NoDisk {
                destination,
                source_path,
                kind: kind.name(),
            });
        }
        Err(source) => return Err(PlanError::look(destination, source_path, source)),
    }
    let mut read_only = NEVER_WRITTEN.contains(&kind.as_str());
    if let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) {
        read_only |= options.iter().any(|option| option == "ro");
        // A slot takes a file as it is.
        options.retain(|option| option != "loop");
    }
    Ok(Some((DiskSource::Path(source_path), read_only)))
}

fn plan_devices(spec: &mut Value, disks: &mut Vec<Disk>) -> Result<(), PlanError> {
    let rules = spec.pointer("/linux/resources/devices");
    let rules = rules.and_then(Value::as_array).cloned().unwrap_or_default();
    let devices = spec.pointer_mut("/linux/devices");
    let Some(devices) = devices.and_then(Value::as_array_mut) else {
        return Ok(());
    };
    // An engine then lists each node of the host's /dev, which nobody has asked for.
    let everything = rules.iter().any(allows_everything);
    if everything {
        let all = devices.len();
        devices.retain(|device| device["type"] == "p" || is_guests_own(device));
        tracing::info!(
            "all devices are allowed: those of the guest, {} of the host's {all}",
            devices.len()
        );
        return Ok(());
    }
    for (at, device) in devices.iter().enumerate() {
        let kind = device["type"].as_str().unwrap_or_default();
        match (kind, number(device)) {
            ("b", Some((major, minor))) => {
                let mut named = rules
                    .iter()
                    .filter(|rule| rule["allow"] == true && names(rule, major, minor))
                    .peekable();
                let read_only = named.peek().is_some()
                    && named.all(|rule| !rule["access"].as_str().unwrap_or("w").contains('w'));
                let source = DiskSource::Number { major, minor };
                add(disks, source, read_only, DiskUse::Device(at));
            }
            ("c" | "u", Some((major, minor))) if !is_guests_own(device) => {
                return Err(PlanError::HostDevice {
                    path: device["path"].as_str().unwrap_or_default().to_owned(),
                    major,
                    minor,
                });
            }
            // The agent says what is wrong with what is no device at all.
            _ => {}
        }
    }
    Ok(())
}

fn number(device: &Value) -> Option<(u64, u64)> {
    Some((device["major"].as_u64()?, device["minor"].as_u64()?))
}

fn is_guests_own(device: &Value) -> bool {
    matches!(device["type"].as_str(), Some("c" | "u"))
        && number(device).is_some_and(|number| GUESTS_OWN.contains(&number))
}

/// A rule for this block device and no other.
fn names(rule: &Value, major: u64, minor: u64) -> bool {
    rule["type"] == "b" && rule["major"] == major && rule["minor"] == minor
}

fn allows_everything(rule: &Value) -> bool {
    let any = |key: &str| rule[key].as_i64().is_none_or(|number| number < 0);
    let kind = rule["type"].as_str().unwrap_or("a");
    let access = rule["access"].as_str().unwrap_or("rwm");
    rule["allow"] == true
        && kind == "a"
        && any("major")
        && any("minor")
        && ["r", "w", "m"].iter().all(|letter| access.contains(letter))
}
