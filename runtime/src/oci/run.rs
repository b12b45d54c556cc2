//! `lazaret-oci run`: create, start, and, unless detached, wait and delete.

use std::process::ExitCode;

use super::Host;
use super::attend::Attendant;
use super::bundle::Bundle;
use super::console::Relay;
use super::container::Container;
use super::create::{Options, Stdio, check_terminal, create};
use super::delete::delete;
use super::failure::{Failure, OciError};
use super::names::ContainerId;
use super::start::start;

/// Create a container, run its program, and wait for its end
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    options: Options,
    /// Go on in the background once the program runs
    #[arg(short, long)]
    detach: bool,
    /// Do not delete the container when it has ended
    #[arg(long)]
    keep: bool,
    /// Accepted for older callers; there is nothing to reap
    #[arg(long, hide = true)]
    no_subreaper: bool,
    /// Id of the container, unique in its root
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Args {
    pub(super) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let ended = self.live(host);
        ended.map_err(|failure| failure.context("lazaret-oci run failed"))
    }

    fn live(&self, host: &Host) -> Result<ExitCode, Failure> {
        let bundle = Bundle::load(&self.options.bundle)?;
        let terminal = bundle.terminal();
        let console_socket = self.options.console_socket.is_some();
        check_terminal(self.detach, terminal, console_socket)?;
        let stdio = Stdio::new(terminal)?;
        let id = ContainerId::new(&self.container)?;
        let container = create(host, &self.options, id, bundle, &stdio)?;
        if self.detach {
            return match start(host, &container) {
                Ok(()) => Ok(ExitCode::SUCCESS),
                Err(failure) => Err(self.give_up(host, container, failure)),
            };
        }
        match attend(host, &container, stdio) {
            Ok(status) => {
                if !self.keep {
                    delete(host, container.place, true)?;
                }
                Ok(ExitCode::from(status))
            }
            Err(failure) => Err(self.give_up(host, container, failure)),
        }
    }

    /// A container that did not run leaves nothing.
    fn give_up(&self, host: &Host, container: Container, failure: Failure) -> Failure {
        if !self.keep
            && let Err(err) = delete(host, container.place, true)
        {
            host.log.warning(&err.to_string());
        }
        failure
    }
}

/// Runs a created container to its end. Returns its exit status.
fn attend(host: &Host, container: &Container, stdio: Stdio) -> Result<u8, Failure> {
    let socket = container.task_socket(host);
    let sandbox = container.record.sandbox.as_str();
    let mut attendant = Attendant::new(&socket, sandbox, "").map_err(OciError::Runtime)?;
    start(host, container)?;
    let relay = match stdio {
        Stdio::Inherited => None,
        Stdio::Terminal(console) => {
            // The sandbox process has it, and ours would keep it open.
            drop(console.slave);
            Some(Relay::start(console.master)?)
        }
    };
    let status = attendant.attend(|_| {
        if let Some(relay) = &relay {
            relay.fit();
        }
        Ok(())
    });
    if let Some(relay) = relay {
        relay.finish();
    }
    let status = status.map_err(OciError::Runtime)?;
    // The sandbox's own account, where the connection broke before it was told.
    container.await_end();
    let written = container.exit_status(host)?;
    Ok(written.map_or(status, |status| u8::try_from(status).unwrap_or(u8::MAX)))
}
