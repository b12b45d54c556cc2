//! Flags that a bind mount has from the mount its source is on. They hold on the host's
//! side of a volume, but it is the guest's kernel that runs its programs.

use std::path::Path;

use rustix::fs::{StatVfsMountFlags, statvfs};
use serde_json::Value;

const FLAGS: [(StatVfsMountFlags, &str); 3] = [
    (StatVfsMountFlags::NOSUID, "nosuid"),
    (StatVfsMountFlags::NODEV, "nodev"),
    (StatVfsMountFlags::NOEXEC, "noexec"),
];

/// Options for what is set at `source`. What cannot be looked at fails as it is mounted.
pub fn flags_of(source: &Path) -> Vec<&'static str> {
    let held = statvfs(source).map_or(StatVfsMountFlags::empty(), |found| found.f_flag);
    let set = FLAGS.iter().filter(|(flag, _)| held.contains(*flag));
    set.map(|(_, option)| *option).collect()
}

/// Puts options in front of a mount's own, which take back what they name.
pub(super) fn inherit(mount: &mut Value, flags: &[&'static str]) {
    if flags.is_empty() {
        return;
    }
    let own = mount["options"].as_array().cloned().unwrap_or_default();
    let flags = flags.iter().map(|flag| Value::from(*flag));
    mount["options"] = flags.chain(own).collect();
}
