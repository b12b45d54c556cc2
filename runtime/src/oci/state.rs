//! `lazaret-oci state`, and what it has in common with `list`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Map, Value};

use super::Host;
use super::container::Container;
use super::failure::{Failure, OciError};

/// Print the state of a container as JSON
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// A container's state as runc prints it.
#[derive(Debug, Serialize)]
pub(super) struct State {
    #[serde(rename = "ociVersion")]
    oci_version: String,
    pub(super) id: String,
    /// 0 where there is none any more.
    pub(super) pid: u32,
    pub(super) status: String,
    pub(super) bundle: PathBuf,
    rootfs: PathBuf,
    pub(super) created: String,
    #[serde(skip_serializing_if = "Map::is_empty")]
    annotations: Map<String, Value>,
    pub(super) owner: String,
}

impl State {
    pub(super) fn of(host: &Host, container: Container) -> Result<Self, OciError> {
        let status = container.status(host)?;
        let pid = container.pid(status).unwrap_or(0);
        let record = container.record;
        Ok(Self {
            oci_version: record.oci_version,
            id: record.id,
            pid,
            status: status.to_string(),
            bundle: record.bundle,
            rootfs: record.rootfs,
            created: record.created,
            annotations: record.annotations,
            owner: user_name(record.owner),
        })
    }
}

impl Args {
    pub(super) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let container = Container::find(host, &self.container)?;
        let state = State::of(host, container)?;
        let text = serde_json::to_string_pretty(&state).expect("all keys are strings");
        print(&text)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes a line to standard output.
pub(super) fn print(text: &str) -> Result<(), OciError> {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    written.map_err(OciError::Output)
}

/// The name of a user of this host, or the number of one without.
fn user_name(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_in(&users, uid).unwrap_or_else(|| format!("#{uid}"))
}

fn name_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let number: u32 = fields.nth(1)?.parse().ok()?;
        (number == uid).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_named_as_the_host_names_them() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbad line\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(name_in(passwd, 0).as_deref(), Some("root"));
        assert_eq!(name_in(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(name_in(passwd, 7), None);
    }
}
