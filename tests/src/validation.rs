//! The validation programs of the OCI runtime-tools: each makes containers with the runtime that
//! `RUNTIME` names and writes the checks it made as TAP.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::lazaret::Lazaret;
use crate::oci::Oci;
use crate::outcome::Outcome;

/// Seconds for one program: some make several containers, and wait for what must not happen.
const DEADLINE: u32 = 600;

/// The programs on the machine, unpacked in a test's directory.
#[derive(Debug)]
pub struct Suite<'a> {
    lazaret: &'a Lazaret,
    runtime: String,
    directory: String,
}

/// What one program found.
#[derive(Debug)]
pub struct Verdict {
    /// Checks that passed, those left out not counted.
    pub passed: usize,
    /// What it found wrong, each once, in order of the alphabet.
    pub faults: Vec<String>,
    /// All that it wrote.
    pub outcome: Outcome,
}

impl<'a> Suite<'a> {
    /// Builds the programs, where that was not done before, and brings them to the machine.
    #[track_caller]
    pub fn new(oci: &Oci<'a>) -> Self {
        let lazaret = oci.lazaret();
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime-tools/build");
        let output = Command::new(build).output().expect("it can be executed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let archive = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let directory = format!("{}/runtime-tools", lazaret.scratch());
        lazaret.put(Path::new(&archive), &directory);
        lazaret.sh(&format!(
            "cd {directory}; zstd -dc --long=27 *.tar.zst | tar -x; rm *.tar.zst"
        ));
        Self {
            lazaret,
            runtime: oci.runtime().to_owned(),
            directory,
        }
    }

    /// The names of all programs.
    pub fn programs(&self) -> Vec<String> {
        let list = format!(
            "cd {}; ls | grep -vxE 'runtimetest|rootfs.*'",
            self.directory
        );
        self.lazaret.sh(&list).lines().map(str::to_owned).collect()
    }

    /// Runs one program, and removes the containers that it leaves.
    #[track_caller]
    pub fn run(&self, program: &str) -> Verdict {
        let Self {
            runtime, directory, ..
        } = self;
        let script = format!(
            "cd {directory}; mkdir tmp
            RUNTIME={runtime} TMPDIR={directory}/tmp ./{program}; code=$?
            for id in $({runtime} list | awk '$4 ~ \"^{directory}/tmp/\" {{ print $1 }}'); do
                {runtime} delete --force $id >&2
            done
            rm -rf tmp; exit $code"
        );
        let outcome = self.lazaret.sh_cmd(&script).deadline(DEADLINE).output();
        Verdict::of(outcome)
    }
}

impl Verdict {
    fn of(outcome: Outcome) -> Self {
        let lines = outcome.lines();
        let checks = |mark: &'static str| {
            let line = move |line: &String| {
                let check = line.strip_prefix(mark)?.split_once(" - ")?.1;
                Some(check.trim().to_owned())
            };
            lines.iter().filter_map(line)
        };
        let passed = checks("ok ").count();
        let mut faults: Vec<String> = checks("not ok ").collect();
        if lines.last().is_some_and(|plan| plan == "1..0") {
            // Programs that make no check tell what went wrong in a remark.
            faults.extend(remarks(&outcome.text()));
        }
        if outcome.status_code() != 0 {
            faults.push(outcome.errors());
        }
        faults.sort();
        faults.dedup();
        Self {
            passed,
            faults,
            outcome,
        }
    }
}

/// The errors that a program's remarks tell of: YAML blocks that hold JSON.
fn remarks(text: &str) -> Vec<String> {
    let blocks = text.split("\n  ---\n").skip(1);
    let objects = blocks.filter_map(|block| {
        let (object, _) = block.split_once("\n  ...")?;
        serde_json::from_str::<Value>(object).ok()
    });
    let error = |object: Value| Some(object["error"].as_str()?.to_owned());
    objects
        .filter_map(error)
        .filter(|error| !error.is_empty())
        .collect()
}
