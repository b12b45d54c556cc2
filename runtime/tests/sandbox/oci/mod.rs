//! `lazaret-oci` as an engine calls it, on top of the played VMM.

mod exec;
mod hooks;
mod lifecycle;
mod refusals;
mod terminal;

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use lazaret_runtime::sandbox::state::process_start_time;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};
use serde_json::{Value, json};

use crate::harness::Box_;

const OCI: &str = env!("CARGO_BIN_EXE_lazaret-oci");
const DEADLINE: Duration = Duration::from_secs(60);

/// A root of containers in a directory of its own.
pub struct Engine {
    pub sandbox: Box_,
}

/// What a command has said.
#[derive(Debug)]
pub struct Said {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    #[track_caller]
    pub fn ok(&self) -> &Self {
        assert!(self.status.success(), "{self:?}");
        self
    }

    #[track_caller]
    pub fn fails(&self, code: i32, text: &str) {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        assert!(self.stderr.contains(text), "{self:?}");
    }
}

impl Engine {
    pub fn new(scenario: &str) -> Self {
        Self {
            sandbox: Box_::new(scenario, "oci"),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path(name)
    }

    /// Writes the bundle's `config.json` for a program of the fake agent.
    pub fn spec(&self, args: &[&str], change: impl FnOnce(&mut Value)) {
        self.sandbox.spec(args, |spec| {
            spec["linux"]["namespaces"] = json!([{ "type": "network" }]);
            change(spec);
        });
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(OCI);
        command
            .arg("--log")
            .arg(self.path("log.json"))
            .args(["--log-format", "json"])
            .args(args)
            .env("LAZARET_CONFIG", self.path("config.toml"))
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end. Its output goes to files, as the container's
    /// process may hold on to it for longer.
    pub fn run(&self, args: &[&str]) -> Said {
        let (out, err) = (self.path("stdout"), self.path("stderr"));
        let status = self
            .command(args)
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap())
            .status()
            .unwrap();
        Said {
            status,
            stdout: fs::read_to_string(out).unwrap(),
            stderr: fs::read_to_string(err).unwrap(),
        }
    }

    /// Creates the container `box`.
    pub fn create(&self) -> Said {
        let bundle = self.path("bundle");
        let pid_file = self.path("init.pid");
        let bundle = bundle.to_str().unwrap();
        let pid_file = pid_file.to_str().unwrap();
        self.run(&["create", "--bundle", bundle, "--pid-file", pid_file, "box"])
    }

    pub fn pid(&self) -> Pid {
        read_pid(&self.path("init.pid"))
    }

    pub fn state(&self) -> Value {
        let said = self.run(&["state", "box"]);
        serde_json::from_str(&said.ok().stdout).unwrap()
    }

    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub fn wait_for(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(
                start.elapsed() < DEADLINE,
                "waited in vain for {what}; log:\n{}",
                self.sandbox.sandbox_log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Nothing of any container is left.
    #[track_caller]
    pub fn nothing_is_left(&self) {
        let left = |name: &str| {
            let entries = fs::read_dir(self.path(name)).into_iter().flatten();
            let names = entries.map(|entry| entry.unwrap().file_name());
            names.collect::<Vec<_>>()
        };
        assert!(left("run/oci").is_empty(), "{:?}", left("run/oci"));
        self.wait_for("sandboxes to go", || left("run/sandboxes").is_empty());
        self.sandbox.volume_is_untouched();
    }
}

pub fn read_pid(path: &Path) -> Pid {
    let text = fs::read_to_string(path).unwrap();
    Pid::from_raw(text.parse().unwrap()).unwrap()
}

/// What conmon and containerd's shim are: processes whose parents ended become
/// this one's children.
pub fn adopt() {
    set_child_subreaper(Some(rustix::process::getpid())).unwrap();
}

/// How a process that was left to this one ended.
#[track_caller]
pub fn reap(pid: Pid) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some((_, status)) = waitpid(Some(pid), WaitOptions::NOHANG).unwrap() {
            return ExitStatus::from_raw(status.as_raw());
        }
        assert!(start.elapsed() < DEADLINE, "{pid:?} does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn is_alive(pid: Pid) -> bool {
    process_start_time(pid.as_raw_nonzero().get().unsigned_abs()).is_some()
}

pub fn kill(pid: Pid, signal: Signal) {
    kill_process(pid, signal).unwrap();
}

/// Waits for a command that was started.
#[track_caller]
pub fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(start.elapsed() < DEADLINE, "{child:?} does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}
