//! What the host's network stack may leave to the guest's and the other way
//! round: unfinished checksums, segments to be cut (virtio 1.3, 5.1.3.1 and
//! 5.1.6), in terms of features, of frame headers and of the tap.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
    VIRTIO_NET_HDR_GSO_UDP_L4,
};

/// Bytes in front of each frame, in queues and at the tap.
pub(super) const HEADER_LEN: usize = 12;

/// Where a received frame's header says how many buffers it is in.
pub(super) const NUM_BUFFERS: usize = 10;

/// Feature bits for either direction, and the tap's flag for each.
const SENT: [(u32, u32); 6] = [
    (VIRTIO_NET_F_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_HOST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_HOST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_HOST_ECN, libc::TUN_F_TSO_ECN),
    (VIRTIO_NET_F_HOST_USO, libc::TUN_F_USO4),
    (VIRTIO_NET_F_HOST_USO, libc::TUN_F_USO6),
];
const RECEIVED: [(u32, u32); 6] = [
    (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
    (VIRTIO_NET_F_GUEST_USO4, libc::TUN_F_USO4),
    (VIRTIO_NET_F_GUEST_USO6, libc::TUN_F_USO6),
];

/// TCP segmentation.
const TSO: u32 = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;

/// UDP segmentation, which tap devices know from Linux 6.2 on.
const USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Everything above: the only values that the tap is ever given.
pub(crate) const ALL_OFFLOADS: u32 =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN | USO;

/// A set of offloads of one direction, as flags of the tap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offloads(u32);

impl Offloads {
    /// What the guest may leave to the host.
    pub(super) fn sent(features: u64) -> Self {
        Self::of(SENT, features)
    }

    /// What the host may leave to the guest. The kernel takes the two kinds of
    /// UDP segmentation together or not at all, and congestion marks of segments
    /// only along with segments.
    pub(super) fn received(features: u64) -> Self {
        let Self(mut flags) = Self::of(RECEIVED, features);
        if flags & USO != USO {
            flags &= !USO;
        }
        if flags & TSO == 0 {
            flags &= !libc::TUN_F_TSO_ECN;
        }
        Self(flags)
    }

    fn of(table: [(u32, u32); 6], features: u64) -> Self {
        let chosen = table.iter().filter(|(bit, _)| features & 1 << bit != 0);
        Self(chosen.fold(0, |flags, (_, flag)| flags | flag))
    }

    pub(super) fn without_uso(self) -> Self {
        Self(self.0 & !USO)
    }

    /// The tap's flags. Nothing else goes without checksums.
    pub(super) fn tun_flags(self) -> u32 {
        if self.0 & libc::TUN_F_CSUM == 0 {
            0
        } else {
            self.0
        }
    }

    /// A frame with this header asks for nothing but these offloads.
    pub(super) fn permit(self, header: &[u8; HEADER_LEN]) -> bool {
        let [flags, kind, ..] = header.map(u32::from);
        let mut wanted = 0;
        if flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
            wanted |= libc::TUN_F_CSUM;
        }
        if kind & VIRTIO_NET_HDR_GSO_ECN != 0 {
            wanted |= libc::TUN_F_TSO_ECN;
        }
        wanted |= match kind & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_NONE => 0,
            VIRTIO_NET_HDR_GSO_TCPV4 => libc::TUN_F_TSO4,
            VIRTIO_NET_HDR_GSO_TCPV6 => libc::TUN_F_TSO6,
            VIRTIO_NET_HDR_GSO_UDP_L4 => USO,
            _ => return false,
        };
        self.0 & wanted == wanted
    }
}

/// The features of all offloads; those that only a newer tap has if `uso`.
pub(super) fn features(uso: bool) -> u64 {
    let bits = SENT.iter().chain(&RECEIVED);
    bits.filter(|(_, flag)| uso || flag & USO == 0)
        .fold(0, |features, (bit, _)| features | 1 << bit)
}

/// Takes out of a header from the guest what is not the driver's to say.
pub(super) fn clean_sent(header: &mut [u8; HEADER_LEN]) {
    header[0] &= only_byte(VIRTIO_NET_HDR_F_NEEDS_CSUM);
    header[NUM_BUFFERS..].fill(0);
}

/// Takes out of a header from the tap what a driver without checksum offload
/// would not understand.
pub(super) fn clean_received(header: &mut [u8; HEADER_LEN], offloads: Offloads) {
    if offloads.0 & libc::TUN_F_CSUM == 0 {
        header[0] &= !only_byte(VIRTIO_NET_HDR_F_DATA_VALID);
    }
}

fn only_byte(flag: u32) -> u8 {
    flag.to_le_bytes()[0]
}

/// The kernel's tap devices know UDP segmentation.
pub(super) fn host_knows_uso() -> bool {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (6_u32, 2_u32),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TSO4: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4;
    const CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;

    fn header(flags: u8, kind: u8) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..2].copy_from_slice(&[flags, kind]);
        header
    }

    #[test]
    fn tap_is_told_what_was_negotiated() {
        let flags = |features| Offloads::received(features).tun_flags();
        assert_eq!(flags(0), 0);
        assert_eq!(flags(TSO4), 0);
        assert_eq!(flags(CSUM | TSO4), libc::TUN_F_CSUM | libc::TUN_F_TSO4);
        assert_eq!(flags(CSUM | 1 << VIRTIO_NET_F_GUEST_USO4), libc::TUN_F_CSUM);
        let ecn = CSUM | 1 << VIRTIO_NET_F_GUEST_ECN;
        assert_eq!(flags(ecn), libc::TUN_F_CSUM);
        let both = libc::TUN_F_TSO4 | libc::TUN_F_TSO_ECN;
        assert_eq!(flags(ecn | TSO4), libc::TUN_F_CSUM | both);
        assert_eq!(flags(features(true)), ALL_OFFLOADS);
        assert_eq!(flags(features(false)), ALL_OFFLOADS & !USO);
    }

    #[test]
    fn header_may_ask_for_what_was_negotiated_alone() {
        let offloads = Offloads::received(CSUM | TSO4);
        assert!(offloads.permit(&header(0, 0)));
        assert!(offloads.permit(&header(1, 1)));
        assert!(!offloads.permit(&header(1, 0x81)), "ECN");
        assert!(!offloads.permit(&header(1, 4)), "TCP over IPv6");
        assert!(!offloads.permit(&header(1, 3)), "UDP fragmentation");
        assert!(!offloads.permit(&header(1, 5)), "UDP segmentation");
        assert!(!offloads.permit(&header(1, 77)));
        assert!(!Offloads::default().permit(&header(1, 0)));
    }

    #[test]
    fn sent_header_keeps_only_what_is_the_drivers() {
        let mut all = [0xff; HEADER_LEN];
        clean_sent(&mut all);
        assert_eq!((all[0], all[10], all[11]), (1, 0, 0));
        assert_eq!(all[1..10], [0xff; 9]);
    }
}
