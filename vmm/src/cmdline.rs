//! The kernel command line: nothing probed that is known here.

use std::fmt::Write;

use crate::arch::x86_64::layout;
use crate::devices::virtio::mmio::WINDOW_SIZE;

/// What every guest is booted with.
///
/// - `reboot=k,panic_warm panic=-1`: reset by the keyboard controller at once,
///   and leave a mark if it was a panic
/// - `8250.nr_uarts=1`: one serial port, not four to be probed
/// - `quiet`: each byte on the console is an exit; `loglevel` as in the kernel
/// - `tsc=reliable no_timer_check`: kvmclock has told, nothing is calibrated
/// - `random.trust_cpu=on`: no wait for entropy; the agent adds the host's
/// - `cgroup_no_v1=all`: containers see version 2 alone
/// - `dummy.numdummies=0`: no interface that nobody asked for
const BASE: &str = "console=ttyS0 8250.nr_uarts=1 quiet reboot=k,panic_warm panic=-1 \
                    tsc=reliable no_timer_check random.trust_cpu=on cgroup_no_v1=all \
                    dummy.numdummies=0";

/// The command line for `slots` virtio-mmio slots.
pub fn build(slots: usize, extra: &str) -> String {
    let mut line = BASE.to_owned();
    for (irq, base) in (layout::VIRTIO_IRQ_BASE..).zip(slot_bases()).take(slots) {
        // Writing to a string does not fail.
        let _ = write!(line, " virtio_mmio.device=4K@{base:#x}:{irq}");
    }
    if !extra.is_empty() {
        line.push(' ');
        line.push_str(extra);
    }
    line
}

/// First address of each slot's window.
pub fn slot_bases() -> impl Iterator<Item = u64> {
    (0..).map(|slot| layout::VIRTIO_MMIO_BASE + slot * WINDOW_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_has_a_window_and_a_line_of_its_own() {
        let line = build(2, "init=/x");
        assert!(line.ends_with(
            " virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 init=/x"
        ));
    }

    #[test]
    fn all_slots_fit_the_command_line() {
        assert!(build(crate::config::MAX_VIRTIO_SLOTS, "").len() < layout::CMDLINE_MAX);
    }
}
