//! Docker and podman as their users have them, with lazaret-oci (or another runtime, to tell whose
//! fault a failure is) as the OCI runtime of every container.
//!
//! Engines belong to the lab: on a machine with KVM of its own these tests run only where somebody
//! has given the engines a runtime called `lazaret`.

pub mod setup;

use std::io::Write;

use crate::command::Cmd;
use crate::lazaret::Lazaret;
use crate::machine::Machine;
use crate::outcome::Outcome;

/// Names another OCI runtime that the engines know (`runc`) to run the same tests against.
const RUNTIME: &str = "LAZARET_E2E_RUNTIME";

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Docker,
    Podman,
}

impl Kind {
    /// The name of its command.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }
}

/// An engine, ready, with the image `busybox`.
#[derive(Debug)]
pub struct Engine<'a> {
    lazaret: &'a Lazaret,
    kind: Kind,
    runtime: String,
}

impl<'a> Engine<'a> {
    /// `None`, said aloud, where the machine's engines are not the tests' to configure.
    #[track_caller]
    pub fn start(lazaret: &'a Lazaret, kind: Kind) -> Option<Self> {
        if let Machine::Host = lazaret.machine() {
            let known = lazaret.sh_cmd("docker info --format '{{.Runtimes.lazaret}}'");
            if !known.output().text().contains("lazaret-oci") {
                let skipped = "SKIPPED: no Docker here that knows the runtime lazaret";
                writeln!(std::io::stderr(), "{skipped}").ok();
                return None;
            }
        }
        if let Err(error) = setup::ready(lazaret.machine(), kind) {
            panic!("{}: {error:#}", kind.name());
        }
        Some(Self {
            lazaret,
            kind,
            runtime: std::env::var(RUNTIME).unwrap_or_else(|_| "lazaret".to_owned()),
        })
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn lazaret(&self) -> &'a Lazaret {
        self.lazaret
    }

    /// A name for a container, network or volume. Short, for it is a name of the DNS as well.
    pub fn name(&self, what: &str) -> String {
        format!("e2e-{what}")
    }

    /// Whether the containers are lazaret's, not those of a runtime to compare with.
    pub fn is_lazaret(&self) -> bool {
        self.runtime == "lazaret"
    }

    /// The name of the runtime, as the engine's settings have it.
    pub fn runtime(&self) -> &str {
        &self.runtime
    }

    /// The runtime's program, for what takes no name.
    pub fn runtime_path(&self) -> &str {
        if self.is_lazaret() {
            "/usr/bin/lazaret-oci"
        } else {
            &self.runtime
        }
    }

    /// The engine's command line with these arguments.
    pub fn cmd<I: IntoIterator<Item: AsRef<str>>>(&self, args: I) -> Cmd<'a> {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        let mut line = vec![self.kind.name().to_owned()];
        if self.kind == Kind::Podman {
            line.extend(["--runtime".to_owned(), self.runtime.clone()]);
        }
        line.extend(args);
        Cmd::new(self.lazaret, line)
    }

    /// The same, to its end.
    #[track_caller]
    pub fn call<I: IntoIterator<Item: AsRef<str>>>(&self, args: I) -> Outcome {
        self.cmd(args).output()
    }

    /// The same, which has to succeed; gives the output without the last line's end.
    #[track_caller]
    pub fn ok<I: IntoIterator<Item: AsRef<str>>>(&self, args: I) -> String {
        let outcome = self.call(args);
        outcome.status(0);
        outcome.text().trim_end().to_owned()
    }

    /// `run` (or `create`) on the runtime under test.
    pub fn run_cmd<I: IntoIterator<Item: AsRef<str>>>(&self, args: I) -> Cmd<'a> {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        let mut line = vec!["run".to_owned()];
        if self.kind == Kind::Docker {
            line.push(format!("--runtime={}", self.runtime));
        }
        self.cmd(line.into_iter().chain(args))
    }

    /// The same, to its end.
    #[track_caller]
    pub fn run<I: IntoIterator<Item: AsRef<str>>>(&self, args: I) -> Outcome {
        self.run_cmd(args).output()
    }

    /// Starts a container in the background; its name is removed with it at the test's end.
    #[track_caller]
    pub fn detached<I: IntoIterator<Item: AsRef<str>>>(&self, name: &str, args: I) -> String {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        let first = ["-d", "--name", name].map(str::to_owned);
        let outcome = self.run(first.into_iter().chain(args));
        outcome.status(0);
        outcome.text().trim().to_owned()
    }

    /// One field of `inspect`, by Go template.
    #[track_caller]
    pub fn inspect(&self, name: &str, template: &str) -> String {
        self.ok(["inspect", "--format", template, name])
    }

    /// Waits until a field of `inspect` is as wanted.
    #[track_caller]
    pub fn until(&self, name: &str, template: &str, wanted: &str) {
        let engine = self.kind.name();
        self.lazaret.sh(&format!(
            "until [ \"$({engine} inspect --format '{template}' {name})\" = '{wanted}' ]; do sleep 0.5; done"
        ));
    }

    /// Loads the image `debian`: a database, a web server, apt with packages to install.
    #[track_caller]
    pub fn with_debian(&self) {
        if let Err(error) = setup::debian(self.lazaret.machine(), self.kind) {
            panic!("{}: {error:#}", self.kind.name());
        }
    }

    /// Removes containers at the end of a test, whatever state they are in.
    #[track_caller]
    pub fn remove<I: IntoIterator<Item: AsRef<str>>>(&self, names: I) {
        let names: Vec<String> = names.into_iter().map(|name| name.as_ref().into()).collect();
        let mut argv = vec!["rm".to_owned(), "-f".to_owned()];
        if self.kind == Kind::Podman {
            argv.push("--time=0".to_owned());
        }
        self.call(argv.into_iter().chain(names)).status(0);
    }
}

impl Drop for Engine<'_> {
    /// A failed test's containers and networks would be in the way of the next ones.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let engine = self.kind.name();
        let state = format!(
            "{engine} ps -a; grep -v level=info /var/log/dockerd.log | tail -n 15 | cut -c -400
            timeout 120 {engine} rm -f $({engine} ps -aq); {engine} network prune -f;
            {engine} volume prune -af"
        );
        let said = self.lazaret.sh_cmd(&state).output().text();
        writeln!(std::io::stderr(), "--- {engine}\n{said}").ok();
    }
}
