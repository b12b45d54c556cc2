//! Filters are run by an interpreter of classic BPF, as the kernel would run them.

use serde_json::{Value, json};

use super::abi::{AUDIT_I386, AUDIT_X86_64, X32_BIT};
use super::program::{AND, ARGUMENTS, JUMP, JUMP_GREATER, JUMP_GREATER_EQUAL, LOAD, RETURN};
use super::table::TABLE;
use super::*;
use crate::failure::Code;

struct Call {
    architecture: u32,
    number: u32,
    arguments: [u64; 6],
}

fn compiled(spec: Value) -> Filter {
    try_compile(spec).expect("a filter")
}

fn try_compile(spec: Value) -> Result<Filter> {
    let spec: LinuxSeccomp = serde_json::from_value(spec).expect("a profile");
    Filter::compile(&spec)
}

impl Filter {
    fn decide(&self, call: &Call) -> u32 {
        let word = |offset: u32| match offset {
            NUMBER => call.number,
            ARCHITECTURE => call.architecture,
            _ => {
                let place = offset - ARGUMENTS;
                let argument = call.arguments[usize::try_from(place / 8).expect("small")];
                let half = if place.is_multiple_of(8) {
                    argument
                } else {
                    argument >> 32
                };
                u32::try_from(half & 0xffff_ffff).expect("masked")
            }
        };
        let (mut at, mut accumulator) = (0_usize, 0);
        loop {
            let now = self.program[at];
            at += 1;
            let holds = match now.code {
                LOAD => {
                    accumulator = word(now.value);
                    continue;
                }
                AND => {
                    accumulator &= now.value;
                    continue;
                }
                JUMP => {
                    at += usize::try_from(now.value).expect("small");
                    continue;
                }
                RETURN => return now.value,
                JUMP_EQUAL => accumulator == now.value,
                JUMP_GREATER => accumulator > now.value,
                JUMP_GREATER_EQUAL => accumulator >= now.value,
                other => panic!("instruction {other:#x}"),
            };
            at += usize::from(if holds { now.yes } else { now.no });
        }
    }

    fn native(&self, name: &str, arguments: [u64; 6]) -> u32 {
        let number = look_up(name).and_then(|row| Abi::X86_64.number(row));
        self.decide(&Call {
            architecture: AUDIT_X86_64,
            number: number.expect("a call of x86-64"),
            arguments,
        })
    }

    fn i386(&self, name: &str, arguments: [u64; 6]) -> u32 {
        let number = look_up(name).and_then(|row| Abi::I386.number(row));
        self.decide(&Call {
            architecture: AUDIT_I386,
            number: number.expect("a call of i386"),
            arguments,
        })
    }
}

const NONE: [u64; 6] = [0; 6];

fn first(argument: u64) -> [u64; 6] {
    [argument, 0, 0, 0, 0, 0]
}

/// The shape of an engine's default: most names allowed, some under conditions.
fn engine_profile() -> Value {
    let closed = [
        "bpf",
        "mount",
        "clone",
        "clone3",
        "personality",
        "socket",
        "keyctl",
    ];
    let open: Vec<&str> = TABLE
        .iter()
        .map(|row| row.0)
        .filter(|name| !closed.contains(name))
        .chain(["no_such_call", "s390_pci_mmio_read"])
        .collect();
    let personality = |value: u64| {
        json!({ "names": ["personality"], "action": "SCMP_ACT_ALLOW",
                "args": [{ "index": 0, "value": value, "op": "SCMP_CMP_EQ" }] })
    };
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            { "names": open, "action": "SCMP_ACT_ALLOW" },
            personality(0), personality(8), personality(0xffff_ffff),
            { "names": ["socket"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 0, "value": 40, "op": "SCMP_CMP_NE" }] },
            { "names": ["clone"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 0, "value": 0x7e02_0000, "op": "SCMP_CMP_MASKED_EQ" }] },
            { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
        ],
    })
}

#[test]
fn engines_profile_is_enforced_on_every_architecture() {
    let filter = compiled(engine_profile());
    assert_eq!(filter.native("openat", NONE), ALLOW);
    assert_eq!(filter.native("mount", NONE), ERRNO | EPERM);
    assert_eq!(filter.native("clone3", NONE), ERRNO | ENOSYS);
    assert_eq!(filter.native("personality", first(8)), ALLOW);
    assert_eq!(filter.native("personality", first(9)), ERRNO | EPERM);
    assert_eq!(
        filter.native("personality", first(0x1_0000_0008)),
        ERRNO | EPERM
    );
    assert_eq!(filter.native("socket", first(2)), ALLOW);
    assert_eq!(filter.native("socket", first(40)), ERRNO | EPERM);
    assert_eq!(filter.native("clone", first(0x11)), ALLOW);
    assert_eq!(filter.native("clone", first(0x1000_0011)), ERRNO | EPERM);
    assert_eq!(filter.i386("open", NONE), ALLOW);
    assert_eq!(filter.i386("keyctl", NONE), ERRNO | EPERM);
    let x32 = |number| Call {
        architecture: AUDIT_X86_64,
        number: X32_BIT | number,
        arguments: NONE,
    };
    assert_eq!(filter.decide(&x32(257)), ALLOW);
    assert_eq!(filter.decide(&x32(165)), ERRNO | EPERM);
    // 512 to 547 are x32's own.
    assert_eq!(filter.decide(&x32(520)), ALLOW);
}

