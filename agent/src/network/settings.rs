//! Settings of one interface, the files below `/proc/sys/net/{ipv4,ipv6}/conf/<name>`,
//! as far as they have nothing to do with its addresses.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use lazaret_protocol::agent as proto;

use crate::failure::{Failure, OrFail, Result};

/// Of a name and of a value.
const LENGTH_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    ipv6: bool,
    /// A plain file name.
    name: String,
    value: String,
}

impl Setting {
    pub(super) fn read(entry: &proto::InterfaceSetting, interface: &str) -> Result<Self> {
        let proto::InterfaceSetting {
            ipv6, name, value, ..
        } = entry;
        if !is_word(name, "_") {
            let text = format!("{interface}: setting {name:?}");
            return Err(Failure::invalid(text));
        }
        if !is_word(value, "_-+.:") {
            let text = format!("{interface}: value {value:?} of {name}");
            return Err(Failure::invalid(text));
        }
        Ok(Self {
            ipv6: *ipv6,
            name: name.clone(),
            value: value.clone(),
        })
    }

    fn is_same_file(&self, other: &Self) -> bool {
        self.ipv6 == other.ipv6 && self.name == other.name
    }

    fn path(&self, interface: &str) -> PathBuf {
        let family = if self.ipv6 { "ipv6" } else { "ipv4" };
        Path::new("/proc/sys/net")
            .join(family)
            .join("conf")
            .join(interface)
            .join(&self.name)
    }

    fn write(&self, interface: &str, value: &str) -> Result<()> {
        let path = self.path(interface);
        match fs::write(&path, value) {
            // Kernels differ in what they have.
            Err(err) if err.kind() == ErrorKind::NotFound => {
                let path = path.display();
                tracing::warn!("no {path} in the guest: {value} is not set");
                Ok(())
            }
            result => result.or_fail(|| format!("write {value} to {}", path.display())),
        }
    }

    /// What a new interface has.
    fn restore(&self, interface: &str) -> Result<()> {
        match fs::read_to_string(self.path("default")) {
            Ok(value) => self.write(interface, value.trim()),
            // It was not set either.
            Err(err) if err.kind() == ErrorKind::NotFound => Ok(()),
            Err(err) => Err(err).or_fail(|| format!("read the default of {}", self.name)),
        }
    }
}

/// Has `interface` go from the settings `set` to those `wished`.
pub(super) fn change(interface: &str, set: &[Setting], wished: &[Setting]) -> Result<()> {
    for old in set {
        if !wished.iter().any(|new| new.is_same_file(old)) {
            old.restore(interface)?;
        }
    }
    for new in wished {
        if !set.contains(new) {
            new.write(interface, &new.value)?;
        }
    }
    Ok(())
}

fn is_word(text: &str, others: &str) -> bool {
    let plain = |char: char| char.is_ascii_alphanumeric() || others.contains(char);
    (1..=LENGTH_MAX).contains(&text.len()) && text.chars().all(plain)
}
