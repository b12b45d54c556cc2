//! What lazaret has on the machine: processes, mounts, cgroups, interfaces, files; and the cgroups of
//! engines' containers. Two snapshots tell what a test left behind.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use crate::lazaret::Lazaret;

/// How long things may take to go that nobody waited for (`run -d --rm`).
const SETTLE: Duration = Duration::from_secs(60);

/// One line a thing. Processes count by their program; images count as files of the store; the
/// directories that hold nothing but structure, and the locks in them, do not count.
const LIST: &str = r#"
ps -eo pid=,args= | awk '{ sub(".*/", "", $2) }
    $2 ~ /^\[?(lazaret|lazaret-oci|lazaret-vmm|containerd-shim-laz.*)\]?$/ { print "process", $0 }'
awk '$2 ~ /lazaret/ && $2 !~ /lazaret-e2e/ && $3 != "9p" { print "mount", $2, $3 }' /proc/mounts
{ find /sys/fs/cgroup/{lazaret,docker} -mindepth 1 -type d
    find /sys/fs/cgroup/libpod_parent -type d -name 'libpod-*'; } 2>/dev/null | sed 's/^/cgroup /'
find /sys/class/net -name 'lz*' | sed 's/^/interface /'
find /run/lazaret /var/lib/lazaret /tmp /var/tmp /dev/shm -mindepth 1 -maxdepth 3 2>/dev/null |
    grep lazaret | grep -v /tmp/lazaret-e2e | sed 's/^/file /' |
    grep -vxE 'file (/run/lazaret(/sandboxes|/oci|/attach(/lock)?)?|/var/lib/lazaret/(images|containers(/names|/lock)?))'
exit 0
"#;

/// A snapshot.
#[derive(Debug)]
pub(crate) struct Leftovers(BTreeSet<String>);

impl Leftovers {
    pub(crate) fn now(lazaret: &Lazaret) -> Self {
        Self(lazaret.sh(LIST).lines().map(str::to_owned).collect())
    }

    /// What is there and was not at the time of this snapshot, once nothing goes any more.
    pub(crate) fn since(&self, lazaret: &Lazaret) -> Vec<String> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let now = Self::now(lazaret);
            let left: Vec<_> = now.0.difference(&self.0).cloned().collect();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            thread::sleep(Duration::from_millis(300));
        }
    }
}
