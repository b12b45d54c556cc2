//! Messages of the command, in the two formats of runc's log: engines read the
//! JSON one (`level`, `msg`, `time`) and show its last error to their users.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use clap::ValueEnum;
use serde_json::json;

use super::failure::{Failure, OciError};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Debug,
    Warning,
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

#[derive(Debug)]
pub(super) struct Log {
    /// Standard error where there is none.
    file: Option<File>,
    format: LogFormat,
    debug: bool,
}

impl Log {
    pub(super) fn open(
        path: Option<&Path>,
        format: LogFormat,
        debug: bool,
    ) -> Result<Self, OciError> {
        let open = |path: &Path| {
            let mut options = File::options();
            options.append(true).create(true).mode(0o644);
            options.open(path).map_err(|source| OciError::Io {
                verb: "open the log",
                path: path.to_owned(),
                source,
            })
        };
        let path = path.filter(|path| !path.as_os_str().is_empty());
        let file = path.map(open).transpose().inspect_err(|err| {
            // There is no log to say it in; nobody is left where this fails too.
            let _ = writeln!(io::stderr(), "lazaret-oci: {}", crate::sandbox::Chain(err));
        })?;
        Ok(Self {
            file,
            format,
            debug,
        })
    }

    pub(super) fn debug(&self, message: &str) {
        if self.debug {
            self.write(Level::Debug, message);
        }
    }

    pub(super) fn warning(&self, message: &str) {
        self.write(Level::Warning, message);
    }

    /// Says why the command fails: in the log for the engine, and on standard
    /// error for whoever reads that.
    pub(super) fn failure(&self, failure: &Failure) {
        if failure.is_broken_pipe() {
            return;
        }
        let message = failure.message();
        self.write(Level::Error, &message);
        if self.file.is_some() {
            let _ = writeln!(io::stderr(), "{message}");
        }
    }

    /// Logs what is wrong with the command line, which has been said on standard error.
    pub(super) fn misuse(&self, text: &str) {
        // What follows tells how it is used.
        let message = text.split("\n\n").next().unwrap_or(text);
        let message = message.strip_prefix("error: ").unwrap_or(message);
        self.write(Level::Error, message);
    }

    /// A message that cannot be written is lost: there is nobody to tell.
    fn write(&self, level: Level, message: &str) {
        let mut line = match (self.format, &self.file) {
            (LogFormat::Json, _) => json_line(level, message, SystemTime::now()),
            (LogFormat::Text, None) if io::stderr().is_terminal() => {
                format!("{}: {message}", level.name())
            }
            (LogFormat::Text, _) => text_line(level, message, SystemTime::now()),
        };
        line.push('\n');
        // In one write each, for others may write as well.
        let _ = match &self.file {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }
}

fn time(now: SystemTime) -> String {
    humantime::format_rfc3339_seconds(now).to_string()
}

fn json_line(level: Level, message: &str, now: SystemTime) -> String {
    json!({ "level": level.name(), "msg": message, "time": time(now) }).to_string()
}

fn text_line(level: Level, message: &str, now: SystemTime) -> String {
    let (time, level) = (time(now), level.name());
    format!("time=\"{time}\" level={level} msg={message:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_logrus() {
        let now = SystemTime::UNIX_EPOCH;
        let json = json_line(Level::Error, "a \"b\"", now);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            json,
            json!({ "level": "error", "msg": "a \"b\"", "time": "1970-01-01T00:00:00Z" })
        );
        assert_eq!(
            text_line(Level::Warning, "a \"b\"", now),
            r#"time="1970-01-01T00:00:00Z" level=warning msg="a \"b\"""#
        );
    }

    #[test]
    fn a_log_is_appended_to_and_debugging_is_off_unless_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.json");
        for debug in [false, true] {
            let log = Log::open(Some(&path), LogFormat::Json, debug).unwrap();
            log.debug("detail");
            log.warning("look out");
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let levels: Vec<String> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|line| line["level"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(levels, ["warning", "debug", "warning"]);
    }
}
