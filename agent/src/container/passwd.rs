//! The home directory of a user, from the container's /etc/passwd: engines leave HOME
//! to the runtime. The file is the container's, so it is opened without waiting on a
//! FIFO and read up to a cap.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustix::fs::{FileType, OFlags, fstat};

use super::path::Root;

/// Far above any real user table; keeps a hostile image from filling memory.
const PASSWD_MAX: u64 = 1 << 20;

/// The user's home directory, `/` where none is known.
pub(crate) fn home_of(uid: u32) -> String {
    read_passwd()
        .and_then(|text| find(&text, uid))
        .unwrap_or_else(|| "/".to_owned())
}

fn read_passwd() -> Option<String> {
    let root = Root::of_process().ok()?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = root.open(Path::new("/etc/passwd"), flags).ok()?;
    if FileType::from_raw_mode(fstat(&file).ok()?.st_mode) != FileType::RegularFile {
        return None;
    }
    let mut text = Vec::new();
    File::from(file)
        .take(PASSWD_MAX)
        .read_to_end(&mut text)
        .ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn find(text: &str, uid: u32) -> Option<String> {
    text.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(uid))
        .find_map(|fields| fields.get(5).copied())
        .filter(|home| !home.is_empty())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_the_sixth_field_of_the_users_line() {
        let text = "root:x:0:0:root:/root:/bin/sh\nbroken\nme:x:7:7::/home/me:/bin/sh\n";
        assert_eq!(find(text, 0).as_deref(), Some("/root"));
        assert_eq!(find(text, 7).as_deref(), Some("/home/me"));
        assert_eq!(find(text, 8), None);
    }
}
