//! The environment of a process: `process.env`, with each name once.

use std::collections::HashSet;

use oci_spec::runtime::Process;

use crate::failure::{Failure, Result};

/// Variables as execve takes them, `name=value`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Environment(Vec<String>);

impl Environment {
    /// The last setting of a name is the one that counts, as in runc: callers append
    /// theirs. Left to the program it would be the first, which is getenv's.
    pub(crate) fn of(process: &Process) -> Result<Self> {
        let mut entries = Vec::new();
        let mut names = HashSet::new();
        for entry in process.env().iter().flatten().rev() {
            if names.insert(name_of(entry)?) {
                entries.push(entry.clone());
            }
        }
        entries.reverse();
        Ok(Self(entries))
    }

    /// An empty setting counts as none.
    pub(crate) fn set_home(&mut self, home: &str) {
        if self.get("HOME").is_none_or(str::is_empty) {
            self.0.retain(|entry| name_of(entry) != Ok("HOME"));
            self.0.push(format!("HOME={home}"));
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let mut all = self.variables();
        all.find_map(|(key, value)| (key == name).then_some(value))
    }

    pub(crate) fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|entry| entry.split_once('='))
    }

    pub(crate) fn entries(&self) -> &[String] {
        &self.0
    }
}

fn name_of(entry: &str) -> Result<&str> {
    match entry.split_once('=') {
        None => Err(Failure::invalid(format!(
            "process.env: {entry:?} is missing '='"
        ))),
        Some(("", _)) => Err(Failure::invalid(format!(
            "process.env: {entry:?} has no name"
        ))),
        Some((name, _)) => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn environment(entries: &[&str]) -> Result<Environment> {
        let process = json!({ "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": entries });
        Environment::of(&serde_json::from_value(process).expect("a process"))
    }

    #[test]
    fn last_setting_of_a_name_counts() {
        let mut all = environment(&["A=1", "B=x", "A=2", "AB=3", "HOME="]).expect("valid");
        assert_eq!(all.entries(), ["B=x", "A=2", "AB=3", "HOME="]);
        all.set_home("/root");
        assert_eq!(all.entries(), ["B=x", "A=2", "AB=3", "HOME=/root"]);
        all.set_home("/other");
        assert_eq!(all.get("HOME"), Some("/root"));
    }

    #[test]
    fn value_may_hold_anything() {
        let all = environment(&["A==b=c", "B="]).expect("valid");
        assert_eq!(all.get("A"), Some("=b=c"));
        assert_eq!(all.get("B"), Some(""));
        assert_eq!(all.get("C"), None);
    }

    #[test]
    fn what_sets_nothing_is_refused() {
        for entry in ["PATH", "", "=x"] {
            environment(&["A=1", entry]).expect_err(entry);
        }
    }
}
