//! Giving up `CAP_FSETID` for one call, so that the host kernel clears the
//! set-user-id and set-group-id bits as the guest's kernel asked
//! (`FUSE_HANDLE_KILLPRIV_V2`).
//!
//! virtiofsd would do it through libcap-ng, which reads `/proc/self/status` by
//! path: in the jail, that path belongs to the guest.

use std::io;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

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
