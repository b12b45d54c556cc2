//! vsock ports of both sides.

/// CID of the host in every guest (`VMADDR_CID_HOST`, `linux/vm_sockets.h`).
pub const HOST_CID: u32 = 2;

/// Guest: the agent's ttrpc service.
pub const AGENT: u32 = 1024;

/// Guest: one connection for each stdio descriptor of a process. The agent
/// knows a connection by its source port, which requests name.
pub const STREAM: u32 = 1025;

/// Host: dialled by the agent once it listens; carries one [`Hello`](crate::Hello)
/// line and then stays open: its end is the end of the agent.
pub const READY: u32 = 1024;

/// Host: the agent's log, one JSON record a line.
pub const LOG: u32 = 1025;

/// Host: name service. Each connection starts with a byte that says how its
/// queries have come to the agent, [`DNS_DATAGRAM`] or [`DNS_STREAM`], and goes on
/// with messages as DNS has them over TCP: two bytes of length, then the message
/// (RFC 1035, 4.2.2). The first kind carries one query and one answer.
pub const DNS: u32 = 1026;

pub const DNS_DATAGRAM: u8 = b'u';
pub const DNS_STREAM: u8 = b't';
