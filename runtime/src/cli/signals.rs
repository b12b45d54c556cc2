//! Signals that `lazaret` passes on to the container it attends.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Numbers of signal(7) on x86-64 and arm64.
pub const SIGHUP: u32 = 1;
pub const SIGINT: u32 = 2;
pub const SIGQUIT: u32 = 3;
pub const SIGKILL: u32 = 9;
pub const SIGTERM: u32 = 15;
pub const SIGWINCH: u32 = 28;

const PASSED_ON: [(u32, fn() -> SignalKind); 7] = [
    (SIGHUP, SignalKind::hangup),
    (SIGINT, SignalKind::interrupt),
    (SIGQUIT, SignalKind::quit),
    (10, SignalKind::user_defined1),
    (12, SignalKind::user_defined2),
    (SIGTERM, SignalKind::terminate),
    (SIGWINCH, SignalKind::window_change),
];

const NAMES: [(&str, u32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// A signal by its number, or its name with or without `SIG`.
pub fn parse(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    NAMES
        .iter()
        .find(|(name, _)| *name == bare)
        .map(|(_, number)| *number)
}

/// The signals that this process gets from now on, instead of dying of them.
#[derive(Debug)]
pub struct Signals {
    receiver: mpsc::UnboundedReceiver<u32>,
}

impl Signals {
    pub fn catch() -> io::Result<Self> {
        let (sender, receiver) = mpsc::unbounded_channel();
        for (number, kind) in PASSED_ON {
            let mut signals = signal(kind())?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while signals.recv().await.is_some() && sender.send(number).is_ok() {}
            });
        }
        Ok(Self { receiver })
    }

    pub async fn next(&mut self) -> u32 {
        match self.receiver.recv().await {
            Some(signal) => signal,
            // The senders live as long as the runtime.
            None => std::future::pending().await,
        }
    }

    /// The next signal that asks for the end.
    pub async fn end(&mut self) -> u32 {
        loop {
            let signal = self.next().await;
            if matches!(signal, SIGHUP | SIGINT | SIGQUIT | SIGTERM) {
                return signal;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigusr1", 10),
            ("64", 64),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "0", "65", "-1", "NOPE", "SIG"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
