//! Where a spec's `linux.cgroupsPath` lies in the host's hierarchy.
//! <https://github.com/opencontainers/runtime-spec/blob/v1.2.0/config-linux.md#cgroups-path>
//!
//! `slice:prefix:name` is what engines give where systemd keeps the hierarchy; the
//! path is the one systemd would use: `a-b.slice` lies in `a.slice`.

use std::path::{Component, Path, PathBuf};

use thiserror::Error;

/// Where systemd puts a unit that names no slice.
const DEFAULT_SLICE: &str = "system.slice";
const ROOT_SLICE: &str = "-.slice";

#[derive(Debug, Error, PartialEq, Eq)]
pub enum CgroupPathError {
    #[error("linux.cgroupsPath {path:?}: {what}")]
    Path { path: String, what: &'static str },
}

/// The cgroup that a path names. Relative ones lie below `own`.
pub fn cgroup_path(path: &str, hierarchy: &Path, own: &Path) -> Result<PathBuf, CgroupPathError> {
    let wrong = |what| CgroupPathError::Path {
        path: path.to_owned(),
        what,
    };
    if let [slice, prefix, name] = path.split(':').collect::<Vec<_>>()[..] {
        return Ok(hierarchy.join(systemd_path(slice, prefix, name).map_err(wrong)?));
    }
    let base = if path.starts_with('/') {
        hierarchy
    } else {
        own
    };
    let mut joined = base.to_owned();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => joined.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(wrong("it must not lead out of its hierarchy"));
            }
        }
    }
    if joined == base {
        return Err(wrong("it names no cgroup below the root"));
    }
    Ok(joined)
}

fn systemd_path(slice: &str, prefix: &str, name: &str) -> Result<PathBuf, &'static str> {
    if name.is_empty() || [slice, prefix, name].iter().any(|part| part.contains('/')) {
        return Err("it is not of the form slice:prefix:name");
    }
    let slice = if slice.is_empty() {
        DEFAULT_SLICE
    } else {
        slice
    };
    let mut path = slice_path(slice)?;
    path.push(if name.strip_suffix(".slice").is_some() {
        name.to_owned()
    } else if prefix.is_empty() {
        format!("{name}.scope")
    } else {
        format!("{prefix}-{name}.scope")
    });
    Ok(path)
}

fn slice_path(slice: &str) -> Result<PathBuf, &'static str> {
    let mut path = PathBuf::new();
    if slice == ROOT_SLICE {
        return Ok(path);
    }
    let stem = slice
        .strip_suffix(".slice")
        .ok_or("its first part is not a slice")?;
    let mut nested = String::new();
    for part in stem.split('-') {
        if part.is_empty() {
            return Err("its slice has an empty part");
        }
        if !nested.is_empty() {
            nested.push('-');
        }
        nested.push_str(part);
        path.push(format!("{nested}.slice"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(path: &str) -> Result<String, String> {
        cgroup_path(path, Path::new("/h"), Path::new("/h/lazaret"))
            .map(|path| path.display().to_string())
            .map_err(|err| err.to_string())
    }

    #[test]
    fn each_form_has_its_place() {
        for (path, expected) in [
            ("/docker/abc", "/h/docker/abc"),
            ("/docker//abc/", "/h/docker/abc"),
            ("pod/abc", "/h/lazaret/pod/abc"),
            (
                "system.slice:docker:abc",
                "/h/system.slice/docker-abc.scope",
            ),
            (
                "user-1000.slice:libpod:abc",
                "/h/user.slice/user-1000.slice/libpod-abc.scope",
            ),
            (
                "a-b-c.slice:p:n",
                "/h/a.slice/a-b.slice/a-b-c.slice/p-n.scope",
            ),
            (":docker:abc", "/h/system.slice/docker-abc.scope"),
            ("-.slice::abc", "/h/abc.scope"),
            ("a.slice:p:b.slice", "/h/a.slice/b.slice"),
        ] {
            assert_eq!(at(path).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_named() {
        for (path, expected) in [
            ("/", "no cgroup below the root"),
            ("/docker/../..", "lead out"),
            ("../x", "lead out"),
            ("system:docker:abc", "not a slice"),
            ("a--b.slice:p:n", "empty part"),
            ("a.slice:p:", "slice:prefix:name"),
            ("a.slice:p:../../x", "slice:prefix:name"),
        ] {
            let err = at(path).unwrap_err();
            assert!(err.contains(expected) && err.contains(path), "{err}");
        }
    }
}
