//! What goes wrong, in runc's words where engines match them: containerd's shim,
//! Docker, podman and buildah tell errors apart by these texts alone.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use super::record::Status;
use crate::config::ConfigError;
use crate::hooks::HookError;
use crate::sandbox::Chain;
use crate::sandbox::store::StoreError;
use crate::stdio::handover::HandoverError;
use crate::task_client::TaskError;

#[derive(Debug, thiserror::Error)]
pub(super) enum OciError {
    #[error("container with given ID already exists")]
    Exists,
    #[error("invalid container ID format")]
    InvalidId,
    #[error("container does not exist")]
    NotExist,
    #[error("container not running")]
    NotRunning,
    #[error("container not paused")]
    NotPaused,
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped { id: String, status: Status },
    #[error("cannot start a container that has stopped")]
    StartStopped,
    #[error("cannot start an already running container")]
    StartRunning,
    #[error("cannot start a container in the {0} state")]
    StartOther(Status),
    #[error("cannot exec in a stopped container")]
    ExecStopped,
    #[error("cannot exec in a paused container")]
    ExecPaused,
    #[error("unknown signal {0:?}")]
    Signal(String),
    #[error("cannot allocate tty if lazaret-oci will detach without setting console socket")]
    NoConsoleSocket,
    #[error("cannot use console socket if lazaret-oci will not detach or allocate tty")]
    UselessConsoleSocket,
    #[error("--rootless=true is not supported: lazaret-oci runs as root")]
    Rootless,
    #[error("{0} is not supported: {1}")]
    Unsupported(&'static str, &'static str),
    #[error("{0}")]
    Invalid(String),
    #[error("{} is not valid", path.display())]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("cannot {verb} {}", path.display())]
    Io {
        verb: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("option --root argument should not be set to /")]
    RootOfHost,
    #[error("cannot set up the terminal")]
    Terminal(#[source] io::Error),
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    #[error("cannot set up the command")]
    Runtime(#[source] io::Error),
    #[error("the sandbox process has gone before it said what it is")]
    NoSandbox,
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error(transparent)]
    Handover(#[from] HandoverError),
}

/// An error on its way out, with what the verb says before it.
#[derive(Debug)]
pub(super) struct Failure {
    error: Box<OciError>,
    context: String,
    code: u8,
}

impl Failure {
    #[must_use]
    pub(super) fn context(mut self, context: &str) -> Self {
        self.context = format!("{context}: {}", self.context);
        self
    }

    #[must_use]
    pub(super) fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    pub(super) fn code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }

    pub(super) fn error(&self) -> &OciError {
        &self.error
    }

    pub(super) fn message(&self) -> String {
        format!("{}{}", self.context, Chain(&*self.error))
    }

    /// The reader of standard output, such as `head`, has seen enough.
    pub(super) fn is_broken_pipe(&self) -> bool {
        matches!(&*self.error, OciError::Output(err) if err.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl<E: Into<OciError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            error: Box::new(error.into()),
            context: String::new(),
            code: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_stand_before_the_error_in_order() {
        let failure = Failure::from(OciError::NotExist)
            .context("inner")
            .context("outer");
        assert_eq!(failure.message(), "outer: inner: container does not exist");
    }

    #[test]
    fn texts_that_engines_match_are_runcs() {
        let not_stopped = OciError::NotStopped {
            id: "a".to_owned(),
            status: Status::Running,
        };
        for (error, text) in [
            (OciError::Exists, "container with given ID already exists"),
            (OciError::NotExist, "container does not exist"),
            (OciError::NotRunning, "container not running"),
            (
                not_stopped,
                "cannot delete container a that is not stopped: running",
            ),
        ] {
            assert_eq!(error.to_string(), text);
        }
    }
}
