//! `lazaret inspect`

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::Host;
use super::failure::Failure;
use super::lifecycle::Lifecycle;
use crate::image::reference::Reference;
use crate::image::store::ImageStore;
use crate::storage::container::{ContainerDirectory, ContainerRecord, State};

/// A time that has not come, as Docker writes it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Show all that is known about containers and images, as JSON
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names or IDs
    #[arg(value_name = "NAME|ID", required = true)]
    names: Vec<String>,
}

impl Args {
    pub(crate) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let lifecycle = Lifecycle::open(host)?;
        let store = host.images()?;
        let mut objects = Vec::new();
        let mut code = ExitCode::SUCCESS;
        for name in &self.names {
            match inspect(&lifecycle, &store, name) {
                Ok(object) => objects.push(object),
                Err(failure) => code = failure.report(),
            }
        }
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&objects)?)?;
        Ok(code)
    }
}

fn inspect(lifecycle: &Lifecycle, store: &ImageStore, name: &str) -> Result<Value, Failure> {
    if let Ok(id) = lifecycle.containers.resolve(name) {
        let record = lifecycle.find(id.as_str())?;
        let pid = lifecycle.pid(&record)?;
        return Ok(container(
            &record,
            pid,
            &lifecycle.containers.directory(&id),
        ));
    }
    image(store, name).map_err(|_| Failure::new(format!("No such object: {name}")))
}

fn container(record: &ContainerRecord, pid: u32, directory: &ContainerDirectory) -> Value {
    let (status, started, finished, exit_code, error) = match &record.state {
        State::Created => ("created", None, None, 0, ""),
        State::Running { started } => ("running", Some(started), None, 0, ""),
        State::Exited {
            started,
            finished,
            exit_code,
            error,
        } => (
            "exited",
            started.as_ref(),
            Some(finished),
            *exit_code,
            error.as_str(),
        ),
    };
    let time = |time: Option<&String>| time.map_or(NEVER, String::as_str).to_owned();
    let mounts: Vec<Value> = record
        .volumes
        .iter()
        .map(|volume| {
            json!({
                "Type": "bind",
                "Source": volume.source,
                "Destination": volume.destination,
                "Mode": if volume.read_only { "ro" } else { "" },
                "RW": !volume.read_only,
            })
        })
        .collect();
    json!({
        "Id": record.id,
        "Created": record.created,
        "Path": record.command.first(),
        "Args": record.command.get(1..).unwrap_or_default(),
        "State": {
            "Status": status,
            "Running": status == "running",
            "Pid": pid,
            "ExitCode": exit_code,
            "Error": error,
            "StartedAt": time(started),
            "FinishedAt": time(finished),
        },
        "Image": record.image_id,
        "Name": format!("/{}", record.name),
        "LogPath": directory.log(),
        "HostConfig": {
            "AutoRemove": record.auto_remove,
            "NanoCpus": record.nano_cpus,
            "Memory": record.memory,
            "ReadonlyRootfs": record.read_only,
        },
        "Mounts": mounts,
        "Config": {
            "Hostname": record.hostname,
            "User": record.user,
            "Tty": record.tty,
            "OpenStdin": record.open_stdin,
            "Env": record.environment,
            "Image": record.image,
            "WorkingDir": record.working_directory,
        },
    })
}

fn image(store: &ImageStore, name: &str) -> Result<Value, Failure> {
    let index = store.index()?;
    let image = store.resolve(&index, name)?;
    let config = store.config(&image.id)?;
    let tags: Vec<String> = index.tags_of(&image.id).map(Reference::familiar).collect();
    Ok(json!({
        "Id": image.id,
        "RepoTags": tags,
        "Created": image.record.created,
        "Architecture": config.architecture(),
        "Os": config.os(),
        "Size": index.size_of(&image.record),
        "Config": config.config(),
        "RootFS": { "Type": "layers", "Layers": config.rootfs().diff_ids() },
    }))
}
