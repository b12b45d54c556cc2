//! One test's view of the machine: runs `lazaret` and shell commands there, names containers, and
//! holds the test to leaving nothing behind.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::command::Cmd;
use crate::leftovers::Leftovers;
use crate::machine::Machine;
use crate::outcome::Outcome;
use crate::probe;

/// Tests take turns: what one leaves behind is found by comparing before and after.
static TURN: Mutex<()> = Mutex::new(());

/// The machine that the harness itself runs on.
static HERE: Machine = Machine::Host;

/// Prints what there is to know about a failure.
const REPORT: &str = r#"
echo "--- lazaret ps -a"; timeout 20 lazaret ps -a 2>&1
for file in /run/lazaret/sandboxes/*/state.json /run/lazaret/sandboxes/*/sandbox.log \
    /var/lib/lazaret/containers/*/sandbox.log; do
    [ -f "$file" ] && { echo "--- $file"; tail -c 6000 "$file"; echo; }
done
"#;

/// The context of one test.
#[derive(Debug)]
pub struct Lazaret {
    test: &'static str,
    machine: &'static Machine,
    containers: RefCell<Vec<String>>,
    files: Cell<u32>,
    before: Option<Leftovers>,
    _turn: MutexGuard<'static, ()>,
}

impl Lazaret {
    /// Waits for its turn. `None`, said aloud, where there is no machine to test on, unless
    /// `LAZARET_E2E=required`.
    pub fn start(test: &'static str) -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let machine = match Machine::find() {
            Ok(machine) => machine,
            Err(reason) => {
                let required = std::env::var_os("LAZARET_E2E").is_some_and(|set| set == "required");
                assert!(!required, "{reason}");
                // Not eprintln: this is to be seen although the test passes.
                writeln!(std::io::stderr(), "SKIPPED {test}: {reason}").ok();
                return None;
            }
        };
        let mut lazaret = Self {
            test,
            machine,
            containers: RefCell::default(),
            files: Cell::new(0),
            before: None,
            _turn: turn,
        };
        lazaret.before = Some(Leftovers::now(&lazaret));
        Some(lazaret)
    }

    pub fn machine(&self) -> &'static Machine {
        self.machine
    }

    /// A container name of this test's own.
    pub fn container(&self, suffix: &str) -> String {
        let name = format!("e2e-{}-{suffix}", self.test);
        self.containers.borrow_mut().push(name.clone());
        name
    }

    /// `lazaret` with these arguments.
    pub fn cmd<I: IntoIterator<Item: AsRef<str>>>(&self, args: I) -> Cmd<'_> {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        Cmd::new(
            self,
            std::iter::once("lazaret".to_owned()).chain(args).collect(),
        )
    }

    /// `lazaret` with these arguments, to its end.
    #[track_caller]
    pub fn lazaret<I: IntoIterator<Item: AsRef<str>>>(&self, args: I) -> Outcome {
        self.cmd(args).output()
    }

    /// `lazaret run` with these arguments, to its end.
    #[track_caller]
    pub fn run<I: IntoIterator<Item: AsRef<str>>>(&self, args: I) -> Outcome {
        self.run_cmd(args).output()
    }

    /// `lazaret run` with these arguments.
    pub fn run_cmd<I: IntoIterator<Item: AsRef<str>>>(&self, args: I) -> Cmd<'_> {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        self.cmd(std::iter::once("run".to_owned()).chain(args))
    }

    /// Starts a container in the background and gives its id.
    #[track_caller]
    pub fn detached<I: IntoIterator<Item: AsRef<str>>>(&self, name: &str, args: I) -> String {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        let first = ["run", "-d", "--name", name].map(str::to_owned);
        let outcome = self.lazaret(first.into_iter().chain(args));
        outcome.success();
        outcome.text().trim().to_owned()
    }

    /// `lazaret check` as it was built on this machine, run here whatever the tests' machine is.
    #[track_caller]
    pub fn check_here(&self) -> Outcome {
        let test = std::env::current_exe().expect("a test has a path");
        let target = test.ancestors().nth(3).expect("target/debug/deps/test");
        let release = target.join("release").display().to_string();
        // Nothing is installed here.
        let config = format!("vmm = \"{release}/lazaret-vmm\"");
        let script = r#"exec env LAZARET_CONFIG=<(echo "$1") "$0"/lazaret check"#;
        let command = ["bash", "-c", script, &release, &config].map(str::to_owned);
        Cmd::new(self, command.into()).on(&HERE).output()
    }

    /// A shell script on the machine, which has to succeed; gives its standard output.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        let outcome = self.sh_cmd(script).output();
        outcome.status(0);
        outcome.text()
    }

    /// A shell script on the machine.
    pub fn sh_cmd(&self, script: &str) -> Cmd<'_> {
        Cmd::new(self, ["bash", "-c", script].map(str::to_owned).into())
    }

    /// This test's directory on the machine, removed at its end.
    pub fn scratch(&self) -> String {
        let directory = self.scratch_path();
        if self.files.get() == 0 {
            self.files.set(1);
            self.sh(&format!("rm -rf {directory} && mkdir -p {directory}"));
        }
        directory
    }

    fn scratch_path(&self) -> String {
        format!("/var/tmp/lazaret-e2e-{}", self.test)
    }

    /// The path of a file that is not there yet, in the test's directory.
    pub(crate) fn scratch_file(&self, stem: &str) -> String {
        let directory = self.scratch();
        self.files.set(self.files.get() + 1);
        format!("{directory}/{stem}{}", self.files.get())
    }

    /// Puts these bytes into a file of the test's directory and gives its path.
    #[track_caller]
    pub fn file(&self, name: &str, bytes: impl Into<Vec<u8>>) -> String {
        let path = format!("{}/{name}", self.scratch());
        let write = self.sh_cmd(&format!("cat >{path}")).stdin(bytes).output();
        write.success();
        path
    }

    /// Puts the static `probe` program into the test's directory and gives its path.
    #[track_caller]
    pub fn probe(&self) -> String {
        probe::put(self.machine, &self.scratch())
    }

    /// Copies a file of this machine into a directory of the tests' machine.
    pub(crate) fn put(&self, file: &Path, directory: &str) {
        self.sh(&format!("mkdir -p {directory}"));
        self.machine.put(file, directory);
    }

    /// The same program's bytes.
    pub fn probe_bytes(&self) -> Vec<u8> {
        std::fs::read(probe::program()).expect("the program that was built can be read")
    }

    /// What is to be known about a failure, on standard error with the test's name.
    fn report(&self) {
        let report = self.sh_cmd(REPORT).output().text();
        let console = self.machine.console();
        writeln!(
            std::io::stderr(),
            "=== {} failed\n{report}--- lab console\n{console}\n=== end of {}",
            self.test,
            self.test
        )
        .ok();
    }

    /// Removes this test's containers, images and files whatever state they are in.
    fn clean_up(&self) {
        let names = self.containers.borrow().join(" ");
        self.sh_cmd(&format!(
            "for name in {names}; do timeout 30 lazaret rm -f $name; done
            lazaret images | awk '$1 ~ /e2e/ {{ print $1 \":\" $2 }}' | xargs -r lazaret rmi
            rm -rf {}",
            self.scratch_path()
        ))
        .output();
    }
}

impl Drop for Lazaret {
    fn drop(&mut self) {
        let Some(before) = self.before.take() else {
            return;
        };
        if std::thread::panicking() {
            self.report();
            self.clean_up();
            return;
        }
        if self.files.get() > 0 {
            self.sh(&format!("rm -rf {}", self.scratch()));
        }
        let left = before.since(self);
        if !left.is_empty() {
            self.report();
            self.clean_up();
            panic!("{} left behind:\n{}", self.test, left.join("\n"));
        }
    }
}
