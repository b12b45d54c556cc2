//! Disks of the host in block slots of the microVM: opened here, served by the
//! VMM, found by the agent.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, flock, fstat, major, minor, open};
use rustix::io::Errno;
use serde_json::Value;
use thiserror::Error;
use tokio::time::timeout;

use super::id::ContainerId;
use super::plan::{Disk, DiskSource, place};
use crate::agent::{AgentClient, AgentError};
use crate::vm::{BackendError, VmHandle};

/// Block slots of a microVM for an engine's container.
pub(super) const SLOTS: u8 = 4;

/// A VMM that is told to connect a disk answers at once.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Before a disk is disconnected its last requests are done, which a slow one delays.
const DISCONNECT_DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug, Error)]
pub enum DiskError {
    #[error("the container asks for one disk more than the {0} that a microVM can have")]
    NoSlot(u8),
    #[error("no block device {major}:{minor} is known on the host")]
    Unknown {
        major: u64,
        minor: u64,
        #[source]
        source: io::Error,
    },
    #[error("{} is not block device {major}:{minor}", path.display())]
    Another {
        path: PathBuf,
        major: u64,
        minor: u64,
    },
    #[error("cannot open {}", path.display())]
    Open { path: PathBuf, source: Errno },
    #[error(
        "{} is in use on the host, mounted or given to another microVM; a disk that is written \
         to has one user",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error("disk {}", path.display())]
    Connect { path: PathBuf, source: BackendError },
    #[error(
        "disk {} cannot be connected: the virtual machine monitor does not answer",
        path.display()
    )]
    Silent { path: PathBuf },
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Which slots are whose.
#[derive(Debug, Default)]
pub(super) struct DiskSlots(Mutex<BTreeMap<u8, ContainerId>>);

impl DiskSlots {
    /// Gives a container its disks: in `spec` the guest's names stand for the
    /// host's then.
    pub(super) async fn give(
        &self,
        container: &ContainerId,
        disks: &[Disk],
        spec: &mut Value,
        vm: &VmHandle,
        slots: u8,
        agent: &AgentClient,
    ) -> Result<(), DiskError> {
        if disks.is_empty() {
            return Ok(());
        }
        let mut taken = Vec::with_capacity(disks.len());
        for disk in disks {
            let (path, file) = open_disk(disk)?;
            let slot = self.take(container, slots)?;
            let connected = vm.connect_block(slot, file, disk.read_only);
            match timeout(CONNECT_DEADLINE, connected).await {
                Ok(Ok(())) => {}
                Ok(Err(source)) => return Err(DiskError::Connect { path, source }),
                Err(_) => return Err(DiskError::Silent { path }),
            }
            taken.push(u32::from(slot));
        }
        let placed = agent.start_disks(taken).await?;
        place(spec, disks, &placed);
        Ok(())
    }

    /// Takes a container's disks back, which is gone or was never made.
    pub(super) async fn take_back(&self, container: &ContainerId, vm: &VmHandle) {
        let slots: Vec<u8> = {
            let used = self.used();
            let of_container = used.iter().filter(|(_, user)| *user == container);
            of_container.map(|(slot, _)| *slot).collect()
        };
        for slot in slots {
            match timeout(DISCONNECT_DEADLINE, vm.disconnect_block(slot)).await {
                Ok(Ok(()) | Err(BackendError::Ended(_))) => drop(self.used().remove(&slot)),
                Ok(Err(err @ BackendError::Refused(_))) => {
                    tracing::warn!("block slot {slot} is lost: {err}");
                }
                Err(_) => {
                    tracing::warn!(
                        "block slot {slot} is lost, and its disk in use until the microVM ends: \
                         the virtual machine monitor does not answer"
                    );
                }
            }
        }
    }

    fn take(&self, container: &ContainerId, slots: u8) -> Result<u8, DiskError> {
        let mut used = self.used();
        let free = (0..slots).find(|slot| !used.contains_key(slot));
        let slot = free.ok_or(DiskError::NoSlot(slots))?;
        used.insert(slot, container.clone());
        Ok(slot)
    }

    fn used(&self) -> MutexGuard<'_, BTreeMap<u8, ContainerId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open_disk(disk: &Disk) -> Result<(PathBuf, OwnedFd), DiskError> {
    let path = match &disk.source {
        DiskSource::Path(path) => path.clone(),
        DiskSource::Number { major, minor } => device_path(*major, *minor)?,
    };
    let file = open_exclusively(&path, disk.read_only)?;
    if let DiskSource::Number { major, minor } = disk.source
        && !is_device(&file, major, minor)
    {
        return Err(DiskError::Another { path, major, minor });
    }
    Ok((path, file))
}

/// Opened for writing it is held against the host's own use and against other
/// microVMs, for as long as the VMM has it.
fn open_exclusively(path: &Path, read_only: bool) -> Result<OwnedFd, DiskError> {
    let failed = |source| match source {
        Errno::BUSY | Errno::WOULDBLOCK => DiskError::InUse { path: path.into() },
        source => DiskError::Open {
            path: path.into(),
            source,
        },
    };
    let access = if read_only {
        OFlags::RDONLY
    } else {
        // Of a block device this is a claim; of a file without O_CREAT nothing.
        OFlags::RDWR | OFlags::EXCL
    };
    let file = open(path, access | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let lock = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    flock(&file, lock).map_err(failed)?;
    Ok(file)
}

/// The kernel's own name for a device is that of its node.
fn device_path(major: u64, minor: u64) -> Result<PathBuf, DiskError> {
    let unknown = |source| DiskError::Unknown {
        major,
        minor,
        source,
    };
    let event = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
    let event = event.map_err(unknown)?;
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| unknown(io::ErrorKind::NotFound.into()))?;
    Ok(Path::new("/dev").join(name))
}

fn is_device(file: &OwnedFd, wanted_major: u64, wanted_minor: u64) -> bool {
    fstat(file).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice
            && u64::from(major(stat.st_rdev)) == wanted_major
            && u64::from(minor(stat.st_rdev)) == wanted_minor
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_that_is_written_to_has_one_user() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let readers = [0, 1].map(|_| open_exclusively(image.path(), true).unwrap());
        let err = open_exclusively(image.path(), false).unwrap_err();
        assert!(matches!(err, DiskError::InUse { .. }), "{err}");
        drop(readers);
        let writer = open_exclusively(image.path(), false).unwrap();
        for read_only in [true, false] {
            let err = open_exclusively(image.path(), read_only).unwrap_err();
            assert!(err.to_string().contains("in use on the host"), "{err}");
        }
        drop(writer);
        open_exclusively(image.path(), false).unwrap();
    }

    #[test]
    fn device_that_is_not_there_is_named() {
        let err = device_path(4095, 77).unwrap_err().to_string();
        assert!(err.contains("4095:77"), "{err}");
    }

    #[test]
    fn slots_are_handed_out_once() {
        let slots = DiskSlots::default();
        let container = ContainerId::new("c").unwrap();
        let taken: Vec<_> = (0..3).map(|_| slots.take(&container, 2)).collect();
        assert!(matches!(
            taken[..],
            [Ok(0), Ok(1), Err(DiskError::NoSlot(2))]
        ));
    }
}
