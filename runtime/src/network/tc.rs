//! Traffic control: everything that comes in on one link goes out on another
//! (tc-mirred(8)), so that a tap and an engine's interface are one wire, whatever made
//! the interface.
//!
//! The filter is u32 matching anything: older and leaner kernels have no matchall.

use lazaret_netlink::{Attributes, CREATE, EXCLUSIVE, Message, NEST, Socket, text};
use rustix::io::Errno;

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
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
const TC_U32_TERMINAL: u8 = 1;
const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;

/// By which our filters are known: "lz".
const PRIORITY: u16 = 0x6c7a;

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

    let info = u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be());
    let mut filter = Message::new(RTM_NEWTFILTER, flags, &body(from, 0, HANDLE, info));
    filter.string(TCA_KIND, "u32");
    filter.nest(TCA_OPTIONS | NEST, |options| {
        options.attribute(TCA_U32_SEL, &match_all());
        options.nest(TCA_U32_ACT | NEST, |actions| {
            actions.nest(1 | NEST, |action| mirred(action, to));
        });
    });
    socket.execute(filter)
}

/// `struct tc_u32_sel` with one key, which masks everything away.
fn match_all() -> [u8; 32] {
    let mut selector = [0; 32];
    selector[0] = TC_U32_TERMINAL;
    selector[2] = 1;
    selector
}

/// `struct tc_mirred`: index, capabilities, action, two counters, kind and device.
fn mirred(action: &mut Message, to: u32) {
    action.string(TCA_ACT_KIND, "mirred");
    action.nest(TCA_ACT_OPTIONS | NEST, |options| {
        let fields = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to];
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
    let filters = socket.dump(RTM_GETTFILTER, &body(index, 0, HANDLE, 0))?;
    for reply in filters.iter().filter(|reply| reply.kind == RTM_NEWTFILTER) {
        let (body, _) = reply.split::<BODY>()?;
        if read(body, 16) >> 16 != u32::from(PRIORITY) {
            return Ok(Ingress::Taken);
        }
    }
    Ok(Ingress::Ours)
}

fn kind(attributes: &Attributes<'_>) -> String {
    attributes.find(TCA_KIND).map(text).unwrap_or_default()
}

fn read(body: &[u8; BODY], at: usize) -> u32 {
    let field = body[at..].first_chunk().copied().unwrap_or_default();
    u32::from_ne_bytes(field)
}
