//! Settings of one interface: the files below `/proc/sys/net/ipv4/conf/<interface>` and
//! IPv6's, which engines write for `--sysctl net.ipv4.conf.eth0.…` and by themselves.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use lazaret_protocol::agent as proto;

use super::InterfaceError;

/// What is told otherwise, belongs to the link's state or cannot be read.
const IPV6_OWN: [&str; 6] = [
    "accept_dad",
    "accept_ra",
    "addr_gen_mode",
    "disable_ipv6",
    "mtu",
    "stable_secret",
];

/// A file that differs from what a new interface of the namespace has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Setting {
    ipv6: bool,
    name: String,
    value: String,
}

impl Setting {
    pub(super) fn describe(&self) -> proto::InterfaceSetting {
        proto::InterfaceSetting {
            ipv6: self.ipv6,
            name: self.name.clone(),
            value: self.value.clone(),
            ..proto::InterfaceSetting::default()
        }
    }
}

/// A number of IPv6's; `None` where the kernel has no IPv6, or the interface has gone.
pub(super) fn setting(interface: &str, name: &str) -> Result<Option<u32>, InterfaceError> {
    let path = directory(true, interface).join(name);
    let text = there(fs::read_to_string(&path)).map_err(failed(&path))?;
    Ok(text.and_then(|text| text.trim().parse().ok()))
}

/// The interface's settings that somebody has changed, in an order that stays.
pub(super) fn changed(interface: &str) -> Result<Vec<Setting>, InterfaceError> {
    let mut settings = Vec::new();
    for ipv6 in [false, true] {
        let directory = directory(ipv6, interface);
        let Some(entries) = there(fs::read_dir(&directory)).map_err(failed(&directory))? else {
            continue;
        };
        for entry in entries {
            let Some(entry) = there(entry).map_err(failed(&directory))? else {
                break;
            };
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if ipv6 && IPV6_OWN.contains(&&*name) || !is_writable(&entry.path()) {
                continue;
            }
            let default = self::directory(ipv6, "default").join(&name);
            // A secret, or gone.
            let (Ok(value), Ok(default)) = (
                fs::read_to_string(entry.path()),
                fs::read_to_string(default),
            ) else {
                continue;
            };
            if value != default && !value.trim().is_empty() {
                let value = value.trim().to_owned();
                settings.push(Setting { ipv6, name, value });
            }
        }
    }
    settings.sort();
    Ok(settings)
}

fn directory(ipv6: bool, interface: &str) -> PathBuf {
    let family = if ipv6 { "ipv6" } else { "ipv4" };
    Path::new("/proc/sys/net")
        .join(family)
        .join("conf")
        .join(interface)
}

/// Others (`mc_forwarding`) are the kernel's word.
fn is_writable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o200 != 0)
}

/// `None` for what does not exist.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(err) if err.kind() == ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> InterfaceError {
    let path = path.display().to_string();
    move |source| InterfaceError::Setting { path, source }
}
