//! Device rules (`linux.resources.devices`). Version 2 has no file for them: the rules
//! become a small BPF program that the kernel asks at each mknod and open of a device
//! (Documentation/admin-guide/cgroup-v2.rst, "Device controller").
#![expect(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::failure::{Failure, Result};

/// Rules beyond this are a mistake or an attack; the kernel's own limit is higher.
const RULES_MAX: usize = 256;

const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;
const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;

/// One rule, in the kernel's numbers; `None` matches everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

impl Rule {
    fn matches_all(&self) -> bool {
        self.kind.is_none() && self.major.is_none() && self.minor.is_none() && self.access == ALL
    }
}

const fn allowed(kind: i32, major: Option<i32>, minor: Option<i32>, access: i32) -> Rule {
    Rule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        access,
    }
}

/// Added to every list, an empty one too, as runc does: a node may be made but not
/// opened, and the devices that every container is given may be used.
const ALWAYS: [Rule; 10] = [
    allowed(CHARACTER, None, None, MKNOD),
    allowed(BLOCK, None, None, MKNOD),
    allowed(CHARACTER, Some(1), Some(3), ALL),
    allowed(CHARACTER, Some(1), Some(5), ALL),
    allowed(CHARACTER, Some(1), Some(7), ALL),
    allowed(CHARACTER, Some(1), Some(8), ALL),
    allowed(CHARACTER, Some(1), Some(9), ALL),
    allowed(CHARACTER, Some(5), Some(0), ALL),
    allowed(CHARACTER, Some(5), Some(2), ALL),
    // The slaves of the container's own terminals.
    allowed(CHARACTER, Some(136), None, ALL),
];

/// The rules to enforce, in order. What none of them names is denied.
pub(super) fn rules(spec: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    if spec.len() > RULES_MAX {
        return Err(Failure::invalid(format!(
            "{} device rules, more than {RULES_MAX}",
            spec.len()
        )));
    }
    let mut rules = spec.iter().map(rule).collect::<Result<Vec<_>>>()?;
    rules.extend(ALWAYS);
    Ok(rules)
}

fn rule(spec: &LinuxDeviceCgroup) -> Result<Rule> {
    let kind = match spec.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::A => None,
        LinuxDeviceType::B => Some(BLOCK),
        LinuxDeviceType::C | LinuxDeviceType::U => Some(CHARACTER),
        LinuxDeviceType::P => return Err(Failure::unsupported("a device rule for FIFOs")),
    };
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => i32::try_from(number)
            .ok()
            .filter(|number| *number >= 0)
            .map(Some)
            .ok_or_else(|| Failure::invalid(format!("device number {number} is out of range"))),
    };
    let mut access = 0;
    for letter in spec.access().as_deref().unwrap_or_default().chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            other => {
                return Err(Failure::invalid(format!(
                    "device access {other:?} is unknown"
                )));
            }
        };
    }
    Ok(Rule {
        allow: spec.allow(),
        kind,
        major: number(spec.major())?,
        minor: number(spec.minor())?,
        // Only rules for everything may leave the access out.
        access: if access == 0 && kind.is_none() {
            ALL
        } else {
            access
        },
    })
}

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const JUMP_REGISTER_NOT_EQUAL: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// Registers: the answer, the context, and the four things a rule looks at.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 1;

const fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: target | (source << 4),
        offset,
        immediate,
    }
}

