//! The shim's command line, in Go's flag syntax: `-id x`, `-id=x`, `--id x`.

use std::ffi::OsString;
use std::path::PathBuf;

use thiserror::Error;

#[derive(Debug, Error, PartialEq, Eq)]
pub enum ArgsError {
    #[error("flag {0:?} is not known")]
    Unknown(String),
    #[error("flag -{0} needs a value")]
    NoValue(String),
    #[error("flag -{flag} is {value:?}, not true or false")]
    NotBool { flag: String, value: String },
    #[error("action {0:?} is not known: start, delete or none")]
    Action(String),
    #[error("argument {0:?} is not UTF-8")]
    Encoding(OsString),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Be the sandbox process.
    #[default]
    Serve,
    Start,
    Delete,
    Version,
    Info,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Args {
    pub action: Action,
    pub namespace: String,
    pub id: String,
    /// containerd's own socket.
    pub address: String,
    pub publish_binary: PathBuf,
    /// Working directory if not given.
    pub bundle: Option<PathBuf>,
    pub debug: bool,
}

impl Args {
    pub fn parse(args: impl Iterator<Item = OsString>) -> Result<Self, ArgsError> {
        let mut parsed = Self::default();
        let mut args = args.map(|arg| arg.into_string().map_err(ArgsError::Encoding));
        while let Some(arg) = args.next() {
            let arg = arg?;
            let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                parsed.action = match arg.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    _ => return Err(ArgsError::Action(arg)),
                };
                break;
            };
            let (flag, value) = match flag.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (flag, None),
            };
            if let Some(action) = switch(flag) {
                if truth(flag, value)? {
                    match action {
                        Switch::Debug => parsed.debug = true,
                        Switch::Act(action) => parsed.action = action,
                    }
                }
                continue;
            }
            let mut value = || match value.clone() {
                Some(value) => Ok(value),
                None => args
                    .next()
                    .unwrap_or_else(|| Err(ArgsError::NoValue(flag.to_owned()))),
            };
            match flag {
                "namespace" => parsed.namespace = value()?,
                "id" => parsed.id = value()?,
                "address" => parsed.address = value()?,
                "publish-binary" => parsed.publish_binary = value()?.into(),
                "bundle" => parsed.bundle = Some(value()?.into()),
                // containerd names a socket in debugging only; the place of ours is fixed.
                "socket" => drop(value()?),
                _ => return Err(ArgsError::Unknown(arg)),
            }
        }
        Ok(parsed)
    }
}

/// A flag without a value.
enum Switch {
    Debug,
    Act(Action),
}

fn switch(flag: &str) -> Option<Switch> {
    match flag {
        "debug" => Some(Switch::Debug),
        "v" | "version" => Some(Switch::Act(Action::Version)),
        "info" => Some(Switch::Act(Action::Info)),
        _ => None,
    }
}

fn truth(flag: &str, value: Option<String>) -> Result<bool, ArgsError> {
    match value.as_deref() {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(_) => Err(ArgsError::NotBool {
            flag: flag.to_owned(),
            value: value.unwrap_or_default(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, ArgsError> {
        Args::parse(args.iter().map(OsString::from))
    }

    #[test]
    fn the_line_containerd_uses_is_understood() {
        let args = parse(&[
            "-namespace",
            "k8s.io",
            "-id",
            "abc",
            "-address",
            "/run/containerd.sock",
            "-publish-binary",
            "/usr/bin/containerd",
            "-bundle=/b",
            "-debug",
            "start",
        ]);
        let expected = Args {
            action: Action::Start,
            namespace: "k8s.io".into(),
            id: "abc".into(),
            address: "/run/containerd.sock".into(),
            publish_binary: "/usr/bin/containerd".into(),
            bundle: Some("/b".into()),
            debug: true,
        };
        assert_eq!(args, Ok(expected));
    }

    #[test]
    fn an_empty_value_is_a_value() {
        let args = parse(&["-address", "", "-id", "x", "delete"]).unwrap();
        assert_eq!((args.address.as_str(), args.id.as_str()), ("", "x"));
        assert_eq!(args.action, Action::Delete);
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(parse(&["-x"]), Err(ArgsError::Unknown("-x".into())));
        assert_eq!(parse(&["-id"]), Err(ArgsError::NoValue("id".into())));
        assert_eq!(parse(&["stop"]), Err(ArgsError::Action("stop".into())));
        assert!(matches!(
            parse(&["-debug=maybe"]),
            Err(ArgsError::NotBool { .. })
        ));
    }

    #[test]
    fn version_and_info_are_actions() {
        assert_eq!(parse(&["-v"]).unwrap().action, Action::Version);
        assert_eq!(parse(&["--info"]).unwrap().action, Action::Info);
        assert_eq!(parse(&[]).unwrap().action, Action::Serve);
    }
}
