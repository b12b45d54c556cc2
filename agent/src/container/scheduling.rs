//! How a process is scheduled: `process.scheduler`, `process.ioPriority`,
//! `process.execCPUAffinity`, and the personality that it runs with.
#![expect(unsafe_code, reason = "system calls that have no safe wrapper")]

use std::borrow::Cow;
use std::io;

use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxPersonality, LinuxPersonalityDomain,
    LinuxSchedulerFlag, LinuxSchedulerPolicy, Process, Scheduler,
};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::Value;

use crate::failure::{Failure, OrFail, Result};

/// Flags of the specification that its Rust types know by other names.
const RESPELLED: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// A spec, or a process of one, with the flags of the scheduler at `pointer` as its
/// Rust types name them. What is not JSON is left for these to judge.
pub(super) fn respell_flags<'a>(json: &'a [u8], pointer: &str) -> Cow<'a, [u8]> {
    // Few specs have any, and parsing twice is dear.
    let mentioned = |name: &str| json.windows(name.len()).any(|part| part == name.as_bytes());
    if !RESPELLED.iter().any(|(name, _)| mentioned(name)) {
        return json.into();
    }
    let Ok(mut spec) = serde_json::from_slice::<Value>(json) else {
        return json.into();
    };
    let flags = spec.pointer_mut(pointer).and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        if let Some((_, known)) = RESPELLED.iter().find(|(name, _)| *flag == *name) {
            *flag = (*known).into();
        }
    }
    spec.to_string().into_bytes().into()
}

/// What needs rights that the process may not have: to be called before it gives them up.
pub(crate) fn apply(process: &Process) -> Result<()> {
    if let Some(scheduler) = process.scheduler() {
        set_scheduler(scheduler)?;
    }
    if let Some(priority) = process.io_priority() {
        set_io_priority(priority)?;
    }
    Ok(())
}

/// `struct sched_attr` of `sched_setattr(2)`.
#[repr(C)]
#[derive(Debug, PartialEq, Eq)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

impl Attributes {
    fn of(scheduler: &Scheduler) -> Result<Self> {
        let priority = scheduler.priority().unwrap_or_default();
        let priority = u32::try_from(priority).map_err(|_| {
            Failure::invalid(format!("process.scheduler.priority {priority} is negative"))
        })?;
        let flags = scheduler.flags().iter().flatten();
        Ok(Self {
            size: u32::try_from(size_of::<Self>()).unwrap_or_default(),
            policy: policy(*scheduler.policy()),
            flags: flags.map(|&one| flag(one)).fold(0, |all, one| all | one),
            nice: scheduler.nice().unwrap_or_default(),
            priority,
            runtime: scheduler.runtime().unwrap_or_default(),
            deadline: scheduler.deadline().unwrap_or_default(),
            period: scheduler.period().unwrap_or_default(),
        })
    }
}

/// Numbers of linux/sched.h.
fn policy(policy: LinuxSchedulerPolicy) -> u32 {
    match policy {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        // Reserved in the kernel, which refuses it.
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    }
}

fn flag(flag: LinuxSchedulerFlag) -> u64 {
    match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    }
}

fn set_scheduler(scheduler: &Scheduler) -> Result<()> {
    let attributes = Attributes::of(scheduler)?;
    // SAFETY: `attributes` is a sched_attr of the size that it names, and outlives the
    // call, which only reads it.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    check(result).or_fail(|| format!("set process.scheduler {}", scheduler.policy()))
}

/// A class above 13 bits of level (linux/ioprio.h).
fn io_priority(priority: &LinuxIOPriority) -> Result<i64> {
    const LEVELS: i64 = 8;
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = priority.priority();
    if !(0..LEVELS).contains(&level) {
        return Err(Failure::invalid(format!(
            "process.ioPriority.priority {level} is not 0 to 7"
        )));
    }
    Ok((class << 13) | level)
}

fn set_io_priority(priority: &LinuxIOPriority) -> Result<()> {
    const WHO_PROCESS: libc::c_int = 1;
    let value = io_priority(priority)?;
    // SAFETY: three numbers; the call touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) };
    check(result).or_fail(|| format!("set process.ioPriority {}", priority.class()))
}

/// Where a further process runs until it executes its program.
pub(crate) fn set_initial_affinity(affinity: &ExecCPUAffinity) -> Result<()> {
    match affinity.initial() {
        Some(list) => set_affinity("process.execCPUAffinity.initial", list),
        None => Ok(()),
    }
}

