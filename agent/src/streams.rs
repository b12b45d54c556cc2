//! Stream connections between their arrival and the request that names them.
//!
//! The host connects first and then sends the request, so a connection nearly always
//! waits here; but the two travel on different sockets and the request may win.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::failure::{Code, Failure, Result};

/// Connections that no request has named. A request names three at most, and the host
/// has few requests under way.
const PARKED_MAX: usize = 256;

/// For a connection without a request, and for a request without its connection.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
enum Slot {
    Parked(OwnedFd, Instant),
    Wanted(oneshot::Sender<OwnedFd>),
}

#[derive(Debug, Default)]
pub struct Streams {
    slots: Mutex<HashMap<u32, Slot>>,
}

impl Streams {
    /// Takes a connection in. One too many, or one whose port is taken, is closed.
    pub fn park(&self, port: u32, connection: OwnedFd) {
        let now = Instant::now();
        let mut slots = self.slots.lock();
        slots.retain(|_, slot| match slot {
            Slot::Parked(_, since) => now.duration_since(*since) < PATIENCE,
            Slot::Wanted(request) => !request.is_closed(),
        });
        match slots.remove(&port) {
            // The request may have given up in this very moment: the connection is closed.
            Some(Slot::Wanted(request)) => drop(request.send(connection)),
            Some(parked) => {
                slots.insert(port, parked);
            }
            None if slots.len() < PARKED_MAX => {
                slots.insert(port, Slot::Parked(connection, now));
            }
            None => tracing::warn!(port, "too many streams wait for their request"),
        }
    }

    /// The connection from that port of the host; none for port 0.
    pub(crate) async fn take(&self, port: u32) -> Result<Option<OwnedFd>> {
        if port == 0 {
            return Ok(None);
        }
        let Some(arrival) = self.find(port) else {
            return Err(already_wanted(port));
        };
        match arrival {
            Arrival::Here(connection) => Ok(Some(connection)),
            Arrival::Awaited(arrival) => match timeout(PATIENCE, arrival).await {
                Ok(Ok(connection)) => Ok(Some(connection)),
                Ok(Err(_)) | Err(_) => Err(Failure::new(
                    Code::FailedPrecondition,
                    format!("no stream connection from port {port} has come"),
                )),
            },
        }
    }

    fn find(&self, port: u32) -> Option<Arrival> {
        let mut slots = self.slots.lock();
        match slots.remove(&port) {
            Some(Slot::Parked(connection, _)) => Some(Arrival::Here(connection)),
            Some(Slot::Wanted(request)) if !request.is_closed() => {
                slots.insert(port, Slot::Wanted(request));
                None
            }
            _ => {
                let (sender, receiver) = oneshot::channel();
                slots.insert(port, Slot::Wanted(sender));
                Some(Arrival::Awaited(receiver))
            }
        }
    }
}

enum Arrival {
    Here(OwnedFd),
    Awaited(oneshot::Receiver<OwnedFd>),
}

fn already_wanted(port: u32) -> Failure {
    Failure::invalid(format!("two requests name the stream from port {port}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn connection() -> OwnedFd {
        UnixStream::pair().expect("socket pair").0.into()
    }

    #[tokio::test]
    async fn connection_and_request_meet_in_either_order() {
        let streams = Streams::default();
        streams.park(7, connection());
        assert!(streams.take(7).await.expect("parked").is_some());
        let (taken, ()) = tokio::join!(streams.take(8), async { streams.park(8, connection()) });
        assert!(taken.expect("arrived later").is_some());
    }

    #[tokio::test]
    async fn port_zero_is_no_stream() {
        assert!(Streams::default().take(0).await.expect("allowed").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn missing_connection_is_an_error_after_a_while() {
        let failure = Streams::default().take(9).await.expect_err("never comes");
        assert!(failure.message.contains("port 9"), "{failure}");
    }

    #[tokio::test]
    async fn unclaimed_connections_are_bounded() {
        let streams = Streams::default();
        for port in 1..=u32::try_from(PARKED_MAX).expect("small") + 1 {
            streams.park(port, connection());
        }
        assert_eq!(streams.slots.lock().len(), PARKED_MAX);
    }
}
