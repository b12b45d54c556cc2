//! A command that runs while the test goes on: its output arrives line by line, and signals can be
//! sent to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::lazaret::Lazaret;
use crate::outcome::Outcome;

/// How long a line may take to arrive.
const LINE_DEADLINE: Duration = Duration::from_secs(60);

/// A running command.
#[derive(Debug)]
pub struct Background<'a> {
    lazaret: &'a Lazaret,
    shown: String,
    pid_file: String,
    child: Option<Child>,
    stdin: Option<ChildStdin>,
    lines: Receiver<Vec<u8>>,
    read: Vec<u8>,
    errors: Option<JoinHandle<Vec<u8>>>,
    started: Instant,
}

impl<'a> Background<'a> {
    pub(crate) fn spawn(
        lazaret: &'a Lazaret,
        mut command: Command,
        shown: String,
        pid_file: String,
    ) -> Self {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the command can be spawned");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let mut stderr = child.stderr.take().expect("stderr is a pipe");
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut stdout = BufReader::new(stdout);
            let mut line = Vec::new();
            while stdout
                .read_until(b'\n', &mut line)
                .is_ok_and(|read| read > 0)
            {
                if sender.send(std::mem::take(&mut line)).is_err() {
                    break;
                }
            }
        });
        let errors = thread::spawn(move || {
            let mut errors = Vec::new();
            // What was read before a failure is still worth showing.
            stderr.read_to_end(&mut errors).ok();
            errors
        });
        Self {
            lazaret,
            shown,
            pid_file,
            stdin: child.stdin.take(),
            child: Some(child),
            lines,
            read: Vec::new(),
            errors: Some(errors),
            started: Instant::now(),
        }
    }

    /// The next line of standard output, without its end.
    #[track_caller]
    pub fn line(&mut self) -> String {
        match self.lines.recv_timeout(LINE_DEADLINE) {
            Ok(line) => {
                self.read.extend_from_slice(&line);
                String::from_utf8_lossy(&line)
                    .trim_end_matches('\n')
                    .to_owned()
            }
            Err(RecvTimeoutError::Timeout) => panic!(
                "no line within {LINE_DEADLINE:?} from: {}, which has written {:?}",
                self.shown,
                String::from_utf8_lossy(&self.read)
            ),
            Err(RecvTimeoutError::Disconnected) => panic!("no more lines: {}", self.finish()),
        }
    }

    /// Writes to its standard input.
    pub fn write(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        stdin.write_all(text.as_bytes()).expect("the command reads");
    }

    /// Ends its standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal to the command itself, by name: `INT`.
    #[track_caller]
    pub fn signal(&self, signal: &str) {
        let file = &self.pid_file;
        self.lazaret.sh(&format!(
            "until [ -s {file} ]; do sleep 0.05; done; kill -{signal} $(cat {file})"
        ));
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Outcome {
        self.finish()
    }

    fn finish(&mut self) -> Outcome {
        self.stdin = None;
        while let Ok(line) = self.lines.recv() {
            self.read.extend_from_slice(&line);
        }
        let status = self.child.take().map(|mut child| child.wait());
        let errors = self.errors.take().map(JoinHandle::join);
        Outcome {
            command: self.shown.clone(),
            code: status
                .and_then(Result::ok)
                .and_then(|status| status.code())
                .unwrap_or(-1),
            stdout: std::mem::take(&mut self.read),
            stderr: errors.and_then(Result::ok).unwrap_or_default(),
            took: self.started.elapsed(),
        }
    }
}

impl Drop for Background<'_> {
    /// A test that failed leaves it running: its end is not the connection's end.
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let kill = format!("kill -KILL $(cat {})", self.pid_file);
            self.lazaret.sh_cmd(&kill).output();
            child.kill().and_then(|()| child.wait()).ok();
        }
    }
}
