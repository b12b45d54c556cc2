//! How a command fails: a message for people and an exit code for scripts.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::ExitCode;

use ttrpc::Code;

use crate::task_client::TaskError;

/// `lazaret` itself failed, as opposed to the container.
pub const EXIT_OWN_ERROR: u8 = 125;
/// The container's command is there but cannot be executed.
pub const EXIT_NOT_EXECUTABLE: u8 = 126;
/// The container's command is not there.
pub const EXIT_NOT_FOUND: u8 = 127;
/// What a signal adds its number to.
pub const EXIT_SIGNAL_BASE: u8 = 128;

/// The exit code that Docker gives for an error of starting a process.
pub fn start_exit_code(error: &TaskError) -> u8 {
    match error.code() {
        Some(Code::NOT_FOUND) => EXIT_NOT_FOUND,
        Some(Code::PERMISSION_DENIED) => EXIT_NOT_EXECUTABLE,
        _ => EXIT_OWN_ERROR,
    }
}

/// An error on its way to standard error, with the exit code it causes.
#[derive(Debug)]
pub struct Failure {
    error: Box<dyn Error + Send + Sync>,
    /// `None` until somebody knows better than "it failed".
    code: Option<u8>,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            error: message.into().into(),
            code: None,
        }
    }

    #[must_use]
    pub fn with_code(mut self, code: u8) -> Self {
        self.code = Some(code);
        self
    }

    pub fn code(&self) -> u8 {
        self.code.unwrap_or(1)
    }

    /// Whether no exit code was chosen for it.
    pub fn is_general(&self) -> bool {
        self.code.is_none()
    }

    /// The error and its causes in one line.
    pub fn message(&self) -> String {
        let mut text = self.error.to_string();
        let mut cause = self.error.source();
        while let Some(error) = cause {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        text
    }

    /// Tells standard error and gives the exit code.
    pub fn report(&self) -> ExitCode {
        if !self.is_broken_pipe() {
            // Nobody is left to tell that standard error is closed.
            let _ = writeln!(io::stderr(), "Error: {}", self.message());
        }
        ExitCode::from(self.code())
    }

    /// The reader of standard output, such as `head`, has seen enough.
    fn is_broken_pipe(&self) -> bool {
        self.error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            error: Box::new(error),
            code: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_their_effects() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot open x")]
        struct Outer(#[source] io::Error);
        let failure = Failure::from(Outer(io::Error::other("disk on fire")));
        assert_eq!(failure.message(), "cannot open x: disk on fire");
        assert_eq!(failure.code(), 1);
        assert_eq!(failure.with_code(EXIT_OWN_ERROR).code(), 125);
    }

    #[test]
    fn errors_of_starting_have_dockers_exit_codes() {
        let error = |code| start_exit_code(&TaskError::Status(String::new(), code));
        assert_eq!(error(Code::NOT_FOUND), 127);
        assert_eq!(error(Code::PERMISSION_DENIED), 126);
        assert_eq!(error(Code::INTERNAL), 125);
    }
}
