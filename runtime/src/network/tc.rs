//! Traffic control: everything that comes in on one link goes out on another
//! (tc-mirred(8)), so that a tap and an engine's interface are one wire, whatever made
//! the interface.
//!
//! The filter is u32 matching anything: older and leaner kernels have no matchall.
//!
//! An engine's resolver forwards what it does not know from within the network
//! namespace, as if it were the container. [`share`] lets the answers through to it:
//! they are told by a range of ports that the guest's kernel does not use.

use lazaret_netlink::{Attributes, CREATE, EXCLUSIVE, Message, NEST, Socket, text};
use rustix::io::Errno;

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_U32_CLASSID: u16 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;

/// `TC_H_INGRESS`: where an ingress qdisc hangs.
const INGRESS: u32 = 0xffff_fff1;
/// The handle that every ingress qdisc has.
const HANDLE: u32 = 0xffff_0000;

const ETH_P_ALL: u16 = 3;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_ICMPV6: u32 = 58;
const NEIGHBOUR_ADVERTISEMENT: u32 = 136;

const TC_U32_TERMINAL: u8 = 1;
const TC_ACT_PIPE: u32 = 3;
const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;
const TCA_EGRESS_MIRROR: u32 = 2;

/// By which our filters are known, and ordered: those for the host come first.
const PRIORITIES: std::ops::RangeInclusive<u16> = 0x6c70..=0x6c7f;
const SHARE_ARP: u16 = 0x6c70;
const SHARE_IPV4: u16 = 0x6c71;
const SHARE_IPV6: u16 = 0x6c72;
const REDIRECT: u16 = 0x6c7f;

/// Ports of the host's side, as a mask matches them. A kernel's own choice for a guest
/// ends at 60,999, but resolvers that choose for themselves take any: what is here is
/// lost to them, and so there is no more of it than the guest's queries and the
/// engine's own on their behalf may need.
pub(super) const SHARED_PORTS: (u16, u16) = (0xfc00, 0xffff);

/// Where answers of name servers come from.
const DNS: u32 = 53;

/// `struct tcmsg`.
const BODY: usize = 20;

fn body(index: u32, handle: u32, parent: u32, info: u32) -> [u8; BODY] {
    let mut body = [0; BODY];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&handle.to_ne_bytes());
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    body[16..].copy_from_slice(&info.to_ne_bytes());
    body
}

/// Sends all that comes in on `from` out on `to`.
pub(super) fn redirect(socket: &mut Socket, from: u32, to: u32) -> Result<(), Errno> {
    let flags = CREATE | EXCLUSIVE;
    let mut qdisc = Message::new(RTM_NEWQDISC, flags, &body(from, HANDLE, INGRESS, 0));
    qdisc.string(TCA_KIND, "ingress");
    socket.execute(qdisc)?;

    let all = Filter {
        priority: REDIRECT,
        protocol: ETH_P_ALL,
        keys: &[Key::ANY],
        fate: Fate::Redirect(to),
    };
    all.add(socket, from)
}

/// Lets through to the host what its resolver needs: answers of name servers, and
/// those of neighbours, which the guest gets as well.
pub(super) fn share(socket: &mut Socket, from: u32, tap: u32) -> Result<(), Errno> {
    let arp = Filter {
        priority: SHARE_ARP,
        protocol: ETH_P_ARP,
        keys: &[Key::ANY],
        fate: Fate::Mirror(tap),
    };
    arp.add(socket, from)?;
    let ports = DNS << 16 | u32::from(SHARED_PORTS.0);
    let to_host = |at| Key::new(at, 0xffff_0000 | u32::from(SHARED_PORTS.0), ports);
    for transport in [IPPROTO_UDP, IPPROTO_TCP] {
        let ipv4 = Filter {
            priority: SHARE_IPV4,
            protocol: ETH_P_IP,
            keys: &[
                // A header without options, and no fragment.
                Key::new(0, 0x0f00_0000, 0x0500_0000),
                Key::new(4, 0x0000_3fff, 0),
                Key::new(8, 0x00ff_0000, transport << 16),
                to_host(20),
            ],
            fate: Fate::Pass,
        };
        ipv4.add(socket, from)?;
        let ipv6 = Filter {
            priority: SHARE_IPV6,
            protocol: ETH_P_IPV6,
            keys: &[Key::new(4, 0xff00, transport << 8), to_host(40)],
            fate: Fate::Pass,
        };
        ipv6.add(socket, from)?;
    }
    let neighbours = Filter {
        priority: SHARE_IPV6,
        protocol: ETH_P_IPV6,
        keys: &[
            Key::new(4, 0xff00, IPPROTO_ICMPV6 << 8),
            Key::new(40, 0xff00_0000, NEIGHBOUR_ADVERTISEMENT << 24),
        ],
        fate: Fate::Mirror(tap),
    };
    neighbours.add(socket, from)
}