/// The last rule that matches decides, so the program tries them from the end. What no
/// rule matches is denied.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    // The context is `struct bpf_cgroup_dev_ctx`: access << 16 | kind, major, minor.
    let mut all = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        all.extend(test(rule));
        if rule.matches_all() {
            // The verifier takes no program with instructions that nothing reaches.
            return all;
        }
    }
    all.extend([
        instruction(MOVE, ANSWER, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    all
}

fn test(rule: &Rule) -> Vec<Instruction> {
    let mut tests = Vec::new();
    let exact = [(KIND, rule.kind), (MAJOR, rule.major), (MINOR, rule.minor)];
    for (register, wanted) in exact {
        if let Some(wanted) = wanted {
            tests.push(instruction(JUMP_NOT_EQUAL, register, 0, 0, wanted));
        }
    }
    if rule.access != ALL {
        tests.push(instruction(MOVE_REGISTER, SCRATCH, ACCESS, 0, 0));
        tests.push(instruction(AND, SCRATCH, 0, 0, rule.access));
        tests.push(if rule.allow {
            // Allowed only where everything asked for is.
            instruction(JUMP_REGISTER_NOT_EQUAL, SCRATCH, ACCESS, 0, 0)
        } else {
            // Denied where anything asked for is.
            instruction(JUMP_EQUAL, SCRATCH, 0, 0, 0)
        });
    }
    tests.push(instruction(MOVE, ANSWER, 0, 0, i32::from(rule.allow)));
    tests.push(instruction(EXIT, 0, 0, 0, 0));
    // Each failed test goes on behind this rule.
    let length = tests.len();
    for (place, test) in tests.iter_mut().enumerate() {
        let jumps = [JUMP_EQUAL, JUMP_NOT_EQUAL, JUMP_REGISTER_NOT_EQUAL];
        if jumps.contains(&test.code) {
            test.offset = i16::try_from(length - place - 1).unwrap_or(i16::MAX);
        }
    }
    tests
}

/// Enforces the rules on the cgroup and all below it; answers with what does so.
pub(super) fn enforce(cgroup: BorrowedFd<'_>, rules: &[Rule]) -> io::Result<Option<OwnedFd>> {
    let program = load(&program(rules))?;
    attach_or_detach(cgroup, &program, BPF_PROG_ATTACH)?;
    Ok(Some(program))
}

/// Ends what [`enforce`] has begun.
pub(super) fn lift(cgroup: BorrowedFd<'_>, program: &OwnedFd) -> io::Result<()> {
    attach_or_detach(cgroup, program, BPF_PROG_DETACH)
}

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// The start of `union bpf_attr` for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// A container's own rules for its children are asked as well as these.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The kernel gives up on a program when a signal is there for its loader, such as that
/// of an ended child.
const LOAD_ATTEMPTS: usize = 128;

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    for _ in 1..LOAD_ATTEMPTS {
        match try_to_load(program) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            loaded => return loaded,
        }
    }
    try_to_load(program)
}

