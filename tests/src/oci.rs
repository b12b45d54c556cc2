//! `lazaret-oci` (or another OCI runtime) driven by hand, as the runtime specification's command
//! line has it, with bundles that it proposes itself (`spec`) and a root file system of busybox.

use std::cell::RefCell;

use serde_json::{Value, json};

use crate::command::Cmd;
use crate::lazaret::Lazaret;
use crate::outcome::Outcome;

/// Names another runtime to run the same tests against.
const RUNTIME: &str = "LAZARET_E2E_OCI";

/// Makes the bundle `$1` with runtime `$0`, and prints its configuration.
const MAKE_BUNDLE: &str = r#"
set -e
mkdir -p "$1"/rootfs/{bin,dev,etc,proc,sys,tmp,root,mnt}
cd "$1"
cp /bin/busybox rootfs/bin/
rootfs/bin/busybox --install rootfs/bin
printf '%s\n' root:x:0:0:root:/root:/bin/sh tester:x:100:200:tester:/home/tester:/bin/sh >rootfs/etc/passwd
printf '%s\n' root:x:0: tty:x:5: testers:x:200: >rootfs/etc/group
"$0" spec
cat config.json
"#;

/// An OCI runtime and the containers that one test makes of it.
#[derive(Debug)]
pub struct Oci<'a> {
    lazaret: &'a Lazaret,
    runtime: String,
    ids: RefCell<Vec<String>>,
}

/// A bundle on the machine.
#[derive(Debug)]
pub struct Bundle {
    pub path: String,
    /// A container id of the test's own, to go with it.
    pub id: String,
}

impl<'a> Oci<'a> {
    pub fn new(lazaret: &'a Lazaret) -> Self {
        Self {
            lazaret,
            runtime: std::env::var(RUNTIME).unwrap_or_else(|_| "lazaret-oci".to_owned()),
            ids: RefCell::default(),
        }
    }

    pub fn lazaret(&self) -> &'a Lazaret {
        self.lazaret
    }

    /// The runtime's command.
    pub fn runtime(&self) -> &str {
        &self.runtime
    }

    /// Whether the runtime is lazaret's, not one to compare with.
    pub fn is_lazaret(&self) -> bool {
        self.runtime == "lazaret-oci"
    }

    /// A bundle whose process is this shell script.
    #[track_caller]
    pub fn bundle(&self, script: &str) -> Bundle {
        self.bundle_with(script, |_| ())
    }

    /// The same, what the runtime proposes for it changed by the test. Without a terminal, and with
    /// a root that can be written to.
    #[track_caller]
    pub fn bundle_with(&self, script: &str, change: impl FnOnce(&mut Value)) -> Bundle {
        let number = self.ids.borrow().len() + 1;
        let directory = format!("bundle{number}");
        let path = format!("{}/{directory}", self.lazaret.scratch());
        let make = ["bash", "-c", MAKE_BUNDLE, &self.runtime, &path].map(str::to_owned);
        let proposed = Cmd::new(self.lazaret, make.into()).output();
        let mut config = proposed.success().json();
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["sh", "-c", script]);
        config["root"]["readonly"] = json!(false);
        change(&mut config);
        let file = format!("{directory}/config.json");
        self.lazaret.file(&file, config.to_string());
        let id = self.lazaret.container(&number.to_string());
        self.ids.borrow_mut().push(id.clone());
        Bundle { path, id }
    }

    /// The runtime with these arguments.
    pub fn cmd<I: IntoIterator<Item: AsRef<str>>>(&self, args: I) -> Cmd<'a> {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned());
        let runtime = std::iter::once(self.runtime.clone());
        Cmd::new(self.lazaret, runtime.chain(args).collect())
    }

    /// The same, to its end.
    #[track_caller]
    pub fn call<I: IntoIterator<Item: AsRef<str>>>(&self, args: I) -> Outcome {
        self.cmd(args).output()
    }

    /// `run`, to the container's end.
    #[track_caller]
    pub fn run(&self, bundle: &Bundle) -> Outcome {
        self.call(["run", "--bundle", &bundle.path, &bundle.id])
    }

    /// `create`, the container's streams being `out` and `err` in the bundle, its pid in `pid`.
    #[track_caller]
    pub fn create(&self, bundle: &Bundle) -> Outcome {
        let Bundle { path, id } = bundle;
        let runtime = &self.runtime;
        let script = format!(
            "cd {path}; {runtime} create --pid-file pid {id} >out 2>err </dev/null
            code=$?; [ $code = 0 ] || cat err >&2; exit $code"
        );
        self.lazaret.sh_cmd(&script).output()
    }

    /// `create` and `start`.
    #[track_caller]
    pub fn started(&self, bundle: &Bundle) {
        self.create(bundle).success();
        self.call(["start", &bundle.id]).success();
    }

    /// `state`, as JSON.
    #[track_caller]
    pub fn state(&self, bundle: &Bundle) -> Value {
        self.call(["state", &bundle.id]).success().json()
    }

    #[track_caller]
    pub fn status(&self, bundle: &Bundle) -> String {
        let state = self.state(bundle);
        state["status"].as_str().expect("a status").to_owned()
    }

    /// Waits until the container has ended.
    #[track_caller]
    pub fn until_stopped(&self, bundle: &Bundle) {
        let (runtime, id) = (&self.runtime, &bundle.id);
        self.lazaret.sh(&format!(
            "until {runtime} state {id} | grep -q '\"stopped\"'; do sleep 0.2; done"
        ));
    }

    /// What the container has written to this file of its bundle, once it holds a line.
    #[track_caller]
    pub fn until_written(&self, bundle: &Bundle, file: &str) -> String {
        let path = &bundle.path;
        self.lazaret.sh(&format!(
            "until grep -q . {path}/{file} 2>/dev/null; do sleep 0.1; done; cat {path}/{file}"
        ))
    }

    /// What a file of the bundle holds.
    #[track_caller]
    pub fn read(&self, bundle: &Bundle, file: &str) -> String {
        self.lazaret.sh(&format!("cat {}/{file}", bundle.path))
    }
}

impl Drop for Oci<'_> {
    /// A failed test's containers would be in the way of the next ones.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (runtime, ids) = (&self.runtime, self.ids.borrow().join(" "));
            let script = format!(
                "{runtime} list; for id in {ids}; do timeout 60 {runtime} delete --force $id; done"
            );
            self.lazaret.sh_cmd(&script).output();
        }
    }
}
