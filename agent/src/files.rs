//! Forgetting files that the kernel remembers for no better reason than having room.

use std::fs;

use crate::failure::{Failure, OrFail, Result};

const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// Values of it (Documentation/admin-guide/sysctl/vm.rst).
const NAMES: &str = "2";
const NAMES_AND_DATA: &str = "3";
const WITHOUT_A_WORD: &str = "4";

/// Makes the kernel drop names and inodes that are not in use, until at most half of what
/// it remembers is left or all is in use.
pub(crate) fn forget_unused() -> Result<()> {
    drop_caches(WITHOUT_A_WORD)?;
    let enough = remembered()? / 2;
    // The first round passes over what was used lately, and an inode stays for as long as
    // data of it is cached.
    for what in [NAMES, NAMES, NAMES_AND_DATA, NAMES] {
        drop_caches(what)?;
        if remembered()? <= enough {
            break;
        }
    }
    Ok(())
}

fn drop_caches(what: &str) -> Result<()> {
    fs::write(DROP_CACHES, what).or_fail(|| format!("write {what} to {DROP_CACHES}"))
}

/// Inodes of all file systems.
fn remembered() -> Result<u64> {
    const PATH: &str = "/proc/sys/fs/inode-nr";
    let text = fs::read_to_string(PATH).or_fail(|| format!("read {PATH}"))?;
    let first = text.split_whitespace().next();
    first
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| Failure::internal(format!("{PATH} has no number: {text:?}")))
}
