//! Overlays that are mounted for a container (podman's `-v …:O` and
//! `--mount type=image`). As all paths of a spec, their directories are the host's, and
//! so is the mount: the guest binds what the host has merged.

use lazaret_protocol::features::MOUNT_OPTIONS;
use serde_json::Value;

use super::{BindOptions, Mounted, ReadOnly};

/// Known as options of every mount, but of its file system, not of where it is mounted.
const OF_THE_FILE_SYSTEM: [&str; 3] = ["dirsync", "lazytime", "sync"];

/// Whether the host is to mount it, rather than the guest to change what it has mounted.
pub(super) fn is_overlay(mount: &Value, options: &[&str]) -> bool {
    mount["type"] == "overlay" && !options.contains(&"remount")
}

/// What the host mounts.
pub(super) fn of(options: &[&str]) -> Mounted {
    let own = options.iter().filter(|option| !is_of_any_mount(option));
    Mounted::Overlay {
        options: own.map(|option| (*option).to_owned()).collect(),
        read_only: BindOptions::of(options).read_only != ReadOnly::No,
    }
}

/// Leaves to the guest a bind mount and its options.
pub(super) fn make_bind(mount: &mut Value) {
    mount["type"] = "bind".into();
    if let Some(options) = mount.get_mut("options").and_then(Value::as_array_mut) {
        options.retain(|option| option.as_str().is_none_or(is_of_any_mount));
    }
}

fn is_of_any_mount(option: &str) -> bool {
    MOUNT_OPTIONS.contains(&option) && !OF_THE_FILE_SYSTEM.contains(&option)
}
