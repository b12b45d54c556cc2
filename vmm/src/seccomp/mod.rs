//! System calls that each kind of thread may make; any other kills the process.
//!
//! A filter is the table of a kind, with conditions on arguments where a call is
//! many calls in one (`ioctl`, `mmap`, `fcntl`). Nothing here opens, executes or
//! connects: descriptors come in through the control socket alone.
//!
//! vCPU threads are made before the main thread's filter is installed, and the
//! threads of devices before that, as a thread inherits the filters of its maker.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use thiserror::Error;

use crate::jail::{FS_CAPABILITIES, drop_capabilities};
use rustix::thread::CapabilitySet;

mod tables;

#[derive(Debug, Error)]
pub enum SeccompError {
    #[error("filter cannot be compiled")]
    Compile(#[from] seccompiler::BackendError),
    #[error("filter is refused by the kernel")]
    Install(#[from] seccompiler::Error),
}

/// One allowed call: the conditions of any of its alternatives must hold; without
/// alternatives it is always allowed.
pub(crate) struct Allowed {
    pub(crate) call: libc::c_long,
    pub(crate) when: Vec<Vec<Condition>>,
}

/// What argument `index` must be. Arguments are compared as 32-bit values: flags,
/// commands and descriptors are ints, the upper half of the register is not theirs.
#[derive(Clone, Copy)]
pub(crate) struct Condition {
    pub(crate) index: u8,
    pub(crate) test: Test,
}

#[derive(Clone, Copy)]
pub(crate) enum Test {
    /// `value` in the bits of `mask`.
    Bits {
        mask: u32,
        value: u32,
    },
    Not(u32),
}

/// The main thread: event loop and control socket.
pub fn confine_main() -> io::Result<()> {
    static FILTER: OnceLock<BpfProgram> = OnceLock::new();
    confine(CapabilitySet::empty(), &FILTER, tables::main_thread)
}

/// A vCPU thread.
pub fn confine_vcpu() -> io::Result<()> {
    static FILTER: OnceLock<BpfProgram> = OnceLock::new();
    confine(CapabilitySet::empty(), &FILTER, tables::vcpu_thread)
}

/// A thread that serves virtio-fs.
pub fn confine_fs() -> io::Result<()> {
    static FILTER: OnceLock<BpfProgram> = OnceLock::new();
    confine(FS_CAPABILITIES, &FILTER, tables::fs_thread)
}

/// The thread that serves network slots.
pub fn confine_net() -> io::Result<()> {
    static FILTER: OnceLock<BpfProgram> = OnceLock::new();
    confine(CapabilitySet::empty(), &FILTER, tables::net_thread)
}

/// The thread that serves block slots.
pub fn confine_block() -> io::Result<()> {
    static FILTER: OnceLock<BpfProgram> = OnceLock::new();
    confine(CapabilitySet::empty(), &FILTER, tables::block_thread)
}

/// A thread that works on disks where there is no `io_uring`.
pub fn confine_disk() -> io::Result<()> {
    static FILTER: OnceLock<BpfProgram> = OnceLock::new();
    confine(CapabilitySet::empty(), &FILTER, tables::disk_thread)
}

fn confine(
    capabilities: CapabilitySet,
    filter: &OnceLock<BpfProgram>,
    table: fn() -> Vec<Allowed>,
) -> io::Result<()> {
    drop_capabilities(capabilities)?;
    let program = if let Some(program) = filter.get() {
        program
    } else {
        let program = compile(table()).map_err(io::Error::other)?;
        filter.get_or_init(|| program)
    };
    seccompiler::apply_filter(program).map_err(|error| io::Error::other(SeccompError::from(error)))
}

fn compile(table: Vec<Allowed>) -> Result<BpfProgram, SeccompError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for allowed in table {
        let entry = rules.entry(allowed.call).or_default();
        for alternative in allowed.when {
            let conditions = alternative
                .into_iter()
                .map(condition)
                .collect::<Result<_, _>>()?;
            entry.push(SeccompRule::new(conditions)?);
        }
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}

fn condition(condition: Condition) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (operator, value) = match condition.test {
        Test::Bits { mask, value } => (SeccompCmpOp::MaskedEq(mask.into()), value),
        Test::Not(value) => (SeccompCmpOp::Ne, value),
    };
    SeccompCondition::new(
        condition.index,
        SeccompCmpArgLen::Dword,
        operator,
        value.into(),
    )
}

#[cfg(test)]
mod tests;
