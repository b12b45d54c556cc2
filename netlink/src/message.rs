//! Messages and attributes of netlink(7): lengths, padding, nesting.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;

/// `struct nlmsghdr`: length, type, flags, sequence number, port.
pub(crate) const HEADER: usize = 16;

/// `struct nlattr`: length and type.
const ATTRIBUTE_HEADER: usize = 4;

/// `NLA_F_NESTED`; the two highest bits are no part of the type.
pub const NEST: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

pub(crate) fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// A request under construction.
#[derive(Debug)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// `body` is the structure that the type starts with.
    pub fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(body);
        bytes.resize(padded(bytes.len()), 0);
        Self { bytes }
    }

    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nest(kind, |message| message.bytes.extend_from_slice(value));
    }

    /// A structure in the midst of attributes.
    pub fn body(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    pub fn ip(&mut self, kind: u16, value: IpAddr) {
        match value {
            IpAddr::V4(ip) => self.attribute(kind, &ip.octets()),
            IpAddr::V6(ip) => self.attribute(kind, &ip.octets()),
        }
    }

    /// A C string.
    pub fn string(&mut self, kind: u16, value: &str) {
        self.nest(kind, |message| {
            message.bytes.extend_from_slice(value.as_bytes());
            message.bytes.push(0);
        });
    }

    /// An attribute whose value `fill` writes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; ATTRIBUTE_HEADER]);
        fill(self);
        // What is written here is small and our own.
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.bytes.resize(padded(self.bytes.len()), 0);
    }

    pub(crate) fn add_flags(&mut self, flags: u16) {
        let present = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        self.bytes[6..8].copy_from_slice(&(present | flags).to_ne_bytes());
    }

    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A message of the kernel, without its header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: Vec<u8>,
}

impl Reply {
    /// The structure it starts with, and its attributes.
    pub fn split<const N: usize>(&self) -> Result<(&[u8; N], Attributes<'_>), Errno> {
        let body = self.payload.first_chunk().ok_or(Errno::BADMSG)?;
        let rest = self.payload.get(padded(N)..).unwrap_or_default();
        Ok((body, Attributes::new(rest)))
    }
}

/// The messages of one datagram.
pub(crate) fn replies(mut datagram: &[u8]) -> Result<Vec<Reply>, Errno> {
    let mut replies = Vec::new();
    while !datagram.is_empty() {
        let header: &[u8; HEADER] = datagram.first_chunk().ok_or(Errno::BADMSG)?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let payload = datagram.get(HEADER..length).ok_or(Errno::BADMSG)?;
        replies.push(Reply {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload: payload.to_vec(),
        });
        datagram = datagram.get(padded(length)..).unwrap_or_default();
    }
    Ok(replies)
}

/// Attributes one after the other. Broken ones end the iteration.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn find(&self, wanted: u16) -> Option<&'a [u8]> {
        self.clone()
            .find_map(|(kind, value)| (kind == wanted).then_some(value))
    }

    pub fn number(&self, wanted: u16) -> Option<u32> {
        let value = self.find(wanted)?;
        Some(u32::from_ne_bytes(value.try_into().ok()?))
    }

    pub fn ip(&self, wanted: u16) -> Option<IpAddr> {
        ip(self.find(wanted)?)
    }

    pub fn nested(&self, wanted: u16) -> Option<Attributes<'a>> {
        self.find(wanted).map(Attributes::new)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let [l0, l1, k0, k1] = *self.rest.first_chunk::<ATTRIBUTE_HEADER>()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.rest.get(ATTRIBUTE_HEADER..length)?;
        self.rest = self.rest.get(padded(length)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & TYPE_MASK, value))
    }
}

pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets = <[u8; 16]>::try_from(bytes).ok()?;
    Some(Ipv6Addr::from(octets).into())
}

/// A C string of the kernel.
pub fn text(value: &[u8]) -> String {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

pub(crate) fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => crate::AF_INET,
        IpAddr::V6(_) => crate::AF_INET6,
    }
}

/// The address of which nothing is fixed.
pub(crate) fn unspecified(family: u8) -> Option<IpAddr> {
    match family {
        crate::AF_INET => Some(Ipv4Addr::UNSPECIFIED.into()),
        crate::AF_INET6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        const INFO: u16 = 0x12;
        let mut message = Message::new(16, 5, &[1; 6]);
        message.string(3, "eth0");
        message.nest(INFO | NEST, |nest| nest.number(1, 7));
        message.ip(4, "fd00::1".parse().unwrap());
        let bytes = message.finish(99);
        let [reply] = &replies(&bytes).unwrap()[..] else {
            panic!("one message");
        };
        assert_eq!((reply.kind, reply.flags, reply.sequence), (16, 5, 99));
        let (body, attributes) = reply.split::<6>().unwrap();
        assert_eq!(body, &[1; 6]);
        assert_eq!(text(attributes.find(3).unwrap()), "eth0");
        assert_eq!(attributes.nested(INFO).unwrap().number(1), Some(7));
        assert_eq!(attributes.ip(4), Some("fd00::1".parse().unwrap()));
        assert_eq!(attributes.number(5), None);
    }

    #[test]
    fn broken_lengths_are_no_panic() {
        assert_eq!(replies(&[1; 15]), Err(Errno::BADMSG));
        for length in [0_u32, 15, 17, u32::MAX] {
            let mut bytes = [0; HEADER];
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(replies(&bytes), Err(Errno::BADMSG), "{length}");
        }
        for length in [0_u16, 3, 9, u16::MAX] {
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Attributes::new(&bytes).count(), 0, "{length}");
        }
    }
}
