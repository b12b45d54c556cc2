//! How many files the guest remembers, and the alarm when they are many.
//!
//! Each is a descriptor here, which keeps an inode and its names in the host
//! kernel: one and a half to three KiB that nobody can reclaim but the guest, by
//! forgetting. Its kernel does that when its own memory is scarce, which may be
//! too late for the host's. So its agent is made to, in time.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::fcntl_dupfd_cloexec;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::event_loop::borrow;

/// Requests between two looks.
const LOOK_EVERY: u32 = 16;

#[derive(Debug)]
pub(super) struct Crowd {
    /// As many are too many.
    many: u32,
    /// How many there must be for the next alarm.
    next_alarm: AtomicU32,
    served: AtomicU32,
    alarm: EventFd,
}

impl Crowd {
    pub(super) fn new(many: u32) -> io::Result<Self> {
        Ok(Self {
            many,
            next_alarm: AtomicU32::new(many),
            served: AtomicU32::new(0),
            alarm: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Readable once there are many, and again whenever a quarter has been added.
    pub(super) fn alarm(&self) -> io::Result<EventFd> {
        self.alarm.try_clone()
    }

    /// To be called after each request; looks after those that bring `several`
    /// files at once, and now and then after the others.
    pub(super) fn served_one(&self, several: bool) {
        let served = self.served.fetch_add(1, Ordering::Relaxed);
        if several || served.is_multiple_of(LOOK_EVERY) {
            // Without a descriptor to be had, the guest is being told so anyway.
            if let Ok(lowest) = lowest_free_descriptor(&self.alarm) {
                self.look(lowest);
            }
        }
    }

    fn look(&self, there: u32) {
        let next = self.next_alarm.load(Ordering::Relaxed);
        let to = if there >= next {
            there.saturating_add(self.many / 4)
        } else if there < self.many / 2 {
            self.many
        } else {
            return;
        };
        let changed =
            self.next_alarm
                .compare_exchange(next, to, Ordering::Relaxed, Ordering::Relaxed);
        if changed.is_ok() && there >= next {
            // It can only be full of alarms.
            let _ = self.alarm.write(1);
        }
    }
}

/// At most the number of open descriptors, and just that while none is closed
/// before others are opened.
fn lowest_free_descriptor(any: &EventFd) -> io::Result<u32> {
    let copy: OwnedFd = fcntl_dupfd_cloexec(borrow(any), 0)?;
    Ok(copy.as_raw_fd().cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarm_is_given_once_for_each_crowd_and_when_it_grows() {
        let crowd = Crowd::new(100).unwrap();
        let alarmed = |there| {
            crowd.look(there);
            crowd.alarm.read().is_ok()
        };
        assert!(!alarmed(99));
        assert!(alarmed(110));
        assert!(!alarmed(134));
        assert!(alarmed(135));
        // Some are forgotten, but not half.
        assert!(!alarmed(60));
        assert!(!alarmed(120));
        assert!(!alarmed(49));
        assert!(alarmed(100));
    }
}
