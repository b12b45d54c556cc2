//! Policy routing: which tables the rules lead to.

use rustix::io::Errno;

use crate::{AF_UNSPEC, Socket};

const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;

const FRA_TABLE: u16 = 15;

/// `struct fib_rule_hdr`; its fifth field is the table, if that is below 256.
const BODY: usize = 12;

/// The tables of all rules of all families.
pub fn ruled_tables(socket: &mut Socket) -> Result<Vec<u32>, Errno> {
    let replies = match socket.dump(RTM_GETRULE, &[AF_UNSPEC; BODY]) {
        // A kernel without policy routing.
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        replies => replies?,
    };
    let rules = replies.iter().filter(|reply| reply.kind == RTM_NEWRULE);
    rules
        .map(|reply| {
            let (body, attributes) = reply.split::<BODY>()?;
            Ok(attributes.number(FRA_TABLE).unwrap_or(body[4].into()))
        })
        .collect()
}
