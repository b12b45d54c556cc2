//! Containers of busybox made by hand with `lazaret-oci`, their caller being what containerd's shim
//! and conmon are to it: the process that inherits the container's and hears how it ended.

use lazaret_tests::{Background, Lazaret, Oci, Outcome};
use serde_json::{Value, json};

/// Makes a container and waits, as a subreaper (prctl 36), for the end of the process in its pid
/// file: `adopt BUNDLE ID`.
const ADOPT: &str = r#"
my ($bundle, $id) = @ARGV;
syscall(157, 36, 1, 0, 0, 0) == 0 or die "prctl: $!";
$| = 1;
system("lazaret-oci", "create", "--bundle", $bundle, "--pid-file", "$bundle/pid", $id) == 0
    or die "create: $?";
open(my $file, "<", "$bundle/pid") or die "pid file: $!";
my $pid = <$file>;
print "created $pid\n";
waitpid($pid, 0) == $pid or die "waitpid: $!";
print $? & 127 ? "signal " . ($? & 127) : "status " . ($? >> 8), "\n";
"#;

/// A bundle, and the id of the container that is made from it.
#[derive(Debug)]
pub(super) struct Bundle<'a> {
    lazaret: &'a Lazaret,
    pub(super) path: String,
    pub(super) id: String,
}

impl<'a> Bundle<'a> {
    /// A bundle of this name whose process is this shell script.
    #[track_caller]
    pub(super) fn new(lazaret: &'a Lazaret, name: &str, script: &str) -> Self {
        Self::with(lazaret, name, script, |_| ())
    }

    /// The same, its configuration changed by the test.
    #[track_caller]
    pub(super) fn with(
        lazaret: &'a Lazaret,
        name: &str,
        script: &str,
        change: impl FnOnce(&mut Value),
    ) -> Self {
        let made = Oci::new(lazaret).bundle_with(script, |config| {
            // Below a directory that is made for it, as engines name it.
            config["linux"]["cgroupsPath"] = json!("/lazaret-abuse/container");
            change(config);
        });
        let path = format!("{}/{name}", lazaret.scratch());
        lazaret.sh(&format!("mv {} {path}", made.path));
        Self {
            lazaret,
            path,
            id: format!("abuse-{name}"),
        }
    }

    /// A verb of `lazaret-oci` on this container, with what follows the id.
    #[track_caller]
    pub(super) fn call(&self, verb: &[&str], rest: &[&str]) -> Outcome {
        let line = [&["lazaret-oci"], verb, &[self.id.as_str()], rest].concat();
        self.lazaret.sh_cmd(&line.join(" ")).output()
    }

    /// Makes the container. Whoever made it is told of its end: `ended`.
    #[track_caller]
    pub(super) fn create(&self) -> Parent<'a> {
        let program = self.lazaret.file(&format!("adopt-{}", self.id), ADOPT);
        let line = format!(
            "exec perl {program} {} {} 2>{}/log </dev/null",
            self.path, self.id, self.path
        );
        let mut process = self.lazaret.sh_cmd(&line).spawn();
        let created = process.line();
        let pid = created.strip_prefix("created ").map(str::to_owned);
        Parent {
            pid: pid.unwrap_or_else(|| panic!("{created}")),
            process,
        }
    }

    /// Makes the container and lets its process run.
    #[track_caller]
    pub(super) fn start(&self) -> Parent<'a> {
        let parent = self.create();
        self.call(&["start"], &[]).success();
        parent
    }

    /// The process id of the container's VMM.
    #[track_caller]
    pub(super) fn vmm(&self) -> String {
        let state = format!("/run/lazaret/sandboxes/{}/state.json", self.id);
        let read = format!("jq -er .vmm_pid {state}");
        self.lazaret.sh(&read).trim().to_owned()
    }

    #[track_caller]
    pub(super) fn status(&self) -> String {
        let outcome = self.call(&["state"], &[]);
        outcome.status(0);
        outcome.json()["status"].as_str().expect("text").to_owned()
    }

    /// Waits until `state` says so.
    #[track_caller]
    pub(super) fn until_stopped(&self) {
        let id = &self.id;
        self.lazaret.sh(&format!(
            "until lazaret-oci state {id} | jq -e '.status == \"stopped\" and .pid == 0'; do
                sleep 0.1; done"
        ));
    }

    /// Nobody knows the container any more.
    #[track_caller]
    pub(super) fn assert_gone(&self) {
        let outcome = self.call(&["state"], &[]);
        outcome.status(1).stderr_contains("does not exist");
    }
}

impl Drop for Bundle<'_> {
    /// A failed test's container would be in the way of the next ones.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let delete = format!("timeout 60 lazaret-oci delete --force {}", self.id);
            self.lazaret.sh_cmd(&delete).output();
        }
    }
}

/// The caller of `create`, as long as the container's process lives.
#[derive(Debug)]
pub(super) struct Parent<'a> {
    /// The container's process on the host.
    pub(super) pid: String,
    process: Background<'a>,
}

impl Parent<'_> {
    /// How the container's process has ended: `status 137`, `signal 9`.
    #[track_caller]
    pub(super) fn ended(mut self) -> String {
        let ended = self.process.line();
        self.process.wait().status(0);
        ended
    }
}
