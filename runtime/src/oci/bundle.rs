//! A bundle's `config.json`, checked as far as the command itself depends on it;
//! the sandbox process and the agent check the rest.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::failure::OciError;
use crate::hooks::{HookKind, hooks_of};

/// Longest `config.json`. Engines write 10 to 100 KiB.
const SPEC_MAX: u64 = 2 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) path: PathBuf,
    pub(super) spec: Value,
}

impl Bundle {
    pub(super) fn load(path: &Path) -> Result<Self, OciError> {
        let path = super::absolute(path)?;
        let spec = read_json(&path.join("config.json"))?;
        check_version(&spec)?;
        if spec["root"]["path"].as_str().is_none() {
            return Err(invalid("root.path must not be empty"));
        }
        check_process(&spec["process"])?;
        for kind in HookKind::ALL {
            hooks_of(&spec, kind)?;
        }
        Ok(Self { path, spec })
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        let root = self.spec["root"]["path"].as_str().unwrap_or_default();
        self.path.join(root)
    }

    pub(super) fn terminal(&self) -> bool {
        self.spec["process"]["terminal"].as_bool().unwrap_or(false)
    }
}

/// Reads a file of JSON that a caller has written.
pub(super) fn read_json(path: &Path) -> Result<Value, OciError> {
    let failed = |source| OciError::Io {
        verb: "read",
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    parse_json(file, path)
}

pub(super) fn parse_json(reader: impl Read, path: &Path) -> Result<Value, OciError> {
    let mut bytes = Vec::new();
    let read = reader.take(SPEC_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|source| OciError::Io {
        verb: "read",
        path: path.to_owned(),
        source,
    })?;
    if bytes.len() as u64 > SPEC_MAX {
        let text = format!("{} is longer than {SPEC_MAX} bytes", path.display());
        return Err(invalid(&text));
    }
    serde_json::from_slice(&bytes).map_err(|source| OciError::Json {
        path: path.to_owned(),
        source,
    })
}

/// A specification of another major version may mean anything.
fn check_version(spec: &Value) -> Result<(), OciError> {
    let version = spec["ociVersion"].as_str().unwrap_or_default();
    let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(1)), Some(Ok(_))) => Ok(()),
        _ => Err(invalid(&format!(
            "config.json: ociVersion {version:?} is not supported, {} is",
            super::SPEC_VERSION
        ))),
    }
}

/// What runc asks of a process, in its words.
pub(super) fn check_process(process: &Value) -> Result<(), OciError> {
    if !process.is_object() {
        return Err(invalid("process property must not be empty"));
    }
    match process["cwd"].as_str().unwrap_or_default() {
        "" => return Err(invalid("Cwd property must not be empty")),
        cwd if !cwd.starts_with('/') => return Err(invalid("Cwd must be an absolute path")),
        _ => {}
    }
    match process["args"].as_array() {
        Some(args) if !args.is_empty() => Ok(()),
        _ => Err(invalid("args must not be empty")),
    }
}

fn invalid(text: &str) -> OciError {
    OciError::Invalid(text.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn load(spec: &Value) -> Result<Bundle, OciError> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), spec.to_string()).unwrap();
        Bundle::load(dir.path())
    }

    fn spec() -> Value {
        json!({
            "ociVersion": "1.0.2-dev",
            "root": { "path": "rootfs" },
            "process": { "args": ["true"], "cwd": "/", "terminal": true },
        })
    }

    #[test]
    fn a_bundle_says_what_is_needed() {
        let bundle = load(&spec()).unwrap();
        assert!(bundle.terminal());
        assert_eq!(bundle.rootfs(), bundle.path.join("rootfs"));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (pointer, text) in [
            ("/process", "process property"),
            ("/process/cwd", "Cwd property"),
            ("/process/args", "args must"),
            ("/root/path", "root.path"),
            ("/ociVersion", "ociVersion"),
        ] {
            let mut spec = spec();
            *spec.pointer_mut(pointer).unwrap() = Value::Null;
            let err = load(&spec).unwrap_err().to_string();
            assert!(err.contains(text), "{err}");
        }
        let mut relative = spec();
        relative["process"]["cwd"] = json!("tmp");
        let err = load(&relative).unwrap_err().to_string();
        assert!(err.contains("absolute"), "{err}");
        let mut hooks = spec();
        hooks["hooks"] = json!({ "poststop": [{ "path": "sh" }] });
        let err = load(&hooks).unwrap_err().to_string();
        assert!(err.contains("poststop"), "{err}");
    }

    #[test]
    fn a_bundle_without_config_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let err = Bundle::load(dir.path()).unwrap_err();
        assert!(err.to_string().contains("config.json"), "{err}");
    }
}
