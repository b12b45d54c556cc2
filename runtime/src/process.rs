//! One process of a container as the sandbox process keeps it.
//!
//! ```text
//! Creating ──▶ Created ──▶ Starting ──▶ Running ──▶ Stopped
//!     └───────────┴───────────┴───────────────────────▲
//! ```

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use thiserror::Error;
use tokio::sync::watch;

use crate::sandbox::state::DIED_STATUS;
use crate::stdio::{StdioPaths, Streams};

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// 0 to 255, 128 + n for signal n.
    pub status: u32,
    pub at: SystemTime,
    /// Where it did not end by itself.
    pub reason: Option<String>,
    pub oom_killed: bool,
}

impl Exit {
    /// The end of a process whose microVM has ended.
    pub fn died(reason: String) -> Self {
        Self {
            status: DIED_STATUS,
            at: SystemTime::now(),
            reason: Some(reason),
            oom_killed: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Not known to the agent yet.
    Creating,
    Created,
    /// One request has taken its start on itself.
    Starting,
    Running,
    Stopped(Exit),
}

impl Stage {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "being started",
            Self::Running => "running",
            Self::Stopped(_) => "stopped",
        }
    }
}

/// A request that does not fit the process's stage.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("process is {is}, not {wanted}")]
pub struct WrongStage {
    pub is: &'static str,
    pub wanted: &'static str,
}

#[derive(Debug)]
pub struct Process {
    pub stdio: StdioPaths,
    stage: watch::Sender<Stage>,
    started_at: Mutex<Option<SystemTime>>,
    streams: Mutex<Option<Streams>>,
    killed: watch::Sender<bool>,
}

impl Process {
    pub fn new(stdio: StdioPaths) -> Self {
        Self {
            stdio,
            stage: watch::Sender::new(Stage::Creating),
            started_at: Mutex::new(None),
            streams: Mutex::new(None),
            killed: watch::Sender::new(false),
        }
    }

    /// Somebody wants its end at once.
    pub fn kill(&self) {
        self.killed.send_replace(true);
    }

    /// Tells whether, and when, somebody does.
    pub fn killed(&self) -> watch::Receiver<bool> {
        self.killed.subscribe()
    }

    pub fn stage(&self) -> Stage {
        self.stage.borrow().clone()
    }

    /// The agent has made the process.
    pub fn created(&self, streams: Streams) {
        self.attach(streams);
        self.advance(&Stage::Creating, Stage::Created);
    }

    fn attach(&self, streams: Streams) {
        *self.streams.lock().unwrap_or_else(PoisonError::into_inner) = Some(streams);
    }

    /// Looks at its streams, while they are copied.
    pub fn with_streams(&self, look: impl FnOnce(&mut Streams)) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(streams) = &mut *streams {
            look(streams);
        }
    }

    pub fn take_streams(&self) -> Option<Streams> {
        self.streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Claims the start of a process that is in stage `from`: of several requests
    /// one gets it.
    pub fn claim_start(&self, from: &Stage) -> Result<(), WrongStage> {
        if self.advance(from, Stage::Starting) {
            return Ok(());
        }
        Err(WrongStage {
            is: self.stage().name(),
            wanted: "waiting for its start",
        })
    }

    /// Gives the start back: there was none. Returns whether the process still waits
    /// for one; it may have ended.
    pub fn unclaim_start(&self) -> bool {
        self.note_start(None);
        self.advance(&Stage::Starting, Stage::Created)
    }

    /// To be noted before the agent is asked: the process may have ended before
    /// its answer is here.
    pub fn starting(&self) {
        self.note_start(Some(SystemTime::now()));
    }

    fn note_start(&self, at: Option<SystemTime>) {
        *self
            .started_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = at;
    }

    pub fn started_at(&self) -> Option<SystemTime> {
        *self
            .started_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub fn started(&self) {
        self.advance(&Stage::Starting, Stage::Running);
    }

    /// A process that has ended in the meantime stays so.
    fn advance(&self, from: &Stage, to: Stage) -> bool {
        self.stage.send_if_modified(|stage| {
            let fits = stage == from;
            if fits {
                *stage = to;
            }
            fits
        })
    }

    /// The first end counts. Returns whether this was it.
    pub fn stopped(&self, exit: Exit) -> bool {
        self.stage.send_if_modified(|stage| {
            let was_alive = !matches!(stage, Stage::Stopped(_));
            if was_alive {
                *stage = Stage::Stopped(exit);
            }
            was_alive
        })
    }

    /// Answers when the process has ended and its output is delivered.
    pub async fn wait(&self) -> Exit {
        let mut stage = self.stage.subscribe();
        loop {
            if let Stage::Stopped(exit) = &*stage.borrow_and_update() {
                return exit.clone();
            }
            if stage.changed().await.is_err() {
                return Exit::died("its process is no longer known".to_owned());
            }
        }
    }

    pub fn exit(&self) -> Option<Exit> {
        match &*self.stage.borrow() {
            Stage::Stopped(exit) => Some(exit.clone()),
            _ => None,
        }
    }

    pub fn must_be_alive(&self) -> Result<(), WrongStage> {
        match &*self.stage.borrow() {
            Stage::Created | Stage::Starting | Stage::Running => Ok(()),
            other => Err(WrongStage {
                is: other.name(),
                wanted: "created or running",
            }),
        }
    }

    pub fn must_be_stopped(&self) -> Result<Exit, WrongStage> {
        match &*self.stage.borrow() {
            Stage::Stopped(exit) => Ok(exit.clone()),
            other => Err(WrongStage {
                is: other.name(),
                wanted: "stopped",
            }),
        }
    }

    /// Ends stdin once what was written before has been read.
    pub fn close_stdin(&self) {
        self.with_streams(|streams| streams.close_stdin());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(status: u32) -> Exit {
        Exit {
            status,
            at: SystemTime::UNIX_EPOCH,
            reason: None,
            oom_killed: false,
        }
    }

    #[tokio::test]
    async fn the_first_end_is_the_one_that_counts() {
        let process = Process::new(StdioPaths::default());
        assert!(process.stopped(exit(7)));
        assert!(!process.stopped(exit(137)));
        process.started();
        assert_eq!(process.wait().await, exit(7));
    }

    #[test]
    fn one_request_gets_the_start() {
        let process = Process::new(StdioPaths::default());
        process.claim_start(&Stage::Creating).unwrap();
        let err = process.claim_start(&Stage::Creating).unwrap_err();
        assert_eq!(err.is, "being started");
        process.starting();
        assert!(process.unclaim_start());
        assert_eq!(process.started_at(), None);
        process.claim_start(&Stage::Created).unwrap();
        process.started();
        assert_eq!(process.stage(), Stage::Running);
        process.stopped(exit(0));
        assert!(!process.unclaim_start());
    }

    #[test]
    fn a_stage_out_of_order_is_named() {
        let process = Process::new(StdioPaths::default());
        let err = process.claim_start(&Stage::Created).unwrap_err();
        assert_eq!(
            err.to_string(),
            "process is being created, not waiting for its start"
        );
        assert!(process.must_be_stopped().is_err());
        process.stopped(exit(0));
        assert!(process.must_be_alive().is_err());
    }
}
