//! The pid file that engines read to know their container's process: there
//! whole or not at all.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::failure::OciError;

pub(super) fn write(path: &Path, pid: u32) -> Result<(), OciError> {
    let failed = |source| OciError::Io {
        verb: "write the pid file",
        path: path.to_owned(),
        source,
    };
    let name = path
        .file_name()
        .ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let temporary = path.with_file_name(hidden);
    // A killed writer's leftover, or somebody's link: what it leads to is not ours.
    let _ = std::fs::remove_file(&temporary);
    let written = std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&temporary)
        .and_then(|mut file| write!(file, "{pid}"))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|source| {
        // What is left of it is of no use to anyone.
        let _ = std::fs::remove_file(&temporary);
        failed(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_the_number_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("init.pid");
        write(&path, 7).unwrap();
        write(&path, 42).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "42");
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 1);
        let precious = dir.path().join("precious");
        std::fs::write(&precious, "kept").unwrap();
        std::os::unix::fs::symlink(&precious, dir.path().join(".init.pid")).unwrap();
        write(&path, 43).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "43");
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "kept");
        let err = write(&dir.path().join("none/pid"), 1).unwrap_err();
        assert!(err.to_string().contains("none/pid"), "{err}");
    }
}
