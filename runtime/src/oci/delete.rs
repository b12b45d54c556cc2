//! `lazaret-oci delete`: takes a container down, whatever is left of it.

use std::process::ExitCode;

use super::Host;
use super::container::Container;
use super::failure::{Failure, OciError};
use super::names::ContainerId;
use super::record::{Place, Status};
use crate::hooks::{HookKind, run_all_hooks};
use crate::network;
use crate::sandbox::config::OCI_NAMESPACE;

/// Remove a container that has stopped, and all that belongs to it
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Kill the container if it still runs; one that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Id of the container
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Args {
    pub(super) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let place = host.root.place(ContainerId::new(&self.container)?);
        match delete(host, place, self.force) {
            Err(OciError::NotExist) if self.force => {}
            result => result?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Removes a container. Only one command at a time does so.
pub(super) fn delete(host: &Host, place: Place, force: bool) -> Result<(), OciError> {
    let lock = place.lock()?;
    let record = match place.load() {
        // Whoever reserved the id has been killed before there was anything.
        Err(OciError::NotExist) => {
            place.remove_reservation()?;
            return Err(OciError::NotExist);
        }
        result => result?,
    };
    let container = Container { place, record };
    let status = status_under_lock(host, &container)?;
    match status {
        Status::Stopped if container.record.complete => container.await_end(),
        Status::Stopped | Status::Created => {}
        _ if force => {}
        status => {
            return Err(OciError::NotStopped {
                id: container.record.id,
                status,
            });
        }
    }
    take_down(host, &container)?;
    drop(lock);
    Ok(())
}

/// Nobody is making a container whose lock is ours.
fn status_under_lock(host: &Host, container: &Container) -> Result<Status, OciError> {
    if container.record.complete {
        container.status(host)
    } else {
        Ok(Status::Stopped)
    }
}

/// Whether the sandbox by the container's name is the container's: one that was
/// killed on its way may have met another's.
fn is_own(host: &Host, container: &Container) -> Result<bool, OciError> {
    let state = host.sandboxes.load(&container.record.sandbox)?;
    Ok(state.is_none_or(|state| match container.record.process {
        Some(process) => process.pid == state.pid && process.start_time == state.start_time,
        None => state.namespace == OCI_NAMESPACE,
    }))
}

fn take_down(host: &Host, container: &Container) -> Result<(), OciError> {
    if is_own(host, container)? {
        host.sandboxes.end(&container.record.sandbox)?;
    }
    // A container that was killed on its way may not even have this.
    match container.place.load_spec() {
        Ok(spec) => {
            if let Err(err) = network::clear(&spec) {
                host.log.warning(&err.to_string());
            }
            let state = container.hook_state("stopped", &spec);
            for err in run_all_hooks(&spec, HookKind::Poststop, &state) {
                host.log.warning(&err.to_string());
            }
        }
        Err(OciError::NotExist) => {}
        Err(err) => host.log.warning(&err.to_string()),
    }
    container.place.remove()
}
