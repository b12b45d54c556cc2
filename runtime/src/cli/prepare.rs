//! From the image and the command line to a container on disk: its record, its
//! specification, its files.

use std::fs::DirBuilder;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use oci_spec::image::Config as ImageConfig;

use super::Host;
use super::failure::Failure;
use super::lifecycle::{Lifecycle, own_identity};
use super::run::Args;
use super::spec::{
    ProcessUser, SpecInput, check_limits, environment, read_env_file, read_env_flag, resolve_user,
    spec,
};
use super::stdio::{read_limited, write_file};
use crate::image::index::{ImageRecord, Index};
use crate::image::merged::MergedLayers;
use crate::image::store::{ImageStore, StoreError};
use crate::sandbox::state::rfc3339;
use crate::storage::container::{ContainerDirectory, ContainerId, ContainerRecord, State};
use crate::storage::rootfs::overlay_options;
use crate::storage::volume::check_all;

/// Longest passwd and group files that are read.
const MAX_DATABASE: u64 = 4 * 1024 * 1024;

const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// A container ready to be started.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) record: ContainerRecord,
    pub(crate) directory: ContainerDirectory,
    /// The options of the root file system's overlay mount.
    pub(crate) overlay: Vec<String>,
}

/// Makes the container that the command line describes.
pub(crate) fn prepare(
    args: &Args,
    host: &Host,
    lifecycle: &Lifecycle,
) -> Result<Prepared, Failure> {
    check_host(args)?;
    let store = host.images()?;
    // Until the record names the image, only this lock keeps it.
    let lock = store.lock_shared()?;
    let index = store.index()?;
    let image = store.resolve(&index, &args.image).map_err(explain)?;
    let config = store
        .config(&image.id)?
        .config()
        .clone()
        .unwrap_or_default();
    let layers = store.lower_directories(&index, &image.record)?;

    let id = ContainerId::random();
    let hostname = args
        .hostname
        .clone()
        .unwrap_or_else(|| id.short().to_owned());
    let user_text = args
        .user
        .clone()
        .or_else(|| config.user().clone())
        .unwrap_or_default();
    let user = container_user(&user_text, &layers)?;
    let env = environment(
        config.env().as_deref().unwrap_or_default(),
        &user_environment(args)?,
        &hostname,
        &user.home,
        args.tty,
    );
    let record = ContainerRecord {
        id,
        name: String::new(),
        image: args.image.clone(),
        image_id: image.id,
        created: rfc3339(SystemTime::now()),
        command: command(args, &config)?,
        tty: args.tty,
        open_stdin: args.interactive,
        detached: args.detach,
        auto_remove: args.rm,
        hostname,
        user: user_text,
        working_directory: working_directory(args, &config)?,
        environment: env,
        read_only: args.read_only,
        volumes: args.volumes.clone(),
        stop_signal: config.stop_signal().clone(),
        nano_cpus: args.cpus.map_or(0, |cpus| cpus.0),
        memory: args.memory.map_or(0, |memory| memory.0),
        attendant: own_identity(),
        state: State::Created,
    };
    let record = lifecycle.containers.create(record, args.name.as_deref())?;
    drop(lock);
    let directory = lifecycle.containers.directory(&record.id);
    let result = fill(&record, &directory, user, &layers);
    match result {
        Ok(overlay) => Ok(Prepared {
            record,
            directory,
            overlay,
        }),
        Err(failure) => {
            // The first error is the one to tell.
            let _ = lifecycle.containers.remove(&record);
            Err(failure)
        }
    }
}

fn explain(error: StoreError) -> Failure {
    match error {
        StoreError::NoSuchImage(name) => Failure::new(format!(
            "Unable to find image '{name}' locally; load it with `lazaret load` or `lazaret import`"
        )),
        error => error.into(),
    }
}

fn check_host(args: &Args) -> Result<(), Failure> {
    let cpus = std::thread::available_parallelism()?.get() as u64;
    let memory = rustix::system::sysinfo();
    let memory = memory.totalram.saturating_mul(memory.mem_unit.into());
    check_limits(args.cpus, args.memory, cpus, memory)?;
    Ok(check_all(&args.volumes)?)
}

