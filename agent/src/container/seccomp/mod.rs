//! System call filters (`linux.seccomp`): the OCI profile compiled to the kernel's
//! program. <https://github.com/opencontainers/runtime-spec/blob/main/config-linux.md>
//!
//! The agent's own compiler rather than libseccomp: that brings tables for twenty
//! architectures into every microVM, knows calls only up to its own release (a name
//! it does not know loses its rule), and emits a comparison for each of the 400 names
//! of an engine's profile, which the kernel then walks for every number at load time.
//! Ranges of equal numbers and a binary search are a tenth of that, at every start.
//!
//! What libseccomp and runc do is done here as well: a rule without conditions beats
//! those with conditions for the same call; names that are unknown are left out;
//! calls newer than every name in the profile answer `ENOSYS`, by which programs know
//! to fall back; an i386 program's `socketcall` and `ipc` are what they stand for;
//! other architectures' calls kill.
#![expect(unsafe_code, reason = "seccomp(2) has no safe wrapper")]

mod abi;
mod condition;
mod program;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSyscall,
};

use self::abi::{AUDIT_I386, AUDIT_X86_64, Abi, X32_BIT, look_up, multiplexed};
use self::condition::{Condition, rule};
use self::program::{
    ARCHITECTURE, INSTRUCTIONS_MAX, Instruction, JUMP_EQUAL, Leaf, NUMBER, Range, answer, branch,
    load, push, search,
};
use self::table::Row;
use crate::failure::{Failure, OrFail, Result};

/// Answers of a filter (linux/seccomp.h).
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const TRACE: u32 = 0x7ff0_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// Larger numbers are no errors to the kernel.
const ERRNO_MAX: u32 = 4095;

/// A call that a tracer has told the kernel to skip.
const SKIPPED: u32 = u32::MAX;

const SET_MODE_FILTER: libc::c_uint = 1;
const FLAG_TSYNC: libc::c_ulong = 1;
const FLAG_LOG: libc::c_ulong = 2;
const FLAG_SPEC_ALLOW: libc::c_ulong = 4;

/// A filter, ready to be loaded.
#[derive(Debug)]
pub(crate) struct Filter {
    flags: libc::c_ulong,
    program: Vec<Instruction>,
}

/// What a profile says about one call.
#[derive(Debug)]
enum Verdict {
    Always(u32),
    /// The first that applies.
    Conditional(Vec<(Vec<Condition>, u32)>),
}

type Verdicts = BTreeMap<u32, Verdict>;

impl Filter {
    pub(crate) fn compile(spec: &LinuxSeccomp) -> Result<Self> {
        let default = action(spec.default_action(), spec.default_errno_ret())?;
        let rules = spec.syscalls().iter().flatten();
        let rules = rules.map(Rule::of).collect::<Result<Vec<_>>>()?;
        let rules = rules.as_slice();
        let has = |wanted| {
            spec.architectures()
                .iter()
                .flatten()
                .any(|&one| one == wanted)
        };

        // The native architecture is always meant. Those of other machines have no
        // programs here that could make a call.
        let mut wide = ranges(Abi::X86_64, rules, default);
        if has(Arch::ScmpArchX32) {
            for range in ranges(Abi::X32, rules, default) {
                push(&mut wide, range.start.max(X32_BIT), range.leaf);
            }
        } else {
            push(&mut wide, X32_BIT, Leaf::Answer(KILL_THREAD));
        }
        push(&mut wide, SKIPPED, Leaf::Answer(default));
        let other = if has(Arch::ScmpArchX86) {
            let narrow = ranges(Abi::I386, rules, default);
            let kill = vec![answer(KILL_THREAD)];
            branch(JUMP_EQUAL, AUDIT_I386, numbered(&narrow), kill)
        } else {
            vec![answer(KILL_THREAD)]
        };
        let mut program = vec![load(ARCHITECTURE)];
        program.extend(branch(JUMP_EQUAL, AUDIT_X86_64, numbered(&wide), other));
        if program.len() > INSTRUCTIONS_MAX {
            return Err(Failure::invalid(format!(
                "linux.seccomp: the filter takes {} instructions, more than {INSTRUCTIONS_MAX}",
                program.len()
            )));
        }
        Ok(Self {
            flags: flags(spec.flags().as_deref()),
            program,
        })
    }

    /// From here on the calling thread, and what it executes, is under the filter.
    pub(crate) fn load(&self) -> Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.program.len()).unwrap_or(u16::MAX),
            filter: self.program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
        };
        // SAFETY: `Instruction` is laid out as sock_filter, `len` of them live as long
        // as `self`, and the kernel only reads them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                SET_MODE_FILTER,
                self.flags,
                &raw const program,
            )
        };
        if result == 0 {
            return Ok(());
        }
        Err(io::Error::last_os_error()).or_fail(|| "load the seccomp filter")
    }
}

fn numbered(ranges: &[Range]) -> Vec<Instruction> {
    let mut code = vec![load(NUMBER)];
    code.extend(search(ranges));
    code
}

/// An entry of the profile, understood.
struct Rule<'a> {
    calls: Vec<(&'a str, Option<&'static Row>)>,
    conditions: Vec<Condition>,
    action: u32,
}

