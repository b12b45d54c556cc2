//! What a finished command left: exit code and output, with assertions that show all of it.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

/// Bytes of each stream shown when an assertion fails.
const SHOWN: usize = 4000;

/// A finished command.
#[derive(Debug)]
pub struct Outcome {
    pub(crate) command: String,
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) took: Duration,
}

impl Outcome {
    pub fn status_code(&self) -> i32 {
        self.code
    }

    #[track_caller]
    pub fn status(&self, expected: i32) -> &Self {
        assert_eq!(self.code, expected, "exit code of {self}");
        self
    }

    #[track_caller]
    pub fn stdout(&self, expected: &str) -> &Self {
        assert_eq!(self.text(), expected, "stdout of {self}");
        self
    }

    #[track_caller]
    pub fn stdout_contains(&self, expected: &str) -> &Self {
        assert!(
            self.text().contains(expected),
            "no {expected:?} in stdout of {self}"
        );
        self
    }

    #[track_caller]
    pub fn stderr(&self, expected: &str) -> &Self {
        assert_eq!(self.errors(), expected, "stderr of {self}");
        self
    }

    #[track_caller]
    pub fn stderr_contains(&self, expected: &str) -> &Self {
        assert!(
            self.errors().contains(expected),
            "no {expected:?} in stderr of {self}"
        );
        self
    }

    /// Success, with nothing on stderr.
    #[track_caller]
    pub fn success(&self) -> &Self {
        self.status(0).stderr("")
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as it is.
    pub fn stdout_bytes(&self) -> Vec<u8> {
        self.stdout.clone()
    }

    /// Standard error as text.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output's lines.
    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }

    /// Standard output as JSON: one document.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("stdout is no JSON ({error}): {self}"))
    }

    /// Standard output as JSON: one document a line.
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        let parse = |line: &str| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{line:?} is no JSON ({error}): {self}"))
        };
        self.text().lines().map(parse).collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.command)?;
        writeln!(f, "  exit code {} after {:.1?}", self.code, self.took)?;
        writeln!(f, "  stdout: {}", shown(&self.stdout))?;
        writeln!(f, "  stderr: {}", shown(&self.stderr))
    }
}

/// The beginning of a stream's bytes, readable.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]);
    let more = bytes.len().saturating_sub(SHOWN);
    match more {
        0 => format!("{text:?}"),
        _ => format!("{text:?} and {more} bytes more"),
    }
}