#[test]
fn search_is_short() {
    let filter = compiled(engine_profile());
    assert!(filter.program.len() < 400, "{}", filter.program.len());
}

#[test]
fn newer_calls_than_the_profile_knows_do_not_exist() {
    let filter = compiled(engine_profile());
    let newest = TABLE.iter().map(|row| row.1).max().expect("rows");
    let call = |number: u32| {
        filter.decide(&Call {
            architecture: AUDIT_X86_64,
            number,
            arguments: NONE,
        })
    };
    let newest = u32::try_from(newest).expect("a number");
    assert_eq!(call(newest), ALLOW);
    assert_eq!(call(newest + 1), ERRNO | ENOSYS);
    assert_eq!(call(X32_BIT - 1), ERRNO | ENOSYS);
    assert_eq!(call(SKIPPED), ERRNO | EPERM);
}

#[test]
fn allowing_default_lets_new_calls_through() {
    let filter = compiled(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13 }],
    }));
    assert_eq!(filter.native("mkdir", NONE), ERRNO + 13);
    assert_eq!(filter.native("mkdirat", NONE), ALLOW);
    assert_eq!(filter.native("mseal", NONE), ALLOW);
}

#[test]
fn architectures_that_are_not_listed_kill() {
    let filter = compiled(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_AARCH64"],
    }));
    assert_eq!(filter.native("read", NONE), ALLOW);
    assert_eq!(filter.i386("read", NONE), KILL_THREAD);
    let x32 = Call {
        architecture: AUDIT_X86_64,
        number: X32_BIT,
        arguments: NONE,
    };
    assert_eq!(filter.decide(&x32), KILL_THREAD);
}

#[test]
fn every_comparison_works_on_all_64_bits() {
    let values = [
        0,
        1,
        7,
        8,
        9,
        1 << 31,
        u64::from(u32::MAX),
        1 << 32,
        (1 << 32) + 8,
        u64::MAX,
    ];
    let holds = |op: &str, argument: u64, value: u64| match op {
        "EQ" => argument == value,
        "NE" => argument != value,
        "LT" => argument < value,
        "LE" => argument <= value,
        "GE" => argument >= value,
        "GT" => argument > value,
        _ => argument & value == 8 & value,
    };
    for op in ["EQ", "NE", "LT", "LE", "GE", "GT", "MASKED_EQ"] {
        for value in values {
            let filter = compiled(json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86"],
                "syscalls": [{ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [
                    { "index": 5, "value": value, "valueTwo": 8, "op": format!("SCMP_CMP_{op}") },
                ] }],
            }));
            for argument in values {
                let arguments = [0, 0, 0, 0, 0, argument];
                let expected = if holds(op, argument, value) {
                    ERRNO | EPERM
                } else {
                    ALLOW
                };
                let what = format!("{argument:#x} {op} {value:#x}");
                assert_eq!(filter.native("kill", arguments), expected, "{what}");
                // An i386 program has only the low half.
                let (low, value) = (argument & 0xffff_ffff, value & 0xffff_ffff);
                let expected = if holds(op, low, value) {
                    ERRNO | EPERM
                } else {
                    ALLOW
                };
                let arguments = [0, 0, 0, 0, 0, low];
                assert_eq!(filter.i386("kill", arguments), expected, "{what}, i386");
            }
        }
    }
}

#[test]
fn conditions_hold_together_unless_they_name_one_argument_twice() {
    let filter = compiled(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            { "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22, "args": [
                { "index": 0, "value": 16, "op": "SCMP_CMP_EQ" },
                { "index": 2, "value": 9, "op": "SCMP_CMP_EQ" },
            ] },
            { "names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [
                { "index": 1, "value": 3, "op": "SCMP_CMP_EQ" },
                { "index": 1, "value": 5, "op": "SCMP_CMP_EQ" },
            ] },
        ],
    }));
    assert_eq!(filter.native("socket", [16, 0, 9, 0, 0, 0]), ERRNO + 22);
    assert_eq!(filter.native("socket", [16, 0, 8, 0, 0, 0]), ALLOW);
    assert_eq!(filter.native("socket", [2, 0, 9, 0, 0, 0]), ALLOW);
    for signal in [3, 5] {
        assert_eq!(
            filter.native("kill", [1, signal, 0, 0, 0, 0]),
            ERRNO | EPERM
        );
    }
    assert_eq!(filter.native("kill", [1, 4, 0, 0, 0, 0]), ALLOW);
}

