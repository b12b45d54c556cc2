//! The first line the agent says, before any ttrpc: whether both sides are of
//! one version.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Raised with every change of `agent.proto` that an older side would misread.
pub const PROTOCOL_VERSION: u32 = 1;

/// Longest hello line a host accepts, newline included. The line is about 60 bytes.
pub const HELLO_LINE_MAX: usize = 512;

/// The agent's greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    pub agent_version: String,
}

/// Why a greeting was not accepted.
#[derive(Debug, PartialEq, Eq)]
pub enum HelloError {
    Version { agent: u32 },
}

impl fmt::Display for HelloError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { agent } => write!(
                f,
                "agent speaks protocol {agent}, this host speaks {PROTOCOL_VERSION}: \
                 install the initramfs that belongs to this lazaret"
            ),
        }
    }
}

impl std::error::Error for HelloError {}

impl Hello {
    pub fn current() -> Self {
        Self {
            protocol: PROTOCOL_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    pub fn check(&self) -> Result<(), HelloError> {
        if self.protocol == PROTOCOL_VERSION {
            Ok(())
        } else {
            Err(HelloError::Version {
                agent: self.protocol,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_hello_is_accepted() {
        assert_eq!(Hello::current().check(), Ok(()));
    }

    #[test]
    fn other_version_is_refused_by_number() {
        let hello = Hello {
            protocol: PROTOCOL_VERSION + 1,
            ..Hello::current()
        };
        assert_eq!(
            hello.check(),
            Err(HelloError::Version {
                agent: PROTOCOL_VERSION + 1
            })
        );
    }
}
