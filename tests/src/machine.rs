//! The machine that the tests drive: this one, or the lab. `tests/lab/lab where` decides.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Where the installed binaries run.
#[derive(Debug)]
pub enum Machine {
    Host,
    /// The path of the `lab` script; `LAZARET_LAB` names the lab.
    Lab(PathBuf),
}

/// What a command needs of its standard streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Streams {
    NoStdin,
    Stdin,
    Terminal,
}

impl Machine {
    /// The machine, or why there is none. Found once for all tests.
    pub fn find() -> Result<&'static Self, &'static str> {
        static FOUND: OnceLock<Result<Machine, String>> = OnceLock::new();
        FOUND
            .get_or_init(Self::look)
            .as_ref()
            .map_err(String::as_str)
    }

    fn look() -> Result<Self, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/lab");
        let place = Command::new(&script)
            .arg("where")
            .output()
            .map_err(|error| format!("{}: {error}", script.display()))?;
        let machine = match place.stdout.trim_ascii() {
            b"host" => Self::Host,
            b"lab" => Self::Lab(script),
            other => return Err(format!("lab where: {}", String::from_utf8_lossy(other))),
        };
        let version = machine
            .command(&["lazaret", "version"], Streams::NoStdin)
            .output()
            .map_err(|error| format!("lazaret version: {error}"))?;
        if version.status.success() {
            return Ok(machine);
        }
        let said = String::from_utf8_lossy(&version.stderr);
        Err(match machine {
            Self::Host => format!("lazaret is not installed: make install ({})", said.trim()),
            Self::Lab(_) => format!(
                "this machine has no usable KVM, and no lab with lazaret is up: \
                 tests/lab/lab up ({})",
                said.trim()
            ),
        })
    }

    /// A command on the machine, its streams passed through.
    pub(crate) fn command<S: AsRef<str>>(&self, argv: &[S], streams: Streams) -> Command {
        let argv = argv.iter().map(AsRef::as_ref);
        let mut command = match self {
            Self::Host => {
                let mut command = Command::new("env");
                command.arg("--").args(argv);
                command
            }
            Self::Lab(script) => {
                let mut command = Command::new(script);
                command.arg("exec").args(match streams {
                    Streams::NoStdin => None,
                    Streams::Stdin => Some("-i"),
                    Streams::Terminal => Some("-it"),
                });
                command.arg("--").args(argv);
                command
            }
        };
        if streams == Streams::NoStdin {
            command.stdin(Stdio::null());
        }
        command
    }

    /// Runs a shell script on the machine and gives what it writes; its errors pass through.
    pub fn shell(&self, script: &str) -> anyhow::Result<String> {
        let mut command = self.command(&["bash", "-c", script], Streams::NoStdin);
        let output = command.stderr(Stdio::inherit()).output()?;
        anyhow::ensure!(output.status.success(), "{}: {script}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Whether the machine's clock counts instructions instead of time.
    pub fn counts_instructions(&self) -> bool {
        let Self::Lab(script) = self else {
            return false;
        };
        let name = std::env::var("LAZARET_LAB").unwrap_or_else(|_| "default".to_owned());
        let status = Command::new(script).arg("status").output();
        status.is_ok_and(|output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.lines()
                .any(|line| line.starts_with(&format!("{name} up, icount yes")))
        })
    }

    /// Copies a file of this machine into a directory of the tests' machine.
    pub(crate) fn put(&self, file: &Path, directory: &str) {
        let mut command = match self {
            Self::Host => {
                let mut command = Command::new("install");
                command.arg("-D").arg("-t").arg(directory).arg(file);
                command
            }
            Self::Lab(script) => {
                let mut command = Command::new(script);
                command.arg("put").arg(file).arg(directory);
                command
            }
        };
        let status = command.status().expect("install and lab can be executed");
        assert!(
            status.success(),
            "cannot copy {} to {directory}",
            file.display()
        );
    }

    /// The last lines of the lab's own console, where there is a lab.
    pub(crate) fn console(&self) -> String {
        let Self::Lab(script) = self else {
            return String::new();
        };
        let console = Command::new(script).arg("console").output();
        let text = console.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let text = text.unwrap_or_else(|error| error.to_string());
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}