/// Where its program runs: wherever the container may, unless the spec says.
pub(crate) fn set_final_affinity(affinity: &ExecCPUAffinity) -> Result<()> {
    match (affinity.cpu_affinity_final(), affinity.initial()) {
        (Some(list), _) => set_affinity("process.execCPUAffinity.final", list),
        (None, Some(_)) => {
            let mut all = CpuSet::new();
            (0..CpuSet::MAX_CPU).for_each(|processor| all.set(processor));
            sched_setaffinity(None, &all).or_fail(|| "reset the processors of the process")
        }
        (None, None) => Ok(()),
    }
}

fn set_affinity(setting: &str, list: &str) -> Result<()> {
    let mut set = CpuSet::new();
    for processor in processors(list)
        .ok_or_else(|| Failure::invalid(format!("{setting}: {list:?} is no list of processors")))?
    {
        set.set(processor);
    }
    sched_setaffinity(None, &set).or_fail(|| format!("set {setting} to {list}"))
}

/// `0-3,7` (cpuset(7), "List format").
fn processors(list: &str) -> Option<Vec<usize>> {
    let mut all = Vec::new();
    for part in list.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok();
        let (from, to) = (number(from)?, number(to)?);
        if from > to || to >= CpuSet::MAX_CPU {
            return None;
        }
        all.extend(from..=to);
    }
    Some(all)
}

/// What uname(2) and the layout of memory look like to the process.
pub(crate) fn set_personality(personality: &LinuxPersonality) -> Result<()> {
    let (name, domain): (_, libc::c_ulong) = match personality.domain() {
        LinuxPersonalityDomain::PerLinux => ("LINUX", 0),
        LinuxPersonalityDomain::PerLinux32 => ("LINUX32", 8),
    };
    // SAFETY: a number; the call touches no memory.
    let result = unsafe { libc::personality(domain) };
    check(result.into()).or_fail(|| format!("set linux.personality {name}"))
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scheduler_is_laid_out_for_the_kernel() {
        let scheduler = json!({ "policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2,
                                "period": 3, "nice": -4, "priority": 5 });
        let expected = Attributes {
            size: 48,
            policy: 6,
            flags: 0,
            nice: -4,
            priority: 5,
            runtime: 1,
            deadline: 2,
            period: 3,
        };
        let scheduler = serde_json::from_value(scheduler).expect("a scheduler");
        assert_eq!(Attributes::of(&scheduler), Ok(expected));
    }

    #[test]
    fn flags_have_the_specifications_names() {
        let all = [
            "RESET_ON_FORK",
            "RECLAIM",
            "DL_OVERRUN",
            "KEEP_POLICY",
            "KEEP_PARAMS",
            "UTIL_CLAMP_MIN",
            "UTIL_CLAMP_MAX",
        ];
        for (place, name) in all.into_iter().enumerate() {
            let flags = json!([format!("SCHED_FLAG_{name}")]);
            let process = json!({ "scheduler": { "policy": "SCHED_OTHER", "flags": flags },
                                  "args": ["SCHED_FLAG_RESET_ON_FORK"] });
            let text = process.to_string();
            let respelled = respell_flags(text.as_bytes(), "/scheduler/flags");
            let process: Value = serde_json::from_slice(&respelled).expect("JSON");
            assert_eq!(process["args"][0], "SCHED_FLAG_RESET_ON_FORK");
            let scheduler = serde_json::from_value(process["scheduler"].clone());
            let attributes = Attributes::of(&scheduler.expect(name)).expect(name);
            assert_eq!(attributes.flags, 1 << place, "{name}");
        }
    }

    #[test]
    fn io_priority_is_a_class_and_a_level() {
        let value = |priority| {
            let spec = json!({ "class": "IOPRIO_CLASS_BE", "priority": priority });
            io_priority(&serde_json::from_value(spec).expect("a priority"))
        };
        assert_eq!(value(6), Ok((2 << 13) | 6));
        value(8).expect_err("eight levels");
    }

    #[test]
    fn processors_are_listed_by_number_and_range() {
        assert_eq!(processors("0-2,5"), Some(vec![0, 1, 2, 5]));
        for nonsense in ["", "a", "3-1", "0-", "99999999"] {
            assert_eq!(processors(nonsense), None, "{nonsense}");
        }
    }
}
