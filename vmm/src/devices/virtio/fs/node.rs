//! Node ids as the guest knows them: the server's inode number and, in the
//! three highest bits, what kind of place the inode is in.
//!
//! The kind follows from the path on which the guest found the inode, and it
//! decides for how long the guest may believe what it was told. It costs no
//! table: a hostile guest that forges it deceives itself.
//!
//! ```text
//!   /                      Shared
//!   /<container>           Container
//!   /<container>/rootfs    Private, with all below it
//!   /<container>/engine-rootfs    Engine, with all below it
//!   anything else          Shared
//! ```

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use rustix::io::Errno;
use virtiofsd::filesystem::ROOT_ID;

/// Nobody but the guest changes what is private: it may remember for good.
const PRIVATE_VALIDITY: Duration = Duration::from_secs(24 * 60 * 60);

/// An engine seldom reaches into a running container's root, but it may
/// (`docker cp`): as long as virtiofsd lets a guest remember by default.
const ENGINE_VALIDITY: Duration = Duration::from_secs(1);

/// The host may change what is shared at any time. The guest rounds this up to
/// its next clock tick: one look at a file is then one request and not three,
/// and what the host changes is seen within a few milliseconds.
const SHARED_VALIDITY: Duration = Duration::from_millis(1);

const KIND_SHIFT: u32 = 61;
const NUMBER_MASK: u64 = (1 << KIND_SHIFT) - 1;

/// Names of a container's root file system below the container's directory:
/// one that is the microVM's alone, and one that an engine keeps its hands on.
const PRIVATE_DIRECTORY: &[u8] = b"rootfs";
const ENGINE_DIRECTORY: &[u8] = b"engine-rootfs";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Shared,
    Container,
    Private,
    Engine,
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
            Kind::Container if name.to_bytes() == ENGINE_DIRECTORY => Kind::Engine,
            Kind::Private => Kind::Private,
            Kind::Engine => Kind::Engine,
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
            3 => Kind::Engine,
            _ => Kind::Unnamed,
        };
        Self {
            kind,
            number: id & NUMBER_MASK,
        }
    }
}

impl Kind {
    /// Whether the guest may keep what it has read when it opens a file anew, and
    /// remember names that are absent. What has changed it notices by the file's
    /// time and size, once its attributes hold no more.
    pub(super) fn is_remembered(self) -> bool {
        matches!(self, Self::Private | Self::Engine)
    }

    /// How long names and attributes hold.
    pub(super) fn validity(self) -> Duration {
        match self {
            Self::Private => PRIVATE_VALIDITY,
            Self::Engine => ENGINE_VALIDITY,
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
        for kind in [
            Kind::Shared,
            Kind::Container,
            Kind::Private,
            Kind::Engine,
            Kind::Unnamed,
        ] {
            let node = Node { kind, number: 77 };
            assert_eq!(Node::from(node.id()), node);
        }
        assert_eq!(Node::from(ROOT_ID).kind, Kind::Shared);
    }

    #[test]
    fn only_a_containers_root_is_remembered() {
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
        assert_eq!(kind(&[c"c1", c"engine-rootfs", c"usr"]), Kind::Engine);
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
