//! Names of sandboxes, containers and exec'd processes, checked once when they
//! come in: they become file names and parts of socket paths.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// `/run/lazaret/sandboxes/<id>/vsock.sock` has to fit into the 107 bytes of a
/// unix socket's address.
const ID_MAX: usize = 72;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum IdError {
    #[error("an id must not be empty")]
    Empty,
    #[error("id {0:?} is longer than {ID_MAX} bytes")]
    TooLong(String),
    #[error(
        "id {0:?} may hold letters, digits, '_', '.' and '-' only, and must begin with one of the first two"
    )]
    Character(String),
}

fn check(id: &str) -> Result<(), IdError> {
    let Some(first) = id.bytes().next() else {
        return Err(IdError::Empty);
    };
    if id.len() > ID_MAX {
        return Err(IdError::TooLong(id.chars().take(ID_MAX).collect()));
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if !first.is_ascii_alphanumeric() || !id.bytes().all(plain) {
        return Err(IdError::Character(id.to_owned()));
    }
    Ok(())
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn new(id: impl Into<String>) -> Result<Self, IdError> {
                let id = id.into();
                check(&id)?;
                Ok(Self(id))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(id: String) -> Result<Self, IdError> {
                Self::new(id)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id_type!(
    /// A sandbox: one microVM and what runs in it.
    SandboxId
);
id_type!(
    /// A container of a sandbox.
    ContainerId
);
id_type!(
    /// A process added to a container by exec.
    ExecId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_engines_are_accepted() {
        for id in ["a", "web-1", "0f3c", &"a".repeat(64), "my_box.2"] {
            assert_eq!(
                SandboxId::new(id).map(|id| id.to_string()),
                Ok(id.to_owned())
            );
        }
    }

    #[test]
    fn ids_that_could_leave_their_directory_are_refused() {
        for id in [
            "",
            ".",
            "..",
            "a/b",
            "-x",
            "a b",
            "a\0",
            "é",
            &"a".repeat(73),
        ] {
            assert!(ContainerId::new(id).is_err(), "{id:?}");
        }
    }
}
