//! What a sandbox is made from besides the container's spec: the host's
//! configuration, the host's size, and the annotations that may change either.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde_json::Value;
use thiserror::Error;

/// Namespace of the `lazaret` command. Its annotations come from the command
/// itself; elsewhere anyone who writes a pod could set them.
pub const OWN_NAMESPACE: &str = "lazaret";

/// Sandboxes of `lazaret-oci`: one container each, whose end is theirs.
pub const OCI_NAMESPACE: &str = "oci";

const VCPUS: &str = "dev.lazaret.vcpus";
const MEMORY_MIB: &str = "dev.lazaret.memory-mib";
const LOG_PATH: &str = "dev.lazaret.log-path";
const AUTO_SHUTDOWN: &str = "dev.lazaret.auto-shutdown";

#[derive(Debug, Error)]
pub enum AnnotationError {
    #[error("annotation {name} is {value:?}, not {expected}")]
    Value {
        name: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("cannot read the host's memory size from /proc/meminfo")]
    HostMemory(#[source] io::Error),
}

/// Size of a microVM where neither annotations nor limits say more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    pub vcpus: u8,
    pub memory_mib: u32,
}

/// What the plan needs to know of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFacts {
    pub memory_mib: u32,
}

impl HostFacts {
    pub fn read() -> Result<Self, AnnotationError> {
        let text = fs::read_to_string("/proc/meminfo").map_err(AnnotationError::HostMemory)?;
        let kib = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))
            .and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok())
            .ok_or_else(|| AnnotationError::HostMemory(io::ErrorKind::InvalidData.into()))?;
        Ok(Self {
            memory_mib: u32::try_from(kib / 1024).unwrap_or(u32::MAX),
        })
    }
}

/// The `dev.lazaret.*` annotations of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    pub vcpus: Option<u8>,
    pub memory_mib: Option<u32>,
    /// Where the container's output is logged in Docker's json-file format.
    pub log_path: Option<PathBuf>,
    /// The sandbox ends with its container, and keeps only the state.
    pub auto_shutdown: bool,
}

impl Annotations {
    pub fn of(spec: &Value, namespace: &str) -> Result<Self, AnnotationError> {
        let get = |name: &str| spec["annotations"][name].as_str();
        let own = |name: &str| get(name).filter(|_| namespace == OWN_NAMESPACE);
        Ok(Self {
            vcpus: parse(VCPUS, get(VCPUS), "a number of processors")?,
            memory_mib: parse(MEMORY_MIB, get(MEMORY_MIB), "a number of MiB")?,
            log_path: match own(LOG_PATH).map(PathBuf::from) {
                Some(path) if !path.is_absolute() => {
                    return Err(AnnotationError::Value {
                        name: LOG_PATH,
                        value: path.display().to_string(),
                        expected: "an absolute path",
                    });
                }
                path => path,
            },
            auto_shutdown: parse(AUTO_SHUTDOWN, own(AUTO_SHUTDOWN), "true or false")?
                .unwrap_or(false),
        })
    }
}

fn parse<T: std::str::FromStr>(
    name: &'static str,
    value: Option<&str>,
    expected: &'static str,
) -> Result<Option<T>, AnnotationError> {
    let parsed = value.map(|value| {
        value.parse().map_err(|_| AnnotationError::Value {
            name,
            value: value.to_owned(),
            expected,
        })
    });
    parsed.transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn annotated(name: &str, value: &str) -> Value {
        json!({ "annotations": { name: value } })
    }

    #[test]
    fn no_annotations_change_nothing() {
        let none = Annotations::of(&json!({}), OWN_NAMESPACE).unwrap();
        assert_eq!(none, Annotations::default());
    }

    #[test]
    fn log_path_counts_in_the_own_namespace_only() {
        let spec = annotated(LOG_PATH, "/etc/passwd");
        assert_eq!(Annotations::of(&spec, "k8s.io").unwrap().log_path, None);
        let own = Annotations::of(&spec, OWN_NAMESPACE).unwrap();
        assert_eq!(own.log_path, Some("/etc/passwd".into()));
    }

    #[test]
    fn values_that_are_not_understood_are_named() {
        for (name, value) in [
            (VCPUS, "many"),
            (MEMORY_MIB, "1G"),
            (LOG_PATH, "log.json"),
            (AUTO_SHUTDOWN, "yes"),
        ] {
            let err = Annotations::of(&annotated(name, value), OWN_NAMESPACE).unwrap_err();
            assert!(err.to_string().contains(name), "{err}");
            assert!(err.to_string().contains(value), "{err}");
        }
    }
}
