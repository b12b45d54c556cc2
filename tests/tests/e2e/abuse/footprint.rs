//! All there is on the machine that containers may add to, whoever it belongs to: compared before
//! and after, it has to be the same to the last line.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use lazaret_tests::Lazaret;

/// How long the kernel may take with what nobody waits for: cgroups, namespaces, orphans.
const SETTLE: Duration = Duration::from_secs(60);

/// One line a thing, but for the directories that the first container makes for all and namespaces
/// that Docker takes away when it has time. Of processes
/// their program counts, and of those that stay what they hold open; connections of the tests
/// themselves come and go.
const LIST: &str = r#"
ps -eo comm= | grep -vxE 'sshd.*|bash|sh|ps|awk|sort|sed|find|grep|xargs|readlink|timeout|perl|kworker.*' |
    sed 's/^/process /'
sed 's/^/mount /' /proc/mounts
find /sys/fs/cgroup -type d | sed 's/^/cgroup /'
ls /sys/class/net | sed 's/^/interface /'
readlink /proc/[0-9]*/ns/net /proc/[0-9]*/ns/mnt 2>/dev/null | sort -u | sed 's/:.*//; s/^/namespace /'
find /run /dev/shm /var/lib/lazaret /tmp -xdev 2>/dev/null | grep -vE '/run/sshd|/run/docker/netns' |
    grep -vxE '/run/lazaret(/oci|/sandboxes)?' | sed 's/^/file /'
for pid in $(pgrep -x lazaret-vmm; pgrep -f '^[^ ]*containerd-shim-lazaret-v2'); do
    readlink /proc/$pid/fd/* | sed 's/[0-9]\{2,\}/N/g' | sort | uniq -c | sed "s/^/open in $pid /"
    grep -c . /proc/$pid/maps | sed "s/^/mappings of $pid /"
    ls /proc/$pid/task | wc -l | sed "s/^/threads of $pid /"
done
exit 0
"#;

/// Each line, and how often it is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Footprint(BTreeMap<String, usize>);

impl Footprint {
    pub(super) fn of(lazaret: &Lazaret) -> Self {
        let mut lines = BTreeMap::new();
        for line in lazaret.sh(LIST).lines() {
            *lines.entry(line.to_owned()).or_default() += 1;
        }
        Self(lines)
    }

    /// Asserts that this is again all there is.
    #[track_caller]
    pub(super) fn assert_again(&self, lazaret: &Lazaret) {
        let deadline = Instant::now() + SETTLE;
        loop {
            let now = Self::of(lazaret);
            if now == *self {
                return;
            }
            let changed = now.differences(self);
            assert!(Instant::now() < deadline, "not as before:\n{changed}");
            thread::sleep(Duration::from_millis(300));
        }
    }

    fn differences(&self, before: &Self) -> String {
        let count = |of: &Self, line: &String| of.0.get(line).copied().unwrap_or_default();
        let lines = self.0.keys().chain(before.0.keys());
        let changed = lines.filter(|line| count(self, line) != count(before, line));
        let mut texts: Vec<_> = changed
            .map(|line| format!("{} -> {} {line}", count(before, line), count(self, line)))
            .collect();
        texts.sort();
        texts.dedup();
        texts.join("\n")
    }
}
