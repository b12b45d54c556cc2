//! What the machine's clock counts, and so what figures are measured in.

use lazaret_tests::Machine;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Time, on a processor with virtualisation.
    Time,
    /// A million instructions of the emulated processor for each millisecond, host and guest
    /// together.
    Instructions,
    /// Time, on an emulated processor.
    Emulated,
}

impl Clock {
    pub(crate) fn of(machine: &Machine) -> Self {
        match (machine, machine.counts_instructions()) {
            (_, true) => Self::Instructions,
            (Machine::Host, false) => Self::Time,
            (Machine::Lab(_), false) => Self::Emulated,
        }
    }

    pub(crate) fn milliseconds(self) -> &'static str {
        match self {
            Self::Time => "ms",
            Self::Instructions => "lab ms",
            Self::Emulated => "emulated ms",
        }
    }

    pub(crate) fn microseconds(self) -> &'static str {
        match self {
            Self::Time => "µs",
            Self::Instructions => "lab µs",
            Self::Emulated => "emulated µs",
        }
    }

    pub(crate) fn mebibytes(self) -> &'static str {
        match self {
            Self::Time => "MiB/s",
            Self::Instructions => "MiB/lab s",
            Self::Emulated => "MiB/emulated s",
        }
    }

    pub(crate) fn operations(self) -> &'static str {
        match self {
            Self::Time => "1/s",
            Self::Instructions => "1/lab s",
            Self::Emulated => "1/emulated s",
        }
    }
}
