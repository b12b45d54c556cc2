//! The container's root file system, from the spec's root directory to the root of
//! the process: mounts and devices, `pivot_root`, then everything that closes it down.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{Linux, Spec};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount, unmount,
};
use rustix::process::{fchdir, pivot_root};

use super::mount::{
    Attributes, Propagation, Reach, Unsealed, clone_tree, make_read_only, mask, mount,
    set_attributes, set_propagation,
};
use super::path::Root;
use super::{device, sysctl};
use crate::failure::{Failure, OrFail, Result};

/// Builds the root below `root.path` and makes it the root of this process, which
/// has a mount namespace of its own by now. Sources of some mounts are `prepared`, by
/// their place in the spec's list. Answers with what is left to be sealed.
pub(crate) fn enter(
    spec: &Spec,
    linux: &Linux,
    mut prepared: HashMap<usize, OwnedFd>,
) -> Result<Vec<Unsealed>> {
    let path = spec
        .root()
        .as_ref()
        .map(oci_spec::runtime::Root::path)
        .ok_or_else(|| Failure::invalid("the spec has no root"))?;
    // Nothing of the container may propagate to the guest's own mounts.
    mount_change(
        "/",
        MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM,
    )
    .or_fail(|| "cut mount propagation")?;
    let tree = attach_root(path)?;
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let root = Root::new(open_directory(tree.as_fd())?);
    let mut unsealed = Vec::new();
    for (place, entry) in mounts.iter().enumerate() {
        unsealed.extend(mount(&root, entry, prepared.remove(&place))?);
    }
    device::populate(
        &root,
        mounts,
        linux.devices().as_deref().unwrap_or_default(),
    )?;
    pivot(tree.as_fd())?;
    Ok(unsealed)
}

/// Mounts the root directory onto itself, as `pivot_root` wants a mount.
fn attach_root(path: &Path) -> Result<OwnedFd> {
    let doing = || format!("container root {}", path.display());
    let tree = clone_tree(CWD, path, Reach::Tree).or_fail(doing)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS
        | MoveMountFlags::MOVE_MOUNT_T_AUTOMOUNTS;
    move_mount(&tree, "", CWD, path, flags).or_fail(doing)?;
    Ok(tree)
}

fn open_directory(tree: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(tree, ".", flags, Mode::empty()).or_fail(|| "open the container root")
}

/// After this the guest's own mounts are out of reach: the old root is stacked on
/// the new one and detached.
fn pivot(tree: BorrowedFd<'_>) -> Result<()> {
    fchdir(tree).or_fail(|| "enter the container root")?;
    pivot_root(".", ".").or_fail(|| "pivot to the container root")?;
    unmount(".", UnmountFlags::DETACH).or_fail(|| "detach the guest root")?;
    rustix::process::chdir("/").or_fail(|| "enter the container root")
}

/// Closes the entered root down. Kernel settings come first: /proc/sys is among
/// the paths that become read-only.
pub(crate) fn seal(spec: &Spec, linux: &Linux, unsealed: Vec<Unsealed>) -> Result<()> {
    let root = Root::of_process()?;
    sysctl::set(&root, linux)?;
    for mount in unsealed {
        mount.seal()?;
    }
    for path in linux.readonly_paths().iter().flatten() {
        make_read_only(&root, Path::new(path))?;
    }
    for path in linux.masked_paths().iter().flatten() {
        mask(&root, Path::new(path))?;
    }
    let top = root
        .open(Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)
        .or_fail(|| "open the container root")?;
    let propagation = linux.rootfs_propagation().as_deref();
    if let Some(word) = propagation.filter(|word| !word.is_empty()) {
        let propagation = Propagation::parse(word)
            .ok_or_else(|| Failure::invalid(format!("rootfsPropagation {word} is unknown")))?;
        set_propagation(top.as_fd(), propagation).or_fail(|| "set rootfsPropagation")?;
    }
    if spec
        .root()
        .as_ref()
        .and_then(oci_spec::runtime::Root::readonly)
        == Some(true)
    {
        set_attributes(top.as_fd(), Attributes::READ_ONLY, Reach::One)
            .or_fail(|| "make the container root read-only")?;
    }
    Ok(())
}
