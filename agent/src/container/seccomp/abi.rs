//! The three ways to call an x86-64 kernel, and which number a name has in each.

use super::condition::Width;
use super::table::{Row, TABLE};

/// `AUDIT_ARCH_I386` and `AUDIT_ARCH_X86_64` of linux/audit.h.
pub(super) const AUDIT_I386: u32 = 0x4000_0003;
pub(super) const AUDIT_X86_64: u32 = 0xc000_003e;

/// Marks the calls of x32 programs, which are x86-64 ones otherwise.
pub(super) const X32_BIT: u32 = 0x4000_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abi {
    X86_64,
    I386,
    X32,
}

impl Abi {
    /// The arguments of x32 calls are compared as the wide registers they come in.
    pub(super) fn width(self) -> Width {
        match self {
            Self::X86_64 | Self::X32 => Width::Bits64,
            Self::I386 => Width::Bits32,
        }
    }

    pub(super) fn number(self, row: &Row) -> Option<u32> {
        let (_, x86_64, i386, x32) = row;
        match self {
            Self::X86_64 => u32::try_from(*x86_64).ok(),
            Self::I386 => u32::try_from(*i386).ok(),
            Self::X32 => u32::try_from(*x32).ok().map(|number| number | X32_BIT),
        }
    }
}

pub(super) fn look_up(name: &str) -> Option<&'static Row> {
    let place = TABLE.binary_search_by(|row| row.0.cmp(name)).ok()?;
    TABLE.get(place)
}

/// Calls that i386 programs can also make through another one, whose first argument
/// then says which is meant (linux/net.h, linux/ipc.h).
pub(super) fn multiplexed(name: &str) -> Option<(&'static str, u32)> {
    let place = |calls: &[(&str, u32)]| {
        let call = calls.iter().find(|(call, _)| *call == name);
        call.map(|(_, number)| *number)
    };
    let socket = place(&SOCKET_CALLS).map(|number| ("socketcall", number));
    socket.or_else(|| place(&IPC_CALLS).map(|number| ("ipc", number)))
}

const SOCKET_CALLS: [(&str, u32); 20] = [
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

const IPC_CALLS: [(&str, u32); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_and_names_have_their_numbers() {
        assert!(TABLE.is_sorted_by(|one, other| one.0 < other.0));
        let numbers = |name| {
            let row = look_up(name);
            [Abi::X86_64, Abi::I386, Abi::X32].map(|abi| row.and_then(|row| abi.number(row)))
        };
        assert_eq!(
            numbers("openat"),
            [Some(257), Some(295), Some(X32_BIT + 257)]
        );
        assert_eq!(numbers("socketcall"), [None, Some(102), None]);
        assert_eq!(numbers("execve"), [Some(59), Some(11), Some(X32_BIT + 520)]);
        assert_eq!(numbers("no_such_call"), [None; 3]);
    }

    #[test]
    fn old_socket_and_ipc_calls_are_known() {
        assert_eq!(multiplexed("socket"), Some(("socketcall", 1)));
        assert_eq!(multiplexed("shmctl"), Some(("ipc", 24)));
        assert_eq!(multiplexed("open"), None);
    }
}
