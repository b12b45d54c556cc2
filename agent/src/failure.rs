//! What can go wrong, in the words that reach the host: a code the host acts on
//! and a text a person reads. One type serves the whole agent because a failure
//! crosses two process borders (container stage to agent, agent to host).

use std::{fmt, io};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What the host does about a failure depends on this alone, never on the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    NotFound,
    AlreadyExists,
    InvalidArgument,
    FailedPrecondition,
    /// The container has ended, or is about to have.
    Ended,
    PermissionDenied,
    Unimplemented,
    Internal,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub code: Code,
    pub message: String,
}

pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// A setting of the OCI spec that this agent cannot honour.
    pub fn unsupported(setting: impl fmt::Display) -> Self {
        Self::new(Code::Unimplemented, format!("{setting} is not supported"))
    }
}

impl From<Failure> for ttrpc::Error {
    fn from(failure: Failure) -> Self {
        let code = match failure.code {
            Code::NotFound => ttrpc::Code::NOT_FOUND,
            Code::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
            Code::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
            Code::FailedPrecondition => ttrpc::Code::FAILED_PRECONDITION,
            Code::Ended => ttrpc::Code::ABORTED,
            Code::PermissionDenied => ttrpc::Code::PERMISSION_DENIED,
            Code::Unimplemented => ttrpc::Code::UNIMPLEMENTED,
            Code::Internal => ttrpc::Code::INTERNAL,
        };
        Self::RpcStatus(ttrpc::get_status(code, failure.message))
    }
}

/// Turns an operating system error into an internal [`Failure`] that says what
/// was being done.
pub trait OrFail<T> {
    fn or_fail<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<io::Error>> OrFail<T> for std::result::Result<T, E> {
    fn or_fail<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| {
            let error: io::Error = error.into();
            Failure::internal(format!("{}: {}", doing(), io_text(&error)))
        })
    }
}

/// The error as C and Go programs print it: `no such file or directory`.
pub fn errno_text(errno: Errno) -> String {
    io_text(&io::Error::from(errno))
}

fn io_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_reads_as_in_runc() {
        assert_eq!(errno_text(Errno::NOENT), "no such file or directory");
        assert_eq!(errno_text(Errno::ACCESS), "permission denied");
        assert_eq!(errno_text(Errno::NOEXEC), "exec format error");
    }

    #[test]
    fn failure_says_what_was_being_done() {
        let failure = Err::<(), _>(Errno::NOTDIR)
            .or_fail(|| "mount /proc")
            .expect_err("an error was given");
        assert_eq!(failure.code, Code::Internal);
        assert_eq!(failure.message, "mount /proc: not a directory");
    }
}
