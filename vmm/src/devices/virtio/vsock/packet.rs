//! The packet header (virtio 1.3, 5.10.6): parsing and printing, no state.

/// `virtio_vsock_hdr`, bytes.
pub(super) const HEADER_SIZE: usize = 44;

/// CID of the host.
pub(super) const HOST_CID: u64 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM`, the only type served.
pub(super) const TYPE_STREAM: u16 = 1;

/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;

/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;

pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// `virtio_vsock_op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

impl Op {
    const ALL: [(u16, Self); 7] = [
        (1, Self::Request),
        (2, Self::Response),
        (3, Self::Reset),
        (4, Self::Shutdown),
        (5, Self::Data),
        (6, Self::CreditUpdate),
        (7, Self::CreditRequest),
    ];

    pub(super) fn from_number(number: u16) -> Option<Self> {
        let found = Self::ALL.iter().find(|(n, _)| *n == number);
        found.map(|(_, op)| *op)
    }

    pub(super) fn number(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// A packet's header, its numbers as the sender wrote them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_SIZE]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// The next `N` bytes; the callers' fields add up to the header's size.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (field, after) = rest.split_first_chunk().expect("fields fill the header");
    *rest = after;
    *field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_survives_the_round_trip() {
        let mut bytes = [0; HEADER_SIZE];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::try_from(at + 1).unwrap();
        }
        let header = Header::parse(&bytes);
        assert_eq!(header.src_cid, 0x0807_0605_0403_0201);
        assert_eq!(header.fwd_cnt, 0x2c2b_2a29);
        assert_eq!(header.to_bytes(), bytes);
    }

    #[test]
    fn operations_keep_their_numbers() {
        for (number, op) in Op::ALL {
            assert_eq!(op.number(), number);
            assert_eq!(Op::from_number(number), Some(op));
        }
        assert_eq!(Op::from_number(0), None);
        assert_eq!(Op::from_number(8), None);
    }
}