/// What becomes of a frame.
#[derive(Clone, Copy)]
enum Fate {
    /// It goes out on that link.
    Redirect(u32),
    /// A copy does.
    Mirror(u32),
    /// It is the host's.
    Pass,
}

/// 32 bits behind the link's header that must be so.
struct Key {
    at: u32,
    mask: u32,
    value: u32,
}

impl Key {
    const ANY: Self = Self::new(0, 0, 0);

    const fn new(at: u32, mask: u32, value: u32) -> Self {
        Self { at, mask, value }
    }
}

struct Filter<'a> {
    priority: u16,
    protocol: u16,
    keys: &'a [Key],
    fate: Fate,
}

impl Filter<'_> {
    fn add(&self, socket: &mut Socket, index: u32) -> Result<(), Errno> {
        let info = u32::from(self.priority) << 16 | u32::from(self.protocol.to_be());
        let body = body(index, 0, HANDLE, info);
        let mut filter = Message::new(RTM_NEWTFILTER, CREATE | EXCLUSIVE, &body);
        filter.string(TCA_KIND, "u32");
        filter.nest(TCA_OPTIONS | NEST, |options| {
            options.attribute(TCA_U32_SEL, &self.selector());
            let mut act = |fields| {
                options.nest(TCA_U32_ACT | NEST, |actions| {
                    actions.nest(1 | NEST, |action| mirred(action, fields));
                });
            };
            match self.fate {
                Fate::Redirect(to) => act([0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to]),
                Fate::Mirror(to) => act([0, 0, TC_ACT_PIPE, 0, 0, TCA_EGRESS_MIRROR, to]),
                // Any class: that there is one ends the search.
                Fate::Pass => options.number(TCA_U32_CLASSID, 0x0001_0001),
            }
        });
        socket.execute(filter)
    }

    /// `struct tc_u32_sel`.
    fn selector(&self) -> Vec<u8> {
        let mut selector = vec![0; 16];
        selector[0] = TC_U32_TERMINAL;
        selector[2] = u8::try_from(self.keys.len()).unwrap_or(u8::MAX);
        for key in self.keys {
            selector.extend_from_slice(&key.mask.to_be_bytes());
            selector.extend_from_slice(&key.value.to_be_bytes());
            selector.extend_from_slice(&key.at.to_ne_bytes());
            selector.extend_from_slice(&[0; 4]);
        }
        selector
    }
}

/// `struct tc_mirred`: index, capabilities, action, two counters, kind and device.
fn mirred(action: &mut Message, fields: [u32; 7]) {
    action.string(TCA_ACT_KIND, "mirred");
    action.nest(TCA_ACT_OPTIONS | NEST, |options| {
        let parameters: Vec<u8> = fields.iter().flat_map(|f| f.to_ne_bytes()).collect();
        options.attribute(TCA_MIRRED_PARMS, &parameters);
    });
}

/// What comes in on a link is let through again.
pub(super) fn release(socket: &mut Socket, index: u32) -> Result<(), Errno> {
    socket.execute(Message::new(
        RTM_DELQDISC,
        0,
        &body(index, HANDLE, INGRESS, 0),
    ))
}

/// What there is on a link already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ingress {
    Free,
    /// A place for filters, without any: of a sandbox that was killed before it had
    /// some, or of somebody else who has none yet.
    Empty,
    /// A sandbox's: one that lives, or one that was killed.
    Ours,
    /// Somebody else's filters, which would be lost.
    Taken,
}

pub(super) fn ingress(socket: &mut Socket, index: u32) -> Result<Ingress, Errno> {
    let qdiscs = socket.dump(RTM_GETQDISC, &[0; BODY])?;
    let mut found = false;
    for reply in qdiscs.iter().filter(|reply| reply.kind == RTM_NEWQDISC) {
        let (body, attributes) = reply.split::<BODY>()?;
        if read(body, 4) == index && read(body, 12) == INGRESS {
            if kind(&attributes) != "ingress" {
                return Ok(Ingress::Taken);
            }
            found = true;
        }
    }
    if !found {
        return Ok(Ingress::Free);
    }
    let mut ingress = Ingress::Empty;
    let filters = socket.dump(RTM_GETTFILTER, &body(index, 0, HANDLE, 0))?;
    for reply in filters.iter().filter(|reply| reply.kind == RTM_NEWTFILTER) {
        let (body, _) = reply.split::<BODY>()?;
        let priority = u16::try_from(read(body, 16) >> 16).unwrap_or_default();
        if !PRIORITIES.contains(&priority) {
            return Ok(Ingress::Taken);
        }
        ingress = Ingress::Ours;
    }
    Ok(ingress)
}

fn kind(attributes: &Attributes<'_>) -> String {
    attributes.find(TCA_KIND).map(text).unwrap_or_default()
}

fn read(body: &[u8; BODY], at: usize) -> u32 {
    let field = body[at..].first_chunk().copied().unwrap_or_default();
    u32::from_ne_bytes(field)
}
