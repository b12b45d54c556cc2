//! Classic BPF: what a seccomp filter is made of, and the search for a system call in
//! it. The kernel runs the filter for every number once at load time and then for
//! each call that it could not prove to be always allowed, so the search is a binary
//! one over ranges of numbers, not a comparison with every number
//! (`Documentation/userspace-api/seccomp_filter.rst`).

/// `struct sock_filter`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) yes: u8,
    pub(super) no: u8,
    pub(super) value: u32,
}

/// Codes of `linux/bpf_common.h`, each the class with its mode or operation.
pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_EQUAL: u16 = 0x15;
pub(super) const JUMP_GREATER: u16 = 0x25;
pub(super) const JUMP_GREATER_EQUAL: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

/// The kernel's limit (`BPF_MAXINSNS`).
pub(super) const INSTRUCTIONS_MAX: usize = 4096;

/// Offsets in `struct seccomp_data`.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;
pub(super) const ARGUMENTS: u32 = 16;

const fn plain(code: u16, value: u32) -> Instruction {
    Instruction {
        code,
        yes: 0,
        no: 0,
        value,
    }
}

pub(super) const fn load(offset: u32) -> Instruction {
    plain(LOAD, offset)
}

pub(super) const fn and(mask: u32) -> Instruction {
    plain(AND, mask)
}

pub(super) const fn answer(action: u32) -> Instruction {
    plain(RETURN, action)
}

pub(super) const fn jump_if(code: u16, value: u32, yes: u8, no: u8) -> Instruction {
    Instruction {
        code,
        yes,
        no,
        value,
    }
}

/// What is done about the numbers of one range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Leaf {
    Answer(u32),
    /// Ends in an answer on every way through it.
    Code(Vec<Instruction>),
}

/// Every number up to the start of the next range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u32,
    pub(super) leaf: Leaf,
}

/// Adds a range, or lets the one before it go on where it would do the same.
pub(super) fn push(ranges: &mut Vec<Range>, start: u32, leaf: Leaf) {
    if ranges.last().is_some_and(|last| last.start == start) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|last| last.leaf != leaf) {
        ranges.push(Range { start, leaf });
    }
}

/// Goes to the range of the number in the accumulator. The first range starts at 0.
pub(super) fn search(ranges: &[Range]) -> Vec<Instruction> {
    match ranges {
        [] => Vec::new(),
        [only] => match &only.leaf {
            Leaf::Answer(action) => vec![answer(*action)],
            Leaf::Code(code) => code.clone(),
        },
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let pivot = high.first().map_or(0, |range| range.start);
            branch(JUMP_GREATER_EQUAL, pivot, search(high), search(low))
        }
    }
}

/// One code where the comparison holds, the other where it does not.
pub(super) fn branch(
    code: u16,
    value: u32,
    yes: Vec<Instruction>,
    no: Vec<Instruction>,
) -> Vec<Instruction> {
    let mut all = if let Ok(distance) = u8::try_from(no.len()) {
        vec![jump_if(code, value, distance, 0)]
    } else {
        // Conditional jumps are short, this one is not.
        let distance = u32::try_from(no.len()).unwrap_or(u32::MAX);
        vec![jump_if(code, value, 0, 1), plain(JUMP, distance)]
    };
    all.extend(no);
    all.extend(yes);
    all
}