impl<'a> Rule<'a> {
    fn of(spec: &'a LinuxSyscall) -> Result<Self> {
        let conditions = spec.args().iter().flatten().map(Condition::new);
        let names = spec.names().iter().map(String::as_str);
        Ok(Self {
            calls: names.map(|name| (name, look_up(name))).collect(),
            conditions: conditions.collect::<Result<_>>()?,
            action: action(spec.action(), spec.errno_ret())?,
        })
    }
}

/// Every number of an architecture with what is done about it.
fn ranges(abi: Abi, rules: &[Rule<'_>], default: u32) -> Vec<Range> {
    let mut verdicts = Verdicts::new();
    for rule in rules.iter().filter(|rule| rule.action != default) {
        add(&mut verdicts, abi, rule, default);
    }
    let newest = rules
        .iter()
        .flat_map(|rule| &rule.calls)
        .filter_map(|(_, row)| abi.number((*row)?))
        .max();
    let mut ranges = Vec::new();
    push(&mut ranges, 0, Leaf::Answer(default));
    for (number, verdict) in verdicts {
        let leaf = match verdict {
            Verdict::Always(action) => Leaf::Answer(action),
            Verdict::Conditional(alternatives) => {
                let all = alternatives.iter();
                let mut code: Vec<_> = all
                    .flat_map(|(conditions, action)| rule(conditions, *action, abi.width()))
                    .collect();
                code.push(answer(default));
                Leaf::Code(code)
            }
        };
        push(&mut ranges, number, leaf);
        push(&mut ranges, number + 1, Leaf::Answer(default));
    }
    // An allowing default, or a tracer, knows what to do about new calls.
    let lenient = [ALLOW, LOG, TRACE].contains(&(default & 0xffff_0000));
    if let Some(newest) = newest
        && !lenient
    {
        push(&mut ranges, newest + 1, Leaf::Answer(ERRNO | ENOSYS));
    }
    ranges
}

fn add(verdicts: &mut Verdicts, abi: Abi, rule: &Rule<'_>, default: u32) {
    let Rule {
        conditions, action, ..
    } = rule;
    let alternatives = alternatives(conditions);
    // An i386 call's real arguments may lie in memory, where no filter can look: what
    // they would only have loosened stays closed.
    let carried = conditions.is_empty() || action.cast_signed() < default.cast_signed();
    for (name, row) in &rule.calls {
        if let Some(number) = row.and_then(|row| abi.number(row)) {
            for alternative in &alternatives {
                insert(verdicts, number, alternative.clone(), *action);
            }
        }
        if abi == Abi::I386
            && carried
            && let Some((carrier, call)) = multiplexed(name)
            && let Some(number) = look_up(carrier).and_then(|row| abi.number(row))
        {
            insert(verdicts, number, vec![Condition::low_half(call)], *action);
        }
    }
}

/// Conditions hold together, but those of a rule that names one argument twice are
/// alternatives, as they have always been to runc.
fn alternatives(conditions: &[Condition]) -> Vec<Vec<Condition>> {
    let repeated = conditions.iter().enumerate().any(|(place, one)| {
        let earlier = conditions.iter().take(place);
        earlier
            .into_iter()
            .any(|other| other.argument() == one.argument())
    });
    if repeated {
        conditions.iter().map(|&one| vec![one]).collect()
    } else {
        vec![conditions.to_vec()]
    }
}

fn insert(verdicts: &mut Verdicts, number: u32, conditions: Vec<Condition>, action: u32) {
    let verdict = verdicts
        .entry(number)
        .or_insert_with(|| Verdict::Conditional(Vec::new()));
    match verdict {
        Verdict::Always(_) => {}
        Verdict::Conditional(_) if conditions.is_empty() => *verdict = Verdict::Always(action),
        Verdict::Conditional(all) => all.push((conditions, action)),
    }
}

fn action(kind: LinuxSeccompAction, errno: Option<u32>) -> Result<u32> {
    let data = match errno {
        Some(errno) if errno > ERRNO_MAX => {
            return Err(Failure::invalid(format!(
                "linux.seccomp: {errno} is no error number"
            )));
        }
        errno => errno.unwrap_or(EPERM),
    };
    let plain = match kind {
        LinuxSeccompAction::ScmpActErrno => return Ok(ERRNO | data),
        LinuxSeccompAction::ScmpActTrace => return Ok(TRACE | data),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => KILL_THREAD,
        LinuxSeccompAction::ScmpActKillProcess => KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => TRAP,
        LinuxSeccompAction::ScmpActLog => LOG,
        LinuxSeccompAction::ScmpActAllow => ALLOW,
        LinuxSeccompAction::ScmpActNotify => {
            return Err(Failure::unsupported(
                "linux.seccomp with SCMP_ACT_NOTIFY (its listener would be outside the microVM)",
            ));
        }
    };
    if errno.is_some() {
        return Err(Failure::invalid(format!(
            "linux.seccomp: {kind} takes no errnoRet"
        )));
    }
    Ok(plain)
}

/// No flags are runc's default flags; an empty list is none.
fn flags(list: Option<&[LinuxSeccompFilterFlag]>) -> libc::c_ulong {
    let Some(list) = list else {
        return FLAG_SPEC_ALLOW;
    };
    list.iter().fold(0, |all, flag| {
        all | match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => FLAG_TSYNC,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
            // Says how to wait for a listener, of which there is none.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        }
    })
}
