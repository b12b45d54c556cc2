//! Device rules (`linux.resources.devices`). Version 2 has no file for them: the rules
//! become a small BPF program that the kernel asks at each mknod and open of a device
//! (Documentation/admin-guide/cgroup-v2.rst, "Device controller").

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::bpf::{
    AND, CGROUP_DEVICE, EXIT, Instruction, JUMP_EQUAL, JUMP_NOT_EQUAL, JUMP_REGISTER_NOT_EQUAL,
    LOAD_WORD, MOVE, MOVE_REGISTER, SHIFT_RIGHT, attach, detach, instruction, load,
};
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

/// Registers: the answer, the context, and the four things a rule looks at.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 1;

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
    let program = load(&CGROUP_DEVICE, &program(rules))?;
    attach(cgroup, &program, &CGROUP_DEVICE)?;
    Ok(Some(program))
}

/// Ends what [`enforce`] has begun.
pub(super) fn lift(cgroup: BorrowedFd<'_>, program: &OwnedFd) -> io::Result<()> {
    detach(cgroup, program, &CGROUP_DEVICE)
}

#[cfg(test)]
mod tests {
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
    fn nonsense_is_refused() {
        parse(json!([{ "allow": true, "type": "p", "access": "r" }])).expect_err("FIFO");
        parse(json!([{ "allow": true, "access": "x" }])).expect_err("access");
        parse(json!([{ "allow": true, "major": -7, "access": "r" }])).expect_err("number");
    }
}