#[test]
fn rule_without_conditions_beats_those_with() {
    let conditional = json!({ "names": ["kill"], "action": "SCMP_ACT_ERRNO",
                              "args": [{ "index": 1, "value": 9, "op": "SCMP_CMP_EQ" }] });
    let plain = json!({ "names": ["kill"], "action": "SCMP_ACT_TRAP" });
    for rules in [json!([conditional, plain]), json!([plain, conditional])] {
        let filter = compiled(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules }));
        assert_eq!(filter.native("kill", [1, 9, 0, 0, 0, 0]), TRAP);
    }
}

#[test]
fn old_ways_to_make_a_call_are_closed_with_it() {
    let filter = compiled(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [
            { "names": ["socket", "shmget"], "action": "SCMP_ACT_ERRNO" },
            { "names": ["bind"], "action": "SCMP_ACT_ERRNO",
              "args": [{ "index": 2, "value": 9, "op": "SCMP_CMP_EQ" }] },
        ],
    }));
    assert_eq!(filter.i386("socketcall", first(1)), ERRNO | EPERM);
    assert_eq!(filter.i386("socketcall", first(2)), ERRNO | EPERM);
    assert_eq!(filter.i386("socketcall", first(3)), ALLOW);
    assert_eq!(filter.i386("ipc", first(0x1_0017)), ERRNO | EPERM);
    assert_eq!(filter.i386("ipc", first(24)), ALLOW);

    // A condition that nobody can check opens nothing.
    let filter = compiled(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86"],
        "syscalls": [{ "names": ["socket"], "action": "SCMP_ACT_ALLOW",
                       "args": [{ "index": 0, "value": 40, "op": "SCMP_CMP_NE" }] }],
    }));
    assert_eq!(filter.i386("socket", first(1)), ALLOW);
    let new_call = filter.i386("socketcall", first(1));
    assert_eq!(new_call, ERRNO | EPERM);
}

#[test]
fn every_action_has_its_answer() {
    let cases = [
        ("KILL", None, KILL_THREAD),
        ("KILL_THREAD", None, KILL_THREAD),
        ("KILL_PROCESS", None, KILL_PROCESS),
        ("TRAP", None, TRAP),
        ("ERRNO", Some(5), ERRNO + 5),
        ("ERRNO", None, ERRNO | EPERM),
        ("TRACE", Some(7), TRACE + 7),
        ("TRACE", None, TRACE | EPERM),
        ("LOG", None, LOG),
    ];
    for (name, errno, expected) in cases {
        let filter = compiled(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["getpid"], "action": format!("SCMP_ACT_{name}"),
                           "errnoRet": errno }],
        }));
        assert_eq!(filter.native("getpid", NONE), expected, "{name}");
    }
}

#[test]
fn what_cannot_be_enforced_is_refused() {
    let rule = |rule: Value| {
        let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
        try_compile(profile).expect_err("refused")
    };
    let notify = rule(json!({ "names": ["mount"], "action": "SCMP_ACT_NOTIFY" }));
    assert_eq!(notify.code, Code::Unimplemented);
    assert!(notify.message.contains("SCMP_ACT_NOTIFY"), "{notify}");
    let invalid = [
        json!({ "names": ["mount"], "action": "SCMP_ACT_KILL", "errnoRet": 1 }),
        json!({ "names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4096 }),
        json!({ "names": ["mount"], "action": "SCMP_ACT_ERRNO",
                "args": [{ "index": 6, "value": 0, "op": "SCMP_CMP_EQ" }] }),
    ];
    for case in invalid {
        assert_eq!(rule(case.clone()).code, Code::InvalidArgument, "{case}");
    }
}

#[test]
fn flags_default_to_those_of_runc() {
    let flags =
        |flags: Value| compiled(json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": flags })).flags;
    assert_eq!(flags(Value::Null), FLAG_SPEC_ALLOW);
    assert_eq!(flags(json!([])), 0);
    let all = ["LOG", "TSYNC", "SPEC_ALLOW"].map(|flag| format!("SECCOMP_FILTER_FLAG_{flag}"));
    assert_eq!(flags(json!(all)), FLAG_LOG | FLAG_TSYNC | FLAG_SPEC_ALLOW);
}

#[test]
fn all_that_callers_are_told_of_compiles() {
    use lazaret_protocol::features;
    for action in features::SECCOMP_ACTIONS {
        for op in features::SECCOMP_OPERATORS {
            let condition = json!({ "index": 0, "value": 1, "valueTwo": 1, "op": op });
            compiled(json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": features::SECCOMP_ARCHS,
                "flags": features::SECCOMP_FLAGS,
                "syscalls": [{ "names": ["kill"], "action": action, "args": [condition] }],
            }));
        }
    }
}
