//! User namespaces: the mapping of a container's ids, and namespaces that exist only
//! to name a mapping (`user_namespaces(7)`, `mount_setattr(2)` "ID-mapped mounts").

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Mount};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Pid, Signal, pidfd_send_signal};

use super::mount::{MountOptions, Reach, map_ids, open_source};
use super::spawn;
use super::spec::has_namespace;
use crate::failure::{Failure, OrFail, Result};

/// Each is a descriptor of the agent while its container is being made.
const MAPPED_MOUNTS_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mappings {
    uids: Vec<LinuxIdMapping>,
    gids: Vec<LinuxIdMapping>,
}

impl Mappings {
    /// Those of the container's own user namespace.
    pub(crate) fn of(linux: &Linux) -> Result<Option<Self>> {
        let own = |list: &Option<Vec<_>>| list.clone().unwrap_or_default();
        let mappings = Self {
            uids: own(linux.uid_mappings()),
            gids: own(linux.gid_mappings()),
        };
        let given = !mappings.uids.is_empty() || !mappings.gids.is_empty();
        if !has_namespace(linux, LinuxNamespaceType::User) {
            if given {
                return Err(Failure::invalid(
                    "linux.uidMappings and gidMappings need a user namespace in linux.namespaces",
                ));
            }
            return Ok(None);
        }
        for (name, map) in [("uid", &mappings.uids), ("gid", &mappings.gids)] {
            if translate(map, 0).is_none() {
                return Err(Failure::invalid(format!(
                    "a user namespace needs a {name} mapping for 0"
                )));
            }
        }
        Ok(Some(mappings))
    }

    /// Who a user of the container is outside.
    pub(crate) fn outer_uid(&self, uid: u32) -> Result<u32> {
        translate(&self.uids, uid).ok_or_else(|| {
            Failure::invalid(format!(
                "process.user.uid {uid} is not in linux.uidMappings"
            ))
        })
    }

    pub(crate) fn write(&self, pid: Pid) -> Result<()> {
        for (file, map) in [("uid_map", &self.uids), ("gid_map", &self.gids)] {
            let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
            fs::write(&path, text(map)).or_fail(|| format!("write the user namespace's {file}"))?;
        }
        Ok(())
    }

    /// A namespace with this mapping and nobody in it.
    fn namespace(&self) -> Result<OwnedFd> {
        let holder = spawn::hold_user_namespace()?;
        let made = self.write(holder.pid).and_then(|()| {
            let path = format!("/proc/{}/ns/user", holder.pid.as_raw_nonzero());
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            openat(CWD, path, flags, Mode::empty()).or_fail(|| "open a user namespace")
        });
        // The reaper collects it.
        let _ = pidfd_send_signal(&holder.pidfd, Signal::KILL);
        made
    }
}

/// The sources of a spec's id-mapped mounts with their places in its list: detached
/// mounts, made by the agent because a container's own root may not map ids of a file
/// system that is not the container's.
pub(crate) fn mapped_mounts(
    mounts: &[Mount],
    container: Option<&Mappings>,
) -> Result<Vec<(usize, OwnedFd)>> {
    let mut all = Vec::new();
    for (place, mount) in mounts.iter().enumerate() {
        let options = MountOptions::parse(mount.options().as_deref().unwrap_or_default())?;
        let own = |map: &Option<Vec<_>>| map.clone().unwrap_or_default();
        let (uids, gids) = (own(mount.uid_mappings()), own(mount.gid_mappings()));
        if options.id_map.is_none() && uids.is_empty() {
            continue;
        }
        let destination = mount.destination().display();
        let doing = || format!("map the ids of the mount on {destination}");
        if options.bind.is_none() && mount.typ().as_deref() != Some("bind") {
            return Err(Failure::unsupported(format!(
                "an id mapping of the mount on {destination}, which is no bind mount,"
            )));
        }
        if all.len() == MAPPED_MOUNTS_MAX {
            return Err(Failure::invalid(format!(
                "more than {MAPPED_MOUNTS_MAX} id-mapped mounts"
            )));
        }
        let mappings = match (uids.is_empty(), container) {
            (false, _) => Mappings { uids, gids },
            (true, Some(container)) => container.clone(),
            (true, None) => {
                return Err(Failure::invalid(format!(
                    "the mount on {destination} has neither id mappings nor a user namespace \
                     to take them from"
                )));
            }
        };
        let made = open_source(mount, &options)?;
        let reach = options.id_map.unwrap_or(Reach::One);
        let mapped = map_ids(&made, &mappings.namespace()?, reach);
        if mapped
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::InvalidInput)
        {
            return Err(Failure::unsupported(format!(
                "an id mapping of the mount on {destination}, whose file system takes none,"
            )));
        }
        mapped.or_fail(doing)?;
        all.push((place, made));
    }
    Ok(all)
}

fn translate(map: &[LinuxIdMapping], id: u32) -> Option<u32> {
    map.iter().find_map(|range| {
        let offset = id.checked_sub(range.container_id())?;
        (offset < range.size()).then(|| range.host_id().checked_add(offset))?
    })
}

fn text(map: &[LinuxIdMapping]) -> String {
    let line = |range: &LinuxIdMapping| {
        let (inner, outer) = (range.container_id(), range.host_id());
        [inner, outer, range.size()]
            .map(|number| number.to_string())
            .join(" ")
            + "\n"
    };
    map.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mappings(linux: Value) -> Result<Option<Mappings>> {
        Mappings::of(&serde_json::from_value(linux).expect("a linux part"))
    }

    fn map(inner: u32, outer: u32, size: u32) -> Value {
        json!([{ "containerID": inner, "hostID": outer, "size": size }])
    }

    #[test]
    fn ids_are_translated_by_the_range_they_are_in() {
        let linux = json!({ "namespaces": [{ "type": "user" }],
                            "uidMappings": map(0, 1000, 10), "gidMappings": map(0, 2000, 10) });
        let mappings = mappings(linux).expect("valid").expect("a namespace");
        assert_eq!(mappings.outer_uid(7), Ok(1007));
        mappings.outer_uid(10).expect_err("outside of the range");
        assert_eq!(text(&mappings.gids), "0 2000 10\n");
    }

    #[test]
    fn namespace_and_mappings_need_each_other() {
        mappings(json!({ "uidMappings": map(0, 1, 1) })).expect_err("no namespace");
        let bare = json!({ "namespaces": [{ "type": "user" }] });
        mappings(bare).expect_err("no mappings");
        let linux = json!({ "namespaces": [{ "type": "user" }],
                            "uidMappings": map(1, 1, 1), "gidMappings": map(0, 1, 1) });
        mappings(linux).expect_err("no root");
        assert_eq!(mappings(json!({})), Ok(None));
    }
}
