//! The whole device, from the driver's queues to the host's sockets.

mod close;
mod connect;
mod credit;
mod endless;
mod guest;
mod hostile;
mod linger;
mod throughput;
