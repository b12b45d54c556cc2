//! Comparisons of a system call's arguments (`linux.seccomp.syscalls[].args`).

use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator};

use super::program::{
    ARGUMENTS, Instruction, JUMP_EQUAL, JUMP_GREATER, JUMP_GREATER_EQUAL, and, answer, jump_if,
    load,
};
use crate::failure::{Failure, Result};

/// System calls have six arguments.
const ARGUMENTS_MAX: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    argument: u32,
    operator: LinuxSeccompOperator,
    value: u64,
    /// For masked comparison, of which `value` is the mask.
    wanted: u64,
}

/// How wide the arguments of an architecture are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Bits32,
    Bits64,
}

impl Condition {
    pub(super) fn new(spec: &LinuxSeccompArg) -> Result<Self> {
        if spec.index() >= ARGUMENTS_MAX {
            return Err(Failure::invalid(format!(
                "linux.seccomp: system calls have no argument {}",
                spec.index()
            )));
        }
        Ok(Self {
            argument: u32::try_from(spec.index()).unwrap_or_default(),
            operator: spec.op(),
            value: spec.value(),
            wanted: spec.value_two().unwrap_or_default(),
        })
    }

    /// The first argument equals this number in its low half.
    pub(super) fn low_half(number: u32) -> Self {
        Self {
            argument: 0,
            operator: LinuxSeccompOperator::ScmpCmpMaskedEq,
            value: 0xffff,
            wanted: number.into(),
        }
    }

    pub(super) fn argument(self) -> u32 {
        self.argument
    }

    fn steps(self, width: Width) -> Vec<Step> {
        use LinuxSeccompOperator as Op;
        use Target::{Fail, Pass};
        // The halves of an argument, the low one first in memory.
        let low = ARGUMENTS + 8 * self.argument;
        let high = low + 4;
        let (value_high, value_low) = halves(self.value);
        let is_wide = width == Width::Bits64;
        let mut steps = Vec::with_capacity(6);
        let mut add = |step: Step| steps.push(step);
        match self.operator {
            Op::ScmpCmpEq | Op::ScmpCmpNe => {
                let (same, other) = match self.operator {
                    Op::ScmpCmpEq => (Pass, Fail),
                    _ => (Fail, Pass),
                };
                if is_wide {
                    add(Step::Load(high));
                    add(Step::Jump(JUMP_EQUAL, value_high, Target::Next, other));
                }
                add(Step::Load(low));
                add(Step::Jump(JUMP_EQUAL, value_low, same, other));
            }
            Op::ScmpCmpMaskedEq => {
                let (wanted_high, wanted_low) = halves(self.wanted & self.value);
                if is_wide {
                    add(Step::Load(high));
                    add(Step::And(value_high));
                    add(Step::Jump(JUMP_EQUAL, wanted_high, Target::Next, Fail));
                }
                add(Step::Load(low));
                add(Step::And(value_low));
                add(Step::Jump(JUMP_EQUAL, wanted_low, Pass, Fail));
            }
            // Less is the contrary of greater or equal, and so on.
            Op::ScmpCmpGt | Op::ScmpCmpLe | Op::ScmpCmpGe | Op::ScmpCmpLt => {
                let (greater, smaller) = match self.operator {
                    Op::ScmpCmpGt | Op::ScmpCmpGe => (Pass, Fail),
                    _ => (Fail, Pass),
                };
                if is_wide {
                    add(Step::Load(high));
                    add(Step::Jump(JUMP_GREATER, value_high, greater, Target::Next));
                    add(Step::Jump(JUMP_EQUAL, value_high, Target::Next, smaller));
                }
                add(Step::Load(low));
                let code = match self.operator {
                    Op::ScmpCmpGt | Op::ScmpCmpLe => JUMP_GREATER,
                    _ => JUMP_GREATER_EQUAL,
                };
                add(Step::Jump(code, value_low, greater, smaller));
            }
        }
        steps
    }
}

fn halves(value: u64) -> (u32, u32) {
    let low = u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default();
    let high = u32::try_from(value >> 32).unwrap_or_default();
    (high, low)
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Load(u32),
    And(u32),
    Jump(u16, u32, Target, Target),
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Next,
    /// The condition holds.
    Pass,
    /// It does not, and so the rule does not apply.
    Fail,
}

/// Answers with the action where all conditions hold, and falls off its end where one
/// does not. At most six conditions of six steps each: every jump is short.
pub(super) fn rule(conditions: &[Condition], action: u32, width: Width) -> Vec<Instruction> {
    let groups: Vec<Vec<Step>> = conditions.iter().map(|one| one.steps(width)).collect();
    let length: usize = groups.iter().map(Vec::len).sum();
    let mut code = Vec::with_capacity(length + 1);
    let mut end_of_condition = 0;
    for steps in groups {
        end_of_condition += steps.len();
        for step in steps {
            // Distances count from the instruction behind the jump.
            let next = code.len() + 1;
            let distance = |target| {
                let place = match target {
                    Target::Next => next,
                    Target::Pass => end_of_condition,
                    // Behind the answer.
                    Target::Fail => length + 1,
                };
                u8::try_from(place - next).unwrap_or(u8::MAX)
            };
            code.push(match step {
                Step::Load(offset) => load(offset),
                Step::And(mask) => and(mask),
                Step::Jump(code, value, yes, no) => {
                    jump_if(code, value, distance(yes), distance(no))
                }
            });
        }
    }
    code.push(answer(action));
    code
}
