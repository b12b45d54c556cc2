//! Flow control by credit (virtio 1.3, 5.10.6.3): each side tells the other how
//! large its buffer is and how much has left it; counters wrap.

use std::num::Wrapping;

use super::packet::Header;

/// What the guest can take.
#[derive(Debug, Default)]
pub(super) struct GuestCredit {
    buf_alloc: u32,
    fwd_cnt: Wrapping<u32>,
    sent: Wrapping<u32>,
    /// It was asked for credit and has not given any.
    pub(super) asked: bool,
}

impl GuestCredit {
    /// Every packet of the guest carries its numbers.
    pub(super) fn update(&mut self, header: &Header) {
        self.buf_alloc = header.buf_alloc;
        self.fwd_cnt = Wrapping(header.fwd_cnt);
        self.asked &= self.bytes() == 0;
    }

    pub(super) fn spend(&mut self, bytes: u32) {
        self.sent += bytes;
    }

    /// Bytes that may be sent. Numbers that cannot be give none.
    pub(super) fn bytes(&self) -> u32 {
        self.buf_alloc.saturating_sub((self.sent - self.fwd_cnt).0)
    }
}

/// What we let the guest send.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) size: u32,
    pub(super) forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
}

impl Window {
    pub(super) fn new(size: u32) -> Self {
        Self {
            size,
            forwarded: Wrapping(0),
            told: Wrapping(0),
        }
    }

    /// The socket has taken `bytes`.
    pub(super) fn forward(&mut self, bytes: usize) {
        // One write takes no more than the window, which is a u32.
        self.forwarded += u32::try_from(bytes).unwrap_or(u32::MAX);
    }

    /// The guest is being told of all that was forwarded.
    pub(super) fn told(&mut self) {
        self.told = self.forwarded;
    }

    /// The guest counts as free what it was told of. Half the window is kept in
    /// its sight, so that it seldom has to stop and ask.
    pub(super) fn is_half_unseen(&self) -> bool {
        (self.forwarded - self.told).0 >= self.size / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header {
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        }
    }

    #[test]
    fn credit_is_what_was_neither_sent_nor_forwarded() {
        let mut credit = GuestCredit::default();
        assert_eq!(credit.bytes(), 0);
        credit.update(&told(100, 0));
        credit.spend(70);
        assert_eq!(credit.bytes(), 30);
        credit.update(&told(100, 50));
        assert_eq!(credit.bytes(), 80);
    }

    #[test]
    fn credit_survives_counters_that_wrap() {
        let mut credit = GuestCredit::default();
        credit.update(&told(100, u32::MAX - 9));
        credit.sent = Wrapping(u32::MAX - 9);
        credit.spend(30);
        assert_eq!(credit.bytes(), 70);
        credit.update(&told(100, 20));
        assert_eq!(credit.bytes(), 100);
    }

    #[test]
    fn impossible_numbers_give_no_credit() {
        let mut credit = GuestCredit::default();
        credit.update(&told(u32::MAX / 2, 10));
        assert_eq!(credit.bytes(), 0, "forwarded what was never sent");
        credit.spend(60);
        credit.update(&told(20, 0));
        assert_eq!(credit.bytes(), 0, "buffer shrunk below what it holds");
    }

    #[test]
    fn guest_is_told_once_half_the_window_is_out_of_its_sight() {
        let mut window = Window::new(100);
        window.forward(49);
        assert!(!window.is_half_unseen());
        window.forward(1);
        assert!(window.is_half_unseen());
        window.told();
        assert!(!window.is_half_unseen());
    }
}
