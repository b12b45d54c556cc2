//! Attends a process in a container: its streams are ours, our signals are
//! its, until it ends.

use std::io;

use tokio::task::JoinHandle;

use super::signals::{SIGWINCH, Signals};
use super::stdio::{Ends, copy_input, copy_output};
use super::terminal::{self, RawTerminal};
use crate::task_client::{Task, TaskError};

/// A process about to be started, with its streams.
#[derive(Debug)]
pub struct Attended<'a> {
    pub task: &'a Task,
    /// Empty for the container's own process.
    pub exec: &'a str,
    pub terminal: bool,
}

/// How attending a process went wrong.
#[derive(Debug, thiserror::Error)]
pub enum AttendError {
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error("cannot set up the terminal")]
    Terminal(#[source] io::Error),
}

impl Attended<'_> {
    /// Stays with the started process until it has ended and all its output is
    /// copied. Gives its exit status.
    pub async fn attend(&self, ends: Ends, signals: &mut Signals) -> Result<u32, AttendError> {
        let raw = if self.terminal {
            RawTerminal::enter().map_err(AttendError::Terminal)?
        } else {
            None
        };
        self.fit_terminal().await;
        let outputs = [
            ends.stdout
                .map(|from| tokio::spawn(copy_output(from, io::stdout()))),
            ends.stderr
                .map(|from| tokio::spawn(copy_output(from, io::stderr()))),
        ];
        let input = ends.stdin.map(|to| {
            let (task, exec) = (self.task.clone(), self.exec.to_owned());
            tokio::spawn(async move {
                // A container that reads no more, or is gone, wants no input.
                let _ = copy_input(to).await;
                let _ = task.close_stdin(&exec).await;
            })
        });
        let status = self.wait(signals).await;
        for output in outputs.into_iter().flatten() {
            finish(output).await;
        }
        if let Some(input) = input {
            input.abort();
        }
        drop(raw);
        Ok(status?)
    }

    async fn wait(&self, signals: &mut Signals) -> Result<u32, TaskError> {
        let wait = self.task.wait(self.exec);
        tokio::pin!(wait);
        loop {
            tokio::select! {
                status = &mut wait => return status,
                signal = signals.next() => match signal {
                    SIGWINCH => self.fit_terminal().await,
                    // A process that has just ended cannot be signalled; its
                    // status is on the way.
                    signal => drop(self.task.kill(self.exec, signal, false).await),
                },
            }
        }
    }

    /// Gives the process's terminal the size of ours.
    pub async fn fit_terminal(&self) {
        if self.terminal
            && let Some(size) = terminal::size()
        {
            // Without the size it has the process goes on with another.
            let _ = self.task.resize(self.exec, size).await;
        }
    }
}

async fn finish(output: JoinHandle<io::Result<()>>) {
    // What cannot be written here is in the container's log.
    let _ = output.await;
}
