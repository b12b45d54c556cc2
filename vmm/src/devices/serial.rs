//! The serial console: what the guest kernel prints, and nothing back.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// COM1.
const BASE: u16 = 0x3f8;
const PORTS: u16 = 8;
pub const IRQ: u32 = 4;

/// A line is written when it ends, or when it is this long.
const LINE_MAX: usize = 1024;

/// Bytes a guest may print at once, a boot with all messages several times over …
const BURST: usize = 256 * 1024;
/// … and each second after that.
const PER_SECOND: usize = 16 * 1024;

/// The register that `port` is, if it is the console's.
pub fn offset(port: u16) -> Option<u8> {
    let offset = port.checked_sub(BASE)?;
    u8::try_from(offset).ok().filter(|_| offset < PORTS)
}

/// A 16550 whose output goes to the console descriptor.
#[derive(Debug)]
pub struct SerialPort(Serial<Irq, NoEvents, Console>);

impl SerialPort {
    pub fn new(irqfd: EventFd, console: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&console, true)?;
        Ok(Self(Serial::new(Irq(irqfd), Console::new(console.into()))))
    }

    pub fn read(&mut self, offset: u8, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.0.read(offset);
        }
    }

    pub fn write(&mut self, offset: u8, data: &[u8]) {
        for byte in data {
            // What the interrupt or the console could not take is lost, as on a
            // line that nobody listens to.
            let _ = self.0.write(offset, *byte);
        }
    }

    pub fn flush(&mut self) {
        self.0.writer_mut().write_line();
    }
}

#[derive(Debug)]
struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Lines for the log, never more than the budget, never waiting for a reader.
#[derive(Debug)]
struct Console {
    out: File,
    line: Vec<u8>,
    budget: usize,
    refilled: Instant,
    dropped: usize,
}

impl Console {
    fn new(out: File) -> Self {
        Self {
            out,
            line: Vec::with_capacity(LINE_MAX),
            budget: BURST,
            refilled: Instant::now(),
            dropped: 0,
        }
    }

    fn write_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return;
        }
        self.refill();
        if line.len() > self.budget {
            self.dropped += line.len();
        } else {
            self.budget -= line.len();
            self.confess();
            if self.out.write_all(&line).is_err() {
                self.dropped += line.len();
            }
        }
        self.line = line;
        self.line.clear();
    }

    fn refill(&mut self) {
        let seconds = self.refilled.elapsed().as_secs();
        if seconds > 0 {
            let gained = usize::try_from(seconds)
                .unwrap_or(usize::MAX)
                .saturating_mul(PER_SECOND);
            self.budget = self.budget.saturating_add(gained).min(BURST);
            self.refilled += Duration::from_secs(seconds);
        }
    }

    fn confess(&mut self) {
        if self.dropped > 0 {
            let note = format!("[{} bytes of console output dropped]\n", self.dropped);
            if self.out.write_all(note.as_bytes()).is_ok() {
                self.dropped = 0;
            }
        }
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() == LINE_MAX {
                self.write_line();
            }
        }
        Ok(bytes.len())
    }

    /// The port flushes after each byte; lines are what is worth a write.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn port() -> (SerialPort, File) {
        let file = tempfile::tempfile().unwrap();
        let port =
            SerialPort::new(EventFd::new(0).unwrap(), file.try_clone().unwrap().into()).unwrap();
        (port, file)
    }

    fn contents(mut file: File) -> String {
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn lines_are_written_when_they_end_or_are_flushed() {
        let (mut port, file) = port();
        port.write(0, b"one\ntwo");
        assert_eq!(contents(file.try_clone().unwrap()), "one\n");
        port.flush();
        assert_eq!(contents(file), "one\ntwo");
    }

    #[test]
    fn flood_is_cut_at_the_budget() {
        let (mut port, file) = port();
        let line = [b'x'; LINE_MAX];
        for _ in 0..2 * BURST / LINE_MAX {
            port.write(0, &line);
        }
        assert!(contents(file).len() <= BURST + PER_SECOND);
    }

    #[test]
    fn only_the_consoles_ports_are_its_own() {
        assert_eq!(offset(0x3f8), Some(0));
        assert_eq!(offset(0x3ff), Some(7));
        assert_eq!(offset(0x400), None);
        assert_eq!(offset(0x3f7), None);
    }
}
