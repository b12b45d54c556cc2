//! OCI mount options (config.md, "Linux mount options") taken apart into what the
//! kernel's mount calls want: attributes of the mount, its propagation, and
//! parameters of the file system.

use super::kernel::Reach;
use crate::failure::{Failure, Result};

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const ATIME_MASK: u64 = libc::MOUNT_ATTR__ATIME;
const NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
const NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
const NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;

/// Attributes to set and to clear on a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

impl Attributes {
    pub(crate) const READ_ONLY: Self = Self {
        set: RDONLY,
        clear: 0,
    };

    pub(crate) fn is_read_only(self) -> bool {
        self.set & RDONLY != 0
    }

    /// The same, but for writes.
    pub(crate) fn writable(mut self) -> Self {
        self.off(RDONLY);
        self
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    fn on(&mut self, flag: u64) {
        self.set |= flag;
        self.clear &= !flag;
    }

    fn off(&mut self, flag: u64) {
        self.clear |= flag;
        self.set &= !flag;
    }

    /// Access time settings exclude one another: the field is cleared, then set.
    fn access_time(&mut self, flag: u64) {
        self.set = (self.set & !ATIME_MASK) | flag;
        self.clear |= ATIME_MASK;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Propagation {
    pub(crate) kind: u64,
    pub(crate) recursive: bool,
}

impl Propagation {
    /// `rslave` and its seven relatives.
    pub(crate) fn parse(word: &str) -> Option<Self> {
        let (recursive, kind) = match word.strip_prefix('r') {
            Some(kind) => (true, kind),
            None => (false, word),
        };
        let kind = match kind {
            "private" => libc::MS_PRIVATE,
            "slave" => libc::MS_SLAVE,
            "shared" => libc::MS_SHARED,
            "unbindable" => libc::MS_UNBINDABLE,
            _ => return None,
        };
        Some(Self { kind, recursive })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bind {
    Single,
    Recursive,
}

/// A parameter of a file system, as key or key=value.
pub(crate) type Parameter = (String, Option<String>);

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    pub(crate) bind: Option<Bind>,
    /// Changes what is mounted there, rather than mount on it.
    pub(crate) remount: bool,
    /// Starts a tmpfs with what it covers.
    pub(crate) copy_up: bool,
    pub(crate) id_map: Option<Reach>,
    pub(crate) attributes: Attributes,
    pub(crate) recursive_attributes: Attributes,
    pub(crate) propagation: Vec<Propagation>,
    pub(crate) parameters: Vec<Parameter>,
}

impl MountOptions {
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self::default();
        for word in words {
            options.add(word)?;
        }
        Ok(options)
    }

    fn add(&mut self, word: &str) -> Result<()> {
        if let Some(propagation) = Propagation::parse(word) {
            self.propagation.push(propagation);
            return Ok(());
        }
        if apply(&mut self.attributes, word) {
            return Ok(());
        }
        if let Some(word) = word.strip_prefix('r')
            && apply(&mut self.recursive_attributes, word)
        {
            return Ok(());
        }
        match word {
            // What every mount is that does not say otherwise; `silent` and `loud` are
            // about the kernel's log.
            "defaults" | "async" | "loud" | "silent" | "nomand" | "noiversion" | "nolazytime" => {}
            "bind" => self.bind = Some(Bind::Single),
            "rbind" => self.bind = Some(Bind::Recursive),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.id_map = Some(Reach::One),
            "ridmap" => self.id_map = Some(Reach::Tree),
            // The kernel has taken no heed of it since 5.15.
            "mand" => return Err(Failure::unsupported("mount option mand")),
            _ => self.parameters.push(match word.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (word.to_owned(), None),
            }),
        }
        Ok(())
    }
}

/// Whether the word is an attribute of mounts; applies it if so.
fn apply(attributes: &mut Attributes, word: &str) -> bool {
    match word {
        "ro" => attributes.on(RDONLY),
        "rw" => attributes.off(RDONLY),
        "nosuid" => attributes.on(NOSUID),
        "suid" => attributes.off(NOSUID),
        "nodev" => attributes.on(NODEV),
        "dev" => attributes.off(NODEV),
        "noexec" => attributes.on(NOEXEC),
        "exec" => attributes.off(NOEXEC),
        "nodiratime" => attributes.on(NODIRATIME),
        "diratime" => attributes.off(NODIRATIME),
        "nosymfollow" => attributes.on(NOSYMFOLLOW),
        "symfollow" => attributes.off(NOSYMFOLLOW),
        "noatime" => attributes.access_time(NOATIME),
        "strictatime" => attributes.access_time(STRICTATIME),
        // Relative access times are the kernel's default and the field's zero.
        "relatime" | "atime" | "nostrictatime" | "norelatime" => attributes.access_time(0),
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<MountOptions> {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        MountOptions::parse(&words)
    }

    #[test]
    fn later_option_wins() {
        let options = parse(&["ro", "rw", "noatime", "strictatime"]).expect("known options");
        assert_eq!(options.attributes.set, STRICTATIME);
        assert_eq!(options.attributes.clear, RDONLY | ATIME_MASK);
    }

    #[test]
    fn recursive_attributes_are_kept_apart() {
        let options = parse(&["rbind", "rro", "rprivate"]).expect("known options");
        assert_eq!(options.bind, Some(Bind::Recursive));
        assert!(options.attributes.is_empty());
        assert_eq!(options.recursive_attributes, Attributes::READ_ONLY);
        let expected = Propagation {
            kind: libc::MS_PRIVATE,
            recursive: true,
        };
        assert_eq!(options.propagation, [expected]);
    }

    #[test]
    fn unknown_words_are_file_system_parameters() {
        let options = parse(&["mode=755", "newinstance"]).expect("parameters");
        let expected = [
            ("mode".to_owned(), Some("755".to_owned())),
            ("newinstance".to_owned(), None),
        ];
        assert_eq!(options.parameters, expected);
    }

    #[test]
    fn every_option_that_callers_are_told_of_is_known() {
        // Flags of the file system, which the kernel takes as its parameters.
        let flags = ["dirsync", "lazytime", "sync"];
        for option in lazaret_protocol::features::MOUNT_OPTIONS {
            let options = parse(&[option]).expect("a listed option");
            let is_known = options.parameters.is_empty() || flags.contains(option);
            assert!(is_known, "{option}");
        }
    }

    #[test]
    fn unsupported_option_is_named() {
        let failure = parse(&["mand"]).expect_err("unsupported");
        assert_eq!(failure.message, "mount option mand is not supported");
    }
}
