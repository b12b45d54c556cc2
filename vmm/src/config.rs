//! What a microVM is made of: plain data, sent by the sandbox process as the
//! first message on the control socket, and the descriptors that come with it.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Least guest memory: below this the guest kernel and the agent do not fit.
pub const MIN_MEMORY_MIB: u32 = 64;

/// Most guest memory: 1 TiB, far below what KVM's memslots take.
pub const MAX_MEMORY_MIB: u32 = 1 << 20;

/// The MP table and the interrupt controller are laid out for at most this many.
pub const MAX_VCPUS: u8 = 32;

/// Interrupt lines 5 to 23 of the IOAPIC: what virtio-mmio slots can use.
pub const MAX_VIRTIO_SLOTS: usize = 19;

/// Slots that every microVM has: vsock, file system, rng, balloon.
const FIXED_SLOTS: usize = 4;

/// A microVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`].
    pub memory_mib: u32,
    /// Appended to the kernel command line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kernel_args: String,
    pub vsock: VsockConfig,
    pub fs: FsConfig,
    /// Network slots, link down until a tap is connected.
    pub net_slots: u8,
    /// Block slots, empty until a backend is connected.
    pub block_slots: u8,
}

/// The vsock device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// 3 or more; nothing outside the microVM sees it.
    pub guest_cid: u32,
    /// Host ports the guest may connect to; others are reset.
    pub host_ports: Vec<u32>,
}

/// The virtio-fs device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// At most 36 bytes (virtio 1.3, 5.11.4).
    pub tag: String,
    /// Threads that serve requests, 1 to 8.
    pub threads: u8,
    /// Guest-physical window for DAX, a multiple of 2; 0 for none.
    pub dax_window_mib: u32,
    /// As many files as this the guest may remember before the sandbox process is told:
    /// each costs the host memory.
    pub remembered_files: u32,
}

/// The descriptors a [`VmConfig`] comes with, in the order they are sent.
#[derive(Debug)]
pub struct VmFds {
    /// `/dev/kvm`, read-write.
    pub kvm: OwnedFd,
    /// ELF `vmlinux`, read-only.
    pub kernel: OwnedFd,
    /// cpio archive, read-only.
    pub initramfs: OwnedFd,
    /// Takes what the guest writes to its serial console; append-only file or pipe.
    pub console: OwnedFd,
    /// Listening unix socket: each connection asks for a guest port.
    pub vsock_listener: OwnedFd,
    /// Directory that virtio-fs exports; becomes the jail's root.
    pub shared_dir: OwnedFd,
}

/// What is wrong with a [`VmConfig`].
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("{0} vcpus asked for, 1 to {MAX_VCPUS} are possible")]
    Vcpus(u8),
    #[error("{0} MiB of memory asked for, {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} are possible")]
    Memory(u32),
    #[error("vsock cid {0} is reserved, use 3 or more")]
    GuestCid(u32),
    #[error("virtio-fs tag {0:?} must have 1 to 36 bytes")]
    FsTag(String),
    #[error("{0} virtio-fs threads asked for, 1 to 8 are possible")]
    FsThreads(u8),
    #[error("dax window of {0} MiB is not a multiple of 2")]
    DaxWindow(u32),
    #[error("{0} device slots asked for, {MAX_VIRTIO_SLOTS} are possible")]
    Slots(usize),
    #[error("{got} descriptors came with the configuration, {want} are needed")]
    FdCount { got: usize, want: usize },
}

impl VmConfig {
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(ConfigError::Vcpus(self.vcpus));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(ConfigError::Memory(self.memory_mib));
        }
        if self.vsock.guest_cid < 3 || self.vsock.guest_cid == u32::MAX {
            return Err(ConfigError::GuestCid(self.vsock.guest_cid));
        }
        self.fs.validate()?;
        let slots = FIXED_SLOTS + usize::from(self.net_slots) + usize::from(self.block_slots);
        if slots > MAX_VIRTIO_SLOTS {
            return Err(ConfigError::Slots(slots));
        }
        Ok(())
    }
}

impl FsConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=36).contains(&self.tag.len()) {
            return Err(ConfigError::FsTag(self.tag.clone()));
        }
        if !(1..=8).contains(&self.threads) {
            return Err(ConfigError::FsThreads(self.threads));
        }
        if !self.dax_window_mib.is_multiple_of(2) {
            return Err(ConfigError::DaxWindow(self.dax_window_mib));
        }
        Ok(())
    }
}

impl TryFrom<Vec<OwnedFd>> for VmFds {
    type Error = ConfigError;

    fn try_from(fds: Vec<OwnedFd>) -> Result<Self, ConfigError> {
        let got = fds.len();
        let [kvm, kernel, initramfs, console, vsock_listener, shared_dir] =
            <[OwnedFd; 6]>::try_from(fds).map_err(|_| ConfigError::FdCount { got, want: 6 })?;
        Ok(Self {
            kvm,
            kernel,
            initramfs,
            console,
            vsock_listener,
            shared_dir,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn smallest() -> VmConfig {
        VmConfig {
            vcpus: 1,
            memory_mib: MIN_MEMORY_MIB,
            kernel_args: String::new(),
            vsock: VsockConfig {
                guest_cid: 3,
                host_ports: vec![],
            },
            fs: FsConfig {
                tag: "shared".into(),
                threads: 1,
                dax_window_mib: 0,
                remembered_files: 1 << 14,
            },
            net_slots: 0,
            block_slots: 0,
        }
    }

    #[test]
    fn smallest_machine_is_valid() {
        assert_eq!(smallest().validate(), Ok(()));
    }

    #[test]
    fn each_bound_is_named_when_crossed() {
        type Change = fn(&mut VmConfig);
        let cases: [(Change, ConfigError); 8] = [
            (|c| c.vcpus = 0, ConfigError::Vcpus(0)),
            (|c| c.vcpus = 33, ConfigError::Vcpus(33)),
            (|c| c.memory_mib = 63, ConfigError::Memory(63)),
            (|c| c.vsock.guest_cid = 2, ConfigError::GuestCid(2)),
            (|c| c.fs.tag.clear(), ConfigError::FsTag(String::new())),
            (|c| c.fs.threads = 0, ConfigError::FsThreads(0)),
            (|c| c.fs.dax_window_mib = 3, ConfigError::DaxWindow(3)),
            (|c| c.net_slots = 16, ConfigError::Slots(20)),
        ];
        for (change, error) in cases {
            let mut config = smallest();
            change(&mut config);
            assert_eq!(config.validate(), Err(error));
        }
    }
}