fn try_to_load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: the attributes are laid out as the kernel's, and the program and licence
    // they point to outlive the call; the kernel writes to none of them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attributes,
            size_of::<LoadAttributes>(),
        )
    };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn attach_or_detach(
    cgroup: BorrowedFd<'_>,
    program: &OwnedFd,
    command: libc::c_int,
) -> io::Result<()> {
    let attributes = AttachAttributes {
        target: u32::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?,
        program: u32::try_from(program.as_raw_fd()).map_err(io::Error::other)?,
        attach_type: BPF_CGROUP_DEVICE,
        flags: if command == BPF_PROG_ATTACH {
            BPF_F_ALLOW_MULTI
        } else {
            0
        },
    };
    // SAFETY: the attributes are laid out as the kernel's and outlive the call, which
    // only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw const attributes,
            size_of::<AttachAttributes>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    fn parse(spec: Value) -> Result<Vec<Rule>> {
        let spec: Vec<LinuxDeviceCgroup> = serde_json::from_value(spec).expect("rules");
        rules(&spec)
    }

    /// Runs the program as the kernel would.
    fn answer(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> i32 {
        let context = [(access << 16) | kind, major, minor];
        let mut registers = [0_i32; 16];
        let mut at = 0_usize;
        loop {
            let now = program[at];
            let (target, source) = (
                usize::from(now.registers & 0xf),
                usize::from(now.registers >> 4),
            );
            let jump = match now.code {
                LOAD_WORD => {
                    let word = usize::try_from(now.offset / 4).expect("in the context");
                    registers[target] = context[word];
                    false
                }
                MOVE => {
                    registers[target] = now.immediate;
                    false
                }
                MOVE_REGISTER => {
                    registers[target] = registers[source];
                    false
                }
                AND => {
                    registers[target] &= now.immediate;
                    false
                }
                SHIFT_RIGHT => {
                    registers[target] >>= now.immediate;
                    false
                }
                JUMP_EQUAL => registers[target] == now.immediate,
                JUMP_NOT_EQUAL => registers[target] != now.immediate,
                JUMP_REGISTER_NOT_EQUAL => registers[target] != registers[source],
                EXIT => return registers[usize::from(ANSWER)],
                other => panic!("instruction {other:#x}"),
            };
            at += 1;
            if jump {
                at += usize::try_from(now.offset).expect("jumps go forward");
            }
        }
    }

    #[test]
    fn engines_default_list_allows_the_standard_devices_alone() {
        let rules = parse(json!([{ "allow": false, "access": "rwm" }])).expect("rules");
        let program = program(&rules);
        assert_eq!(answer(&program, CHARACTER, READ | WRITE, 1, 3), 1, "null");
        assert_eq!(answer(&program, CHARACTER, READ, 136, 7), 1, "a terminal");
        assert_eq!(answer(&program, CHARACTER, READ, 1, 1), 0, "mem");
        assert_eq!(answer(&program, BLOCK, READ, 254, 0), 0, "a disk");
        assert_eq!(answer(&program, BLOCK, MKNOD, 254, 0), 1, "its node");
        assert_eq!(answer(&program, BLOCK, MKNOD | READ, 254, 0), 0);
    }

    #[test]
    fn later_rules_win() {
        let rules = parse(json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "b", "major": 8, "minor": -1, "access": "rw" },
            { "allow": false, "type": "b", "major": 8, "minor": 1, "access": "w" },
        ]));
        let program = program(&rules.expect("rules"));
        assert_eq!(answer(&program, BLOCK, READ | WRITE, 8, 0), 1);
        assert_eq!(answer(&program, BLOCK, READ, 8, 1), 1);
        assert_eq!(answer(&program, BLOCK, READ | WRITE, 8, 1), 0);
    }

    #[test]
    fn no_rules_deny_all_but_the_standard_devices() {
        let program = program(&parse(json!([])).expect("rules"));
        let allowed = |major, minor| answer(&program, CHARACTER, READ | WRITE, major, minor) == 1;
        for (major, minor) in [
            (1, 3),
            (1, 5),
            (1, 7),
            (1, 8),
            (1, 9),
            (5, 0),
            (5, 2),
            (136, 3),
        ] {
            assert!(allowed(major, minor), "{major}:{minor}");
        }
        for (major, minor) in [(1, 1), (1, 11), (5, 1), (10, 200), (10, 229), (254, 0)] {
            assert!(!allowed(major, minor), "{major}:{minor}");
        }
        assert_eq!(answer(&program, BLOCK, READ, 254, 0), 0, "a disk");
        for kind in [CHARACTER, BLOCK] {
            assert_eq!(answer(&program, kind, MKNOD, 1, 1), 1, "a node");
        }
    }

    #[test]
    fn signals_do_not_keep_rules_from_being_loaded() {
        extern "C" fn ignore(_: libc::c_int) {}
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: {} needs root", module_path!());
            return;
        }
        let handler = ignore as extern "C" fn(libc::c_int);
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
        // SAFETY: has no preconditions.
        let this_thread = unsafe { libc::pthread_self() };
        let program = program(&parse(json!([])).expect("rules"));
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    // SAFETY: the thread waits for this one's end.
                    unsafe { libc::pthread_kill(this_thread, libc::SIGUSR1) };
                    // Rather than at every moment: now and then.
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let loaded = (0..200).try_for_each(|_| load(&program).map(drop));
            is_done.store(true, Ordering::Relaxed);
            loaded.expect("loaded each time");
        });
    }

    #[test]
    fn nonsense_is_refused() {
        parse(json!([{ "allow": true, "type": "p", "access": "r" }])).expect_err("FIFO");
        parse(json!([{ "allow": true, "access": "x" }])).expect_err("access");
        parse(json!([{ "allow": true, "major": -7, "access": "r" }])).expect_err("number");
    }
}
