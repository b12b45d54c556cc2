//! The `process` object of an exec: a file's, or the container's own with what
//! the flags change.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::super::bundle::{check_process, read_json};
use super::super::container::Container;
use super::super::failure::OciError;

#[derive(Debug, Default, clap::Args)]
pub(super) struct ProcessArgs {
    /// File with the process object; the other flags on the process have no effect then
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Allocate a terminal
    #[arg(short, long)]
    tty: bool,
    /// User to run as
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Additional group
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// Working directory in the container
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Set an environment variable
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Add a capability
    #[arg(short, long, value_name = "CAPABILITY")]
    cap: Vec<String>,
    /// Forbid the process to gain privileges
    #[arg(long)]
    no_new_privs: bool,
    /// Profile of the security module apparmor
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Label of the security module selinux
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
}

impl ProcessArgs {
    pub(super) fn build(
        &self,
        container: &Container,
        command: &[String],
    ) -> Result<Value, OciError> {
        let mut process = if let Some(path) = &self.process {
            read_json(path)?
        } else {
            let spec = container.place.load_spec()?;
            self.apply(spec["process"].clone(), command)?
        };
        check_process(&process)?;
        // Who leaves the user out means root, as for runc.
        if process["user"].is_null() {
            process["user"] = json!({ "uid": 0, "gid": 0 });
        }
        Ok(process)
    }

    fn apply(&self, mut process: Value, command: &[String]) -> Result<Value, OciError> {
        if command.is_empty() {
            return Err(OciError::Invalid("process args cannot be empty".to_owned()));
        }
        process["args"] = json!(command);
        // Of the container's own; a terminal has to be asked for.
        process["terminal"] = json!(self.tty);
        for (field, value) in [
            ("cwd", &self.cwd),
            ("apparmorProfile", &self.apparmor),
            ("selinuxLabel", &self.process_label),
        ] {
            if let Some(value) = value {
                process[field] = json!(value);
            }
        }
        if self.no_new_privs {
            process["noNewPrivileges"] = json!(true);
        }
        append(&mut process, "env", &self.env);
        if !self.cap.is_empty() {
            add_capabilities(&mut process["capabilities"], &self.cap);
        }
        if let Some(user) = &self.user {
            set_user(&mut process["user"], user)?;
        }
        append(
            &mut process["user"],
            "additionalGids",
            &self.additional_gids,
        );
        Ok(process)
    }
}

fn append<T: Clone + Into<Value>>(object: &mut Value, field: &str, more: &[T]) {
    if more.is_empty() {
        return;
    }
    let list = &mut object[field];
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.extend(more.iter().cloned().map(Into::into));
    }
}

/// Into the sets that runc adds to: ambient needs inheritable ones to be there.
fn add_capabilities(capabilities: &mut Value, more: &[String]) {
    for set in ["bounding", "effective", "permitted"] {
        append(capabilities, set, more);
    }
    if capabilities["inheritable"].is_array() {
        append(capabilities, "ambient", more);
    }
}

fn set_user(user: &mut Value, text: &str) -> Result<(), OciError> {
    let number = |what: &str, text: &str| {
        let parsed = text.parse::<u32>();
        parsed.map_err(|_| OciError::Invalid(format!("--user: {what} {text:?} is not a number")))
    };
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid, Some(gid)),
        None => (text, None),
    };
    user["uid"] = json!(number("user id", uid)?);
    if let Some(gid) = gid {
        user["gid"] = json!(number("group id", gid)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Value {
        json!({
            "terminal": true,
            "args": ["sleep"],
            "cwd": "/",
            "env": ["A=1"],
            "user": { "uid": 1, "gid": 2 },
            "capabilities": { "bounding": ["CAP_KILL"], "inheritable": [] },
        })
    }

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn without_flags_it_is_the_containers_process_without_its_terminal() {
        let process = ProcessArgs::default()
            .apply(base(), &strings(&["ls", "-l"]))
            .unwrap();
        let mut expected = base();
        expected["args"] = json!(["ls", "-l"]);
        expected["terminal"] = json!(false);
        assert_eq!(process, expected);
    }

    #[test]
    fn flags_change_what_they_name() {
        let args = ProcessArgs {
            tty: true,
            user: Some("7:8".to_owned()),
            additional_gids: vec![9],
            cwd: Some("/tmp".to_owned()),
            env: strings(&["B=2"]),
            cap: strings(&["CAP_SYS_TIME"]),
            no_new_privs: true,
            apparmor: Some("p".to_owned()),
            process_label: Some("l".to_owned()),
            process: None,
        };
        let process = args.apply(base(), &strings(&["id"])).unwrap();
        let expected = json!({
            "terminal": true,
            "args": ["id"],
            "cwd": "/tmp",
            "env": ["A=1", "B=2"],
            "user": { "uid": 7, "gid": 8, "additionalGids": [9] },
            "capabilities": {
                "bounding": ["CAP_KILL", "CAP_SYS_TIME"],
                "effective": ["CAP_SYS_TIME"],
                "permitted": ["CAP_SYS_TIME"],
                "inheritable": [],
                "ambient": ["CAP_SYS_TIME"],
            },
            "noNewPrivileges": true,
            "apparmorProfile": "p",
            "selinuxLabel": "l",
        });
        assert_eq!(process, expected);
    }

    #[test]
    fn a_user_is_a_number_and_a_command_is_needed() {
        let with = |user: &str| ProcessArgs {
            user: Some(user.to_owned()),
            ..ProcessArgs::default()
        };
        let command = strings(&["true"]);
        let process = with("5").apply(base(), &command).unwrap();
        assert_eq!(process["user"], json!({ "uid": 5, "gid": 2 }));
        for user in ["root", "1:wheel", "-1", ""] {
            let err = with(user).apply(base(), &command).unwrap_err();
            assert!(err.to_string().contains("--user"), "{err}");
        }
        let err = ProcessArgs::default().apply(base(), &[]).unwrap_err();
        assert!(err.to_string().contains("args"), "{err}");
    }
}
