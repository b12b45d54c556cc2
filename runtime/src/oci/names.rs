//! Names: of containers as runc allows them, and of their sandboxes, which all
//! roots share.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::failure::OciError;
use crate::image::digest::hex;
use crate::sandbox::id::SandboxId;

/// Longest name of a directory.
const ID_MAX: usize = 255;

/// Longest id of a sandbox.
const SANDBOX_ID_MAX: usize = 72;

/// Hexadecimal digits that tell roots apart.
const HASH_LEN: usize = 7;

/// A container's id, which is also the name of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContainerId(String);

impl ContainerId {
    pub(super) fn new(id: &str) -> Result<Self, OciError> {
        if id.is_empty() {
            return Err(OciError::Invalid("container id cannot be empty".to_owned()));
        }
        let plain =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
        if id.len() > ID_MAX || !id.bytes().all(plain) || matches!(id, "." | "..") {
            return Err(OciError::InvalidId);
        }
        Ok(Self(id.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The sandbox of this container. In the default root it has the
    /// container's own name, if it can.
    pub(super) fn sandbox(&self, root: &Path, is_default: bool) -> SandboxId {
        if is_default && let Ok(id) = SandboxId::new(self.as_str()) {
            return id;
        }
        let hash = Sha256::new()
            .chain_update(root.as_os_str().as_encoded_bytes())
            .chain_update([0])
            .chain_update(self.as_str())
            .finalize();
        let hash = &hex(&hash)[..HASH_LEN];
        let kept = self.as_str().trim_start_matches(['_', '+', '-', '.']);
        let kept: String = kept
            .replace('+', "_")
            .chars()
            .take(SANDBOX_ID_MAX - HASH_LEN - 1)
            .collect();
        let name = if kept.is_empty() {
            format!("c-{hash}")
        } else {
            format!("{kept}-{hash}")
        };
        SandboxId::new(name).expect("only what an id may hold was kept")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: &str) -> ContainerId {
        ContainerId::new(id).unwrap()
    }

    #[test]
    fn ids_are_those_of_runc() {
        for good in ["a", "A-b_c+d.e", "_x", "-x", "...", &"0f".repeat(32)] {
            assert!(ContainerId::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "é", "a\0", &"a".repeat(256)] {
            assert!(ContainerId::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn in_the_default_root_a_sandbox_has_its_containers_name() {
        let root = Path::new("/run/lazaret/oci");
        assert_eq!(id("web-1").sandbox(root, true).as_str(), "web-1");
        let odd = id("_+x").sandbox(root, true);
        assert!(odd.as_str().starts_with("x-"), "{odd}");
        assert!(id("+").sandbox(root, true).as_str().starts_with("c-"));
    }

    #[test]
    fn equal_ids_in_two_roots_have_two_sandboxes() {
        let long = id(&"ab".repeat(32));
        let one = long.sandbox(Path::new("/run/one"), false);
        let two = long.sandbox(Path::new("/run/two"), false);
        assert_ne!(one, two);
        assert!(one.as_str().starts_with(long.as_str()));
        assert_eq!(one.as_str().len(), 72);
        let longer = id(&"c".repeat(255));
        assert_eq!(longer.sandbox(Path::new("/r"), false).as_str().len(), 72);
    }
}
