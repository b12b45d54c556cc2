//! Settings of a spec that engines look for in the network namespace itself: those of
//! IPv6 for all interfaces, for new ones, and for the loopback. The guest's network has
//! them too, along with all others, which would be in the way of what the host does in
//! the namespace.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use serde_json::Value;

const SETTINGS: &str = "/proc/sys/net/ipv6/conf";

/// What settings are written before what, since `all` changes the others.
const SCOPES: [&str; 3] = ["all", "default", "lo"];

/// Applies the settings of a spec in the thread's network namespace. An error comes with
/// the sysctl's name.
pub(super) fn set(spec: &Value) -> Result<(), (String, io::Error)> {
    let all = spec["linux"]["sysctl"].as_object().into_iter().flatten();
    let ours: BTreeMap<_, _> = all
        .filter_map(|(key, value)| Some((place(key)?, (key, value.as_str()?))))
        .collect();
    for ((scope, name), (key, value)) in ours {
        let path = Path::new(SETTINGS).join(SCOPES[scope]).join(name);
        write(&path, value).map_err(|source| (key.clone(), source))?;
    }
    Ok(())
}

/// In a system call of its own, as the kernel wants it; what is not there is not made.
fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(value.as_bytes())
}

/// Scope and name of a setting that is one of ours, in either spelling (sysctl.d(5)).
fn place(key: &str) -> Option<(usize, &str)> {
    let separator = key.chars().find(|c| ['.', '/'].contains(c))?;
    let mut parts = key.split(separator);
    let mut part = || parts.next();
    if [part()?, part()?, part()?] != ["net", "ipv6", "conf"] {
        return None;
    }
    let scope = part()?;
    let scope = SCOPES.iter().position(|known| *known == scope)?;
    let name = part()?;
    // A file's name, with nothing in it that would lead elsewhere.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (part().is_none() && !name.is_empty() && name.chars().all(is_plain)).then_some((scope, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_found_in_both_spellings_and_lead_nowhere_else() {
        assert_eq!(
            place("net.ipv6.conf.all.disable_ipv6"),
            Some((0, "disable_ipv6"))
        );
        assert_eq!(
            place("net/ipv6/conf/default/accept_ra"),
            Some((1, "accept_ra"))
        );
        assert_eq!(place("net.ipv6.conf.lo.mtu"), Some((2, "mtu")));
        for other in [
            "net.ipv4.ip_local_port_range",
            "net.ipv4.conf.all.forwarding",
            "net.ipv6.conf.eth0.disable_ipv6",
            "net.ipv6.conf.all",
            "net.ipv6.conf.all.",
            "net.ipv6.conf.all.//",
            "net.ipv6.conf.all.//.x",
            "net/ipv6/conf/all/..",
            "net/ipv6/conf/all/../x",
            "net.ipv6/conf.all.x",
            "",
        ] {
            assert_eq!(place(other), None, "{other}");
        }
    }
}
