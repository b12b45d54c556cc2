//! The memory of a descriptor chain, as slices that system calls can use.
//!
//! Guest memory may change under our hands at any time, so it is never a Rust
//! reference: bytes are copied out, or go between guest and host socket inside
//! the kernel.
#![expect(unsafe_code, reason = "readv and writev on guest memory")]

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use thiserror::Error;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestMemory as _, GuestMemoryMmap, VolatileSlice};

/// A chain as the devices of this crate take it from a queue.
pub type Chain<'m> = DescriptorChain<&'m GuestMemoryMmap>;

/// Most descriptors of a chain: far more than drivers use, few enough that a
/// table of 65,535 indirect descriptors costs little.
pub const DESCRIPTORS_MAX: usize = 256;

/// A chain that no driver in its right mind makes.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadChain {
    #[error("descriptor outside guest memory")]
    OutsideMemory,
    #[error("chain of more than {DESCRIPTORS_MAX} descriptors")]
    TooLong,
    #[error("chain for frames without room for any")]
    NoRoom,
}

/// The device-readable or the device-writable bytes of a chain.
#[derive(Clone, Debug, Default)]
pub struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> Buffers<'m> {
    /// What the driver wrote for the device.
    pub fn readable(chain: Chain<'m>, memory: &'m GuestMemoryMmap) -> Result<Self, BadChain> {
        Self::of(chain, memory, false)
    }

    /// Where the driver wants the device to write.
    pub fn writable(chain: Chain<'m>, memory: &'m GuestMemoryMmap) -> Result<Self, BadChain> {
        Self::of(chain, memory, true)
    }

    fn of(chain: Chain<'m>, memory: &'m GuestMemoryMmap, writable: bool) -> Result<Self, BadChain> {
        let mut buffers = Self {
            slices: Vec::with_capacity(2),
            len: 0,
        };
        for (at, descriptor) in chain.enumerate() {
            if at == DESCRIPTORS_MAX {
                return Err(BadChain::TooLong);
            }
            if descriptor.is_write_only() == writable {
                buffers.push(&descriptor, memory)?;
            }
        }
        Ok(buffers)
    }

    /// Adds the memory of one descriptor to the end.
    pub fn push(
        &mut self,
        descriptor: &Descriptor,
        memory: &'m GuestMemoryMmap,
    ) -> Result<(), BadChain> {
        // A u32 fits: this VMM is for 64-bit hosts.
        let bytes = descriptor.len() as usize;
        for slice in memory.get_slices(descriptor.addr(), bytes) {
            let slice = slice.map_err(|_| BadChain::OutsideMemory)?;
            self.len += slice.len();
            self.slices.push(slice);
        }
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.slices
    }

    /// Copies to `bytes` from the front; says how much there was.
    pub fn copy_to(&self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            // Fails only for an offset past the slice's end.
            done += slice.read(&mut bytes[done..], 0).unwrap_or(0);
        }
        done
    }

    /// Copies `bytes` to the front; says how much found room.
    pub fn copy_from(&self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            done += slice.write(&bytes[done..], 0).unwrap_or(0);
        }
        done
    }

    /// Takes `bytes`, or what there is, off the front.
    pub fn skip(&mut self, bytes: usize) {
        let mut left = bytes.min(self.len);
        self.len -= left;
        while let Some(first) = self.slices.first_mut() {
            if let Ok(rest) = first.offset(left)
                && !rest.is_empty()
            {
                *first = rest;
                return;
            }
            left -= first.len();
            self.slices.remove(0);
        }
    }

    /// Leaves `bytes` at most.
    pub fn truncate(&mut self, bytes: usize) {
        let mut left = bytes.min(self.len);
        self.len = left;
        self.slices.retain_mut(|slice| {
            let take = left.min(slice.len());
            left -= take;
            match slice.subslice(0, take) {
                Ok(front) if take > 0 => {
                    *slice = front;
                    true
                }
                _ => false,
            }
        });
    }

    /// Moves `other` to the end of this.
    pub fn append(&mut self, mut other: Self) {
        self.len += other.len;
        self.slices.append(&mut other.slices);
    }

    /// Reads from `fd` into the front of the buffers.
    pub fn read_from(&self, fd: impl AsFd) -> Result<usize, Errno> {
        let vectors = self.vectors();
        // SAFETY: each vector is memory of a `VolatileSlice`, mapped for 'm and
        // shared with the guest, to which no Rust reference exists.
        let done = unsafe {
            libc::readv(
                fd.as_fd().as_raw_fd(),
                vectors.as_ptr(),
                vector_count(&vectors),
            )
        };
        usize::try_from(done).map_err(|_| last_error())
    }

    /// Writes the front of the buffers to `fd`.
    pub fn write_to(&self, fd: impl AsFd) -> Result<usize, Errno> {
        let mut vectors = self.vectors();
        let message = libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: vectors.as_mut_ptr(),
            msg_iovlen: vectors.len(),
            msg_control: std::ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        };
        // sendmsg instead of writev: no SIGPIPE for a socket closed by its peer.
        // SAFETY: as for reading; the kernel only reads the vectors' memory, and
        // `vectors` outlives the call.
        let done = unsafe {
            libc::sendmsg(
                fd.as_fd().as_raw_fd(),
                &raw const message,
                libc::MSG_NOSIGNAL,
            )
        };
        usize::try_from(done).map_err(|_| last_error())
    }

    /// Writes `front` and then the buffers to `fd`, which is no socket.
    pub fn write_after(&self, front: &[u8], fd: impl AsFd) -> Result<usize, Errno> {
        let front = libc::iovec {
            iov_base: front.as_ptr().cast_mut().cast(),
            iov_len: front.len(),
        };
        let mut vectors = Vec::with_capacity(1 + self.slices.len());
        vectors.push(front);
        vectors.extend(self.slices.iter().take(VECTORS_MAX - 1).map(vector));
        // SAFETY: as for reading; the kernel only reads `front`, which outlives
        // the call.
        let done = unsafe {
            libc::writev(
                fd.as_fd().as_raw_fd(),
                vectors.as_ptr(),
                vector_count(&vectors),
            )
        };
        usize::try_from(done).map_err(|_| last_error())
    }

    /// The buffers in the kernel's terms. They lie in the memory the chain was
    /// taken from, and are good for as long as that is mapped.
    pub fn vectors(&self) -> Vec<libc::iovec> {
        self.slices.iter().take(VECTORS_MAX).map(vector).collect()
    }
}

fn vector(slice: &VolatileSlice<'_>) -> libc::iovec {
    libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    }
}

/// What one system call takes (`IOV_MAX`).
const VECTORS_MAX: usize = 1024;

fn vector_count(vectors: &[libc::iovec]) -> libc::c_int {
    libc::c_int::try_from(vectors.len()).expect("at most VECTORS_MAX")
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
