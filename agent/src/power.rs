//! The end of the guest, told to the VMM through an I/O port: without ACPI there is no
//! other power switch.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use lazaret_protocol::{POWER_OFF, POWER_PORT};
use rustix::process::getpid;
use rustix::system::{RebootCommand, reboot};

use crate::failure::{Code, Failure, OrFail, Result};

/// Writes everything out and powers the guest off; returns only with a failure.
pub fn off() -> Result<()> {
    if !getpid().is_init() {
        return Err(Failure::new(
            Code::FailedPrecondition,
            "this agent is not PID 1: there is no guest to power off",
        ));
    }
    rustix::fs::sync();
    let pressed = OpenOptions::new()
        .write(true)
        .open("/dev/port")
        .and_then(|port| port.write_all_at(&[POWER_OFF], u64::from(POWER_PORT)));
    if let Err(error) = pressed {
        tracing::error!(%error, "no power port: resetting the guest instead");
    }
    // Reached when the port did not work: the VMM then sees a reset.
    reboot(RebootCommand::Restart).or_fail(|| "reset the guest")
}