/// Writes the specification and the files it binds; gives the overlay's
/// options.
fn fill(
    record: &ContainerRecord,
    directory: &ContainerDirectory,
    user: ProcessUser,
    layers: &[PathBuf],
) -> Result<Vec<String>, Failure> {
    let overlay = overlay_options(layers, directory)?;
    let rootfs = directory.path().join("rootfs");
    DirBuilder::new().create(rootfs)?;
    write_file(
        directory.network_file("hostname"),
        &format!("{}\n", record.hostname),
    )?;
    let hosts = format!("{HOSTS}127.0.0.1\t{}\n", record.hostname);
    write_file(directory.network_file("hosts"), &hosts)?;
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    write_file(directory.network_file("resolv.conf"), &resolv)?;
    let input = SpecInput {
        args: record.command.clone(),
        env: record.environment.clone(),
        cwd: record.working_directory.clone(),
        user,
        terminal: record.tty,
        hostname: record.hostname.clone(),
        read_only: record.read_only,
        volumes: record.volumes.clone(),
        directory: directory.path().to_owned(),
        nano_cpus: record.nano_cpus,
        memory: record.memory,
        cgroup: format!("/lazaret/{}", record.id),
        log: directory.log(),
        auto_shutdown: record.detached,
    };
    write_file(directory.spec(), &spec(&input).to_string())?;
    Ok(overlay)
}

fn command(args: &Args, config: &ImageConfig) -> Result<Vec<String>, Failure> {
    let mut command = match &args.entrypoint {
        Some(entrypoint) if entrypoint.is_empty() => Vec::new(),
        Some(entrypoint) => vec![entrypoint.clone()],
        None => config.entrypoint().clone().unwrap_or_default(),
    };
    if !args.command.is_empty() {
        command.extend(args.command.iter().cloned());
    } else if args.entrypoint.is_none() {
        // The image's arguments are for the image's entrypoint.
        command.extend(config.cmd().clone().unwrap_or_default());
    }
    if command.first().is_none_or(String::is_empty) {
        return Err(Failure::new("no command specified"));
    }
    Ok(command)
}

fn working_directory(args: &Args, config: &ImageConfig) -> Result<String, Failure> {
    let directory = args
        .workdir
        .clone()
        .or_else(|| config.working_dir().clone());
    let directory = directory
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "/".to_owned());
    if Path::new(&directory).is_absolute() {
        Ok(directory)
    } else {
        Err(Failure::new(format!(
            "the working directory '{directory}' is invalid, it needs to be an absolute path"
        )))
    }
}

fn user_environment(args: &Args) -> Result<Vec<String>, Failure> {
    let mut variables = Vec::new();
    for path in &args.env_file {
        let read = read_env_file(path).map_err(|error| {
            Failure::new(format!(
                "cannot read the env file {}: {error}",
                path.display()
            ))
        })?;
        variables.extend(read);
    }
    for flag in &args.env {
        variables.push(read_env_flag(flag).map_err(Failure::new)?);
    }
    Ok(variables)
}

/// The user that `text` names in a container of these layers.
pub(crate) fn container_user(text: &str, layers: &[PathBuf]) -> Result<ProcessUser, Failure> {
    let layers = MergedLayers::open(layers)?;
    let passwd = read_database(&layers, "/etc/passwd")?;
    let group = read_database(&layers, "/etc/group")?;
    Ok(resolve_user(text, &passwd, &group)?)
}

fn read_database(layers: &MergedLayers, path: &str) -> io::Result<String> {
    match layers.open_file(path)? {
        Some(file) => read_limited(file, MAX_DATABASE),
        None => Ok(String::new()),
    }
}

/// The layers of a running container, what it has written itself on top.
pub(crate) fn container_layers(
    store: &ImageStore,
    index: &Index,
    image: &ImageRecord,
    directory: &ContainerDirectory,
) -> Result<Vec<PathBuf>, Failure> {
    let mut layers = vec![directory.upper()];
    layers.extend(store.lower_directories(index, image)?);
    Ok(layers)
}
