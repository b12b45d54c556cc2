//! Node ids as the guest knows them: the server's inode number and, in the two
//! highest bits, what kind of place the inode is in.
//!
//! The kind follows from the path on which the guest found the inode, and it
//! decides for how long the guest may believe what it was told. It costs no
//! table: a hostile guest that forges it deceives itself.
//!
//! ```text
//!   /                      Shared
//!   /<container>           Container
//!   /<container>/rootfs    Private, with all below it
//!   anything else          Shared
//! ```

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use rustix::io::Errno;
use virtiofsd::filesystem::ROOT_ID;

/// Nobody but the guest changes what is private: it may remember for good.
const PRIVATE_VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);

/// The host may change what is shared at any time. The guest rounds this up to
/// its next clock tick: one look at a file is then one request and not three,
/// and what the host changes is seen within a few milliseconds.
const SHARED_VALIDITY: Duration = Duration::from_millis(1);

const KIND_SHIFT: u32 = 62;
const NUMBER_MASK: u64 = (1 << KIND_SHIFT) - 1;

/// Name of a container's root file system below the container's directory.
const PRIVATE_DIRECTORY: &[u8] = b"rootfs";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Shared,
    Container,
    Private,
    /// Not of the server: a file without a name, see `tmpfile`.
    Unnamed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) number: u64,
}

impl Node {
    pub(super) fn id(self) -> u64 {
        (self.kind as u64) << KIND_SHIFT | self.number & NUMBER_MASK
    }

    /// The kind of the node found as `name` in this directory.
    pub(super) fn kind_of_child(self, name: &CStr) -> Kind {
        match self.kind {
            Kind::Shared if self.number == ROOT_ID => Kind::Container,
            Kind::Container if name.to_bytes() == PRIVATE_DIRECTORY => Kind::Private,
            Kind::Private => Kind::Private,
            Kind::Shared | Kind::Container | Kind::Unnamed => Kind::Shared,
        }
    }
}

impl From<u64> for Node {
    fn from(id: u64) -> Self {
        let kind = match id >> KIND_SHIFT {
            0 => Kind::Shared,
            1 => Kind::Container,
            2 => Kind::Private,
            _ => Kind::Unnamed,
        };
        Self {
            kind,
            number: id & NUMBER_MASK,
        }
    }
}

impl Kind {
    /// How long names and attributes hold.
    pub(super) fn validity(self) -> Duration {
        match self {
            Self::Private => PRIVATE_VALIDITY,
            Self::Shared | Self::Container | Self::Unnamed => SHARED_VALIDITY,
        }
    }
}

/// A name is one component of a path: with it, nothing but a directory's own
/// entries can be reached.
pub(super) fn check_name(name: &CStr) -> io::Result<()> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(Errno::INVAL.into()),
        bytes if bytes.contains(&b'/') => Err(Errno::INVAL.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_keep_kind_and_number() {
        for kind in [Kind::Shared, Kind::Container, Kind::Private, Kind::Unnamed] {
            let node = Node { kind, number: 77 };
            assert_eq!(Node::from(node.id()), node);
        }
        assert_eq!(Node::from(ROOT_ID).kind, Kind::Shared);
    }

    #[test]
    fn only_a_containers_root_is_private() {
        let kind = |path: &[&CStr]| {
            path.iter()
                .enumerate()
                .fold(Node::from(ROOT_ID), |node, (depth, name)| Node {
                    kind: node.kind_of_child(name),
                    number: depth as u64 + 2,
                })
                .kind
        };
        assert_eq!(kind(&[c"c1"]), Kind::Container);
        assert_eq!(kind(&[c"c1", c"rootfs"]), Kind::Private);
        assert_eq!(kind(&[c"c1", c"rootfs", c"usr", c"bin"]), Kind::Private);
        assert_eq!(kind(&[c"c1", c"mounts", c"0", c"rootfs"]), Kind::Shared);
        assert_eq!(kind(&[c"rootfs"]), Kind::Container);
    }

    #[test]
    fn names_with_a_path_in_them_are_refused() {
        for bad in [c"", c".", c"..", c"a/b", c"/", c"../x", c"x/.."] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in [c"a", c"...", c"..a", c" "] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }
}
