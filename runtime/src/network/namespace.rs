//! The network namespace that a sandbox process lives in: the one its container's spec
//! names, or a new one. Engines find it by the process's id.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use lazaret_netlink::{Link, LinkChange, LinkFlags, Socket};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::io::Errno;
use serde_json::Value;
use thiserror::Error;

use super::claim::Claim;
use super::{sysctl, tie};

const OWN: &str = "/proc/self/ns/net";

#[derive(Debug, Error)]
pub enum NamespaceError {
    #[error("linux.namespaces has no network namespace: a microVM cannot share the host's network")]
    HostNetwork,
    #[error("{} is the host's own network namespace, which a microVM cannot share", .0.display())]
    HostNamespace(PathBuf),
    #[error("{} is no network namespace", .0.display())]
    NotOne(PathBuf),
    #[error("cannot join the network namespace {}", path.display())]
    Join { path: PathBuf, source: io::Error },
    #[error(
        "{} belongs to another microVM: a network namespace cannot be shared between microVMs",
        .0.display()
    )]
    Claimed(PathBuf),
    #[error("cannot claim the network namespace {}", path.display())]
    Claim { path: PathBuf, source: io::Error },
    #[error("cannot clear the network namespace {}", path.display())]
    Clear { path: PathBuf, source: io::Error },
    #[error("cannot make a network namespace")]
    New(#[source] io::Error),
    #[error("cannot bring up the loopback of the new network namespace")]
    Loopback(#[source] io::Error),
    #[error("cannot set sysctl {key} in the network namespace")]
    Setting { key: String, source: io::Error },
}

/// Takes the calling thread, and what it starts from now on, into the spec's network
/// namespace, whose settings engines find as the spec wants them. It is the microVM's
/// for as long as the claim is held.
pub fn enter(spec: &Value) -> Result<Claim, NamespaceError> {
    let namespaces = spec["linux"]["namespaces"].as_array();
    let network = namespaces
        .into_iter()
        .flatten()
        .find(|namespace| namespace["type"] == "network")
        .ok_or(NamespaceError::HostNetwork)?;
    let claim = match network["path"].as_str().filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = Path::new(path);
            join(path)?;
            claim(path)?
        }
        None => make()?,
    };
    sysctl::set(spec).map_err(|(key, source)| NamespaceError::Setting { key, source })?;
    Ok(claim)
}

fn join(path: &Path) -> Result<(), NamespaceError> {
    let failed = |source| NamespaceError::Join {
        path: path.to_owned(),
        source,
    };
    let namespace = File::open(path).map_err(failed)?;
    let wanted = namespace.metadata().map_err(failed)?;
    let own = fs::metadata(OWN).map_err(failed)?;
    if (wanted.dev(), wanted.ino()) == (own.dev(), own.ino()) {
        return Err(NamespaceError::HostNamespace(path.to_owned()));
    }
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|err| match err {
        nix::Error::EINVAL => NamespaceError::NotOne(path.to_owned()),
        err => failed(err.into()),
    })
}

fn claim(path: &Path) -> Result<Claim, NamespaceError> {
    Claim::take().map_err(|err| match err {
        Errno::ADDRINUSE => NamespaceError::Claimed(path.to_owned()),
        err => NamespaceError::Claim {
            path: path.to_owned(),
            source: err.into(),
        },
    })
}

/// Others may be sent into it later.
fn make() -> Result<Claim, NamespaceError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|err| NamespaceError::New(err.into()))?;
    loopback_up().map_err(|err| NamespaceError::Loopback(err.into()))?;
    claim(Path::new(OWN))
}

/// Removes what a sandbox that was killed has left in the spec's network namespace,
/// where that is a named one, which stays.
pub fn clear(spec: &Value) -> Result<(), NamespaceError> {
    let namespaces = spec["linux"]["namespaces"].as_array();
    let path = namespaces
        .into_iter()
        .flatten()
        .find(|namespace| namespace["type"] == "network")
        .and_then(|namespace| namespace["path"].as_str());
    let Some(path) = path.filter(|path| !path.is_empty()) else {
        return Ok(());
    };
    let path = PathBuf::from(path);
    let clearing = thread::spawn(move || {
        // Engines may have removed it already.
        match join(&path) {
            Err(NamespaceError::Join { source, .. }) if source.kind() == ErrorKind::NotFound => {
                return Ok(());
            }
            result => result?,
        }
        tie::clear().map_err(|err| NamespaceError::Clear {
            path,
            source: err.into(),
        })
    });
    clearing.join().unwrap_or(Ok(()))
}

/// Engines' name servers listen on it.
fn loopback_up() -> Result<(), Errno> {
    let mut socket = Socket::open()?;
    let up = LinkChange {
        up: Some(true),
        ..LinkChange::default()
    };
    let links = Link::list(&mut socket)?;
    let mut loopbacks = links
        .iter()
        .filter(|link| link.flags.contains(LinkFlags::LOOPBACK));
    loopbacks.try_for_each(|link| up.apply(&mut socket, link.index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entered(namespaces: &Value) -> NamespaceError {
        let spec = json!({ "linux": { "namespaces": namespaces } });
        enter(&spec).unwrap_err()
    }

    #[test]
    fn the_hosts_network_is_refused_in_every_form() {
        let none = entered(&json!([{ "type": "pid" }]));
        assert!(matches!(none, NamespaceError::HostNetwork), "{none}");
        let own = entered(&json!([{ "type": "network", "path": OWN }]));
        assert!(matches!(own, NamespaceError::HostNamespace(_)), "{own}");
    }

    #[test]
    fn what_is_no_network_namespace_is_named() {
        let missing = entered(&json!([{ "type": "network", "path": "/no/such" }]));
        assert!(missing.to_string().contains("/no/such"), "{missing}");
        for path in ["/dev/null", "/proc/self/ns/uts"] {
            let other = entered(&json!([{ "type": "network", "path": path }]));
            assert!(matches!(other, NamespaceError::NotOne(_)), "{other}");
        }
    }
}
