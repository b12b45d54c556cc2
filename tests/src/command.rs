//! A command to be run on the machine, under a deadline: to its end, in the background, or in a
//! terminal.

use std::io::{Read, Write};
use std::process::Stdio;
use std::thread;
use std::time::Instant;

use crate::background::Background;
use crate::lazaret::Lazaret;
use crate::machine::{Machine, Streams};
use crate::outcome::Outcome;
use crate::terminal::Terminal;

/// Seconds that a command may take unless told otherwise: plenty in an emulated lab that shares a
/// busy machine.
const DEADLINE: u32 = 240;

/// Exit codes of timeout(1) for a command that was ended, or had to be killed.
const TIMED_OUT: [i32; 2] = [124, 137];

/// A command that has not been started.
#[derive(Debug)]
pub struct Cmd<'a> {
    lazaret: &'a Lazaret,
    machine: &'a Machine,
    argv: Vec<String>,
    stdin: Option<Vec<u8>>,
    deadline: u32,
}

impl<'a> Cmd<'a> {
    pub(crate) fn new(lazaret: &'a Lazaret, argv: Vec<String>) -> Self {
        Self {
            lazaret,
            machine: lazaret.machine(),
            argv,
            stdin: None,
            deadline: DEADLINE,
        }
    }

    /// Runs it on this machine instead of the tests' own.
    pub(crate) fn on(mut self, machine: &'a Machine) -> Self {
        self.machine = machine;
        self
    }

    /// Feeds these bytes, then the end of file.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Allows this many seconds.
    #[must_use]
    pub fn deadline(mut self, seconds: u32) -> Self {
        self.deadline = seconds;
        self
    }

    /// Runs the command to its end.
    #[track_caller]
    pub fn output(self) -> Outcome {
        let shown = self.argv.join(" ");
        let streams = match self.stdin {
            Some(_) => Streams::Stdin,
            None => Streams::NoStdin,
        };
        let argv = self.under_deadline(None);
        let mut command = self.machine.command(&argv, streams);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if self.stdin.is_some() {
            command.stdin(Stdio::piped());
        }
        let started = Instant::now();
        let mut child = command.spawn().expect("the command can be spawned");
        let input = child.stdin.take();
        let mut stderr = child.stderr.take().expect("stderr is a pipe");
        let output = thread::scope(|scope| {
            if let (Some(mut input), Some(bytes)) = (input, &self.stdin) {
                // A command may end without reading all of it.
                scope.spawn(move || input.write_all(bytes).ok());
            }
            let errors = scope.spawn(move || {
                let mut errors = Vec::new();
                stderr.read_to_end(&mut errors).map(|_| errors)
            });
            let output = child
                .wait_with_output()
                .expect("the command can be waited for");
            (
                output,
                errors.join().expect("reads").expect("stderr can be read"),
            )
        });
        let outcome = Outcome {
            command: shown,
            code: output.0.status.code().unwrap_or(-1),
            stdout: output.0.stdout,
            stderr: output.1,
            took: started.elapsed(),
        };
        let late = outcome.took.as_secs() >= u64::from(self.deadline);
        assert!(
            !(late && TIMED_OUT.contains(&outcome.code)),
            "not over after {} s: {outcome}",
            self.deadline
        );
        outcome
    }

    /// Starts the command and leaves it running.
    pub fn spawn(self) -> Background<'a> {
        let pid_file = self.lazaret.scratch_file("pid");
        let argv = self.under_deadline(Some(&pid_file));
        let command = self.machine.command(&argv, Streams::Stdin);
        Background::spawn(self.lazaret, command, self.argv.join(" "), pid_file)
    }

    /// Starts the command in a terminal of this size.
    pub fn terminal(self, rows: u16, columns: u16) -> Terminal {
        let mut argv = self.under_deadline(None);
        // A process group of its own would not be the terminal's.
        argv.insert(1, "--foreground".to_owned());
        let command = self.machine.command(&argv, Streams::Terminal);
        Terminal::spawn(&command, self.argv.join(" "), rows, columns)
    }

    /// Wraps the command so that it ends in time whatever happens to this side, and, where a file
    /// is given, leaves its process id there.
    fn under_deadline(&self, pid_file: Option<&str>) -> Vec<String> {
        let deadline = self.deadline.to_string();
        let mut argv: Vec<String> = ["timeout", "-k", "5", &deadline].map(str::to_owned).into();
        if let Some(file) = pid_file {
            let script = r#"echo $$ >"$0"; exec "$@""#;
            argv.extend(["sh", "-c", script, file].map(str::to_owned));
        }
        argv.extend(self.argv.iter().cloned());
        argv
    }
}
