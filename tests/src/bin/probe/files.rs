//! Many small files: written, renamed and hard-linked on one side of a volume, checked on the other.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// Files in one directory.
const PER_DIRECTORY: u64 = 100;

/// Makes `count` files: each is written under another name, renamed, and linked a second time.
pub(crate) fn make(root: &Path, count: u64) -> anyhow::Result<()> {
    for number in 0..count {
        let file = path(root, number, "file");
        if number % PER_DIRECTORY == 0 {
            let directory = file.parent().context("files are in directories")?;
            fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        }
        let temporary = path(root, number, "temporary");
        fs::write(&temporary, content(number)).with_context(|| temporary.display().to_string())?;
        fs::rename(&temporary, &file).with_context(|| file.display().to_string())?;
        let link = path(root, number, "link");
        fs::hard_link(&file, &link).with_context(|| link.display().to_string())?;
    }
    Ok(())
}

/// Checks that exactly these files are there, with their contents and links.
pub(crate) fn check(root: &Path, count: u64) -> anyhow::Result<()> {
    for number in 0..count {
        let file = path(root, number, "file");
        let link = path(root, number, "link");
        let found = fs::read(&file).with_context(|| file.display().to_string())?;
        ensure!(
            found == content(number),
            "{} has other content",
            file.display()
        );
        let (file, link) = (fs::metadata(&file)?, fs::metadata(&link)?);
        ensure!(
            file.ino() == link.ino(),
            "file {number} and its link are two files"
        );
        ensure!(
            file.nlink() == 2,
            "file {number} has {} links",
            file.nlink()
        );
    }
    let mut entries = 0;
    for directory in fs::read_dir(root)? {
        entries += fs::read_dir(directory?.path())?.count() as u64;
    }
    ensure!(entries == 2 * count, "{entries} names for {count} files");
    Ok(())
}

fn path(root: &Path, number: u64, kind: &str) -> PathBuf {
    root.join(format!("{:03}", number / PER_DIRECTORY))
        .join(format!("{kind}{number}"))
}

fn content(number: u64) -> Vec<u8> {
    format!("file {number}\n")
        .repeat(1 + usize::try_from(number % 40).unwrap_or(0))
        .into_bytes()
}
