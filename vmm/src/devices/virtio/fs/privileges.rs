//! Capabilities of the threads: kept while a thread makes a file as another
//! user, and `CAP_FSETID` given up for one call, so that the host kernel clears
//! the set-user-id and set-group-id bits as the guest's kernel asked
//! (`FUSE_HANDLE_KILLPRIV_V2`).
//!
//! virtiofsd would do the latter through libcap-ng, which reads
//! `/proc/self/status` by path: in the jail, that path belongs to the guest.

use std::io;

use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, capabilities, capabilities_secure_bits,
    set_capabilities, set_capabilities_secure_bits,
};

/// Makes a change of the effective user id leave this thread's capabilities
/// alone. A file's maker is its owner that way, and whether they may make it has
/// been decided by the guest's kernel, which knows what capabilities they have
/// there: the host's check must not come to another answer. What the thread
/// may do as root it may then do as the owner, and nothing else.
///
/// Needs `CAP_SETPCAP`; holds until the thread ends.
pub(super) fn keep_across_users() -> io::Result<()> {
    let bits = capabilities_secure_bits()? | CapabilitiesSecureBits::NO_SETUID_FIXUP;
    Ok(set_capabilities_secure_bits(bits)?)
}

/// This thread is without `CAP_FSETID` for as long as this lives.
#[derive(Debug)]
pub(super) struct WithoutFsetid {
    had_it: bool,
}

impl WithoutFsetid {
    /// Does nothing unless `asked`.
    pub(super) fn when(asked: bool) -> io::Result<Self> {
        if !asked {
            return Ok(Self { had_it: false });
        }
        let mut sets = capabilities(None)?;
        let had_it = sets.effective.contains(CapabilitySet::FSETID);
        if had_it {
            sets.effective.remove(CapabilitySet::FSETID);
            set_capabilities(None, sets)?;
        }
        Ok(Self { had_it })
    }
}

impl Drop for WithoutFsetid {
    fn drop(&mut self) {
        if !self.had_it {
            return;
        }
        let restored = capabilities(None).and_then(|mut sets| {
            sets.effective.insert(CapabilitySet::FSETID);
            set_capabilities(None, sets)
        });
        if let Err(error) = restored {
            // The bits are then cleared more often than they should be.
            tracing::error!("virtio-fs thread did not get CAP_FSETID back: {error}");
        }
    }
}
