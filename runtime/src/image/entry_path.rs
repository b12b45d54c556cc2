//! Names inside archives: relative, without `..`, or refused.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Linux refuses longer paths in every call that would use one.
const MAX_PATH_BYTES: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the name is absolute")]
    Absolute,
    #[error("the name contains `..`")]
    Parent,
    #[error("the name contains a zero byte")]
    Zero,
    #[error("the name is longer than {MAX_PATH_BYTES} bytes")]
    Length,
    #[error("the name is empty")]
    Empty,
}

/// The components of a name that stays below its root. None for the root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EntryPath(Vec<Vec<u8>>);

impl EntryPath {
    /// A member's own name. `/` alone names the root, as some tools write it.
    pub fn of_member(name: &[u8]) -> Result<Self, PathError> {
        match name {
            b"" => Err(PathError::Empty),
            b"/" => Ok(Self(Vec::new())),
            name if name.starts_with(b"/") => Err(PathError::Absolute),
            name => Self::split(name),
        }
    }

    /// The target of a hard link, a member's name that some tools write as an
    /// absolute path of the container.
    pub fn of_link_target(name: &[u8]) -> Result<Self, PathError> {
        if name.is_empty() {
            Err(PathError::Empty)
        } else {
            Self::split(name)
        }
    }

    fn split(name: &[u8]) -> Result<Self, PathError> {
        if name.len() > MAX_PATH_BYTES {
            return Err(PathError::Length);
        }
        if name.contains(&0) {
            return Err(PathError::Zero);
        }
        let mut components = Vec::new();
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(PathError::Parent),
                component => components.push(component.to_vec()),
            }
        }
        Ok(Self(components))
    }

    pub fn components(&self) -> &[Vec<u8>] {
        &self.0
    }

    /// The parent's components and the last one; `None` for the root.
    pub fn split_last(&self) -> Option<(&[Vec<u8>], &[u8])> {
        self.0
            .split_last()
            .map(|(last, parent)| (parent, last.as_slice()))
    }

    pub fn display(&self) -> String {
        String::from_utf8_lossy(&self.0.join(&b'/')).into_owned()
    }
}

/// `components` as a path relative to the root.
pub fn relative(components: &[Vec<u8>]) -> CString {
    let joined = if components.is_empty() {
        b".".to_vec()
    } else {
        components.join(&b'/')
    };
    CString::new(joined).expect("components are free of zero bytes")
}

/// `component` as a path.
pub fn as_path(component: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(component))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_and_slashes_are_folded() {
        let path = EntryPath::of_member(b"./a//b/./c/").unwrap();
        assert_eq!(path.display(), "a/b/c");
        assert_eq!(EntryPath::of_member(b"a/b/c"), Ok(path));
        for root in [&b"./"[..], b".", b"/"] {
            assert_eq!(EntryPath::of_member(root).unwrap().components().len(), 0);
        }
    }

    #[test]
    fn names_that_could_leave_the_root_are_refused() {
        for (name, error) in [
            (&b"/etc/passwd"[..], PathError::Absolute),
            (b"//x", PathError::Absolute),
            (b"..", PathError::Parent),
            (b"a/../../b", PathError::Parent),
            (b"a/..", PathError::Parent),
            (b"a\0b", PathError::Zero),
            (b"", PathError::Empty),
        ] {
            assert_eq!(EntryPath::of_member(name), Err(error));
        }
        assert_eq!(EntryPath::of_member(&[b'a'; 4097]), Err(PathError::Length));
    }

    #[test]
    fn hard_link_targets_may_be_absolute_in_the_container() {
        assert_eq!(
            EntryPath::of_link_target(b"/bin/sh").unwrap().display(),
            "bin/sh"
        );
        assert_eq!(
            EntryPath::of_link_target(b"/../bin/sh"),
            Err(PathError::Parent)
        );
    }
}
