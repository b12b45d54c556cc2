//! What signals to the sandbox process mean.
//!
//! In namespace `oci` its process id stands for the container's, and what can be
//! caught is the container's: whoever sends a signal to that id means the
//! container's init, and gets what runc's init would do. A kernel that reports a
//! terminal's change of size or its end sends a signal too. Elsewhere only the end
//! of the sandbox can be asked for.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::sandbox::config::OCI_NAMESPACE;
use crate::sandbox::{Close, Sandbox};

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGTERM: i32 = 15;
const SIGWINCH: i32 = 28;

/// Of the signals that can be caught, those that say something of this process:
/// faults and aborts, SIGPIPE and SIGCHLD.
const OWN: [i32; 9] = [4, 5, 6, 7, 8, 11, 13, 17, 31];

const SIGNAL_MAX: i32 = 64;

/// SIGKILL and SIGSTOP, and two that the C library keeps for itself.
const NEVER_CAUGHT: [i32; 4] = [9, 19, 32, 33];

/// Signals that come in, in no order but their number's.
pub(super) struct Signals {
    streams: Vec<(i32, Signal)>,
    container: bool,
}

impl Signals {
    /// Must be called before the first signal may come.
    pub(super) fn catch(namespace: &str) -> io::Result<Self> {
        let container = namespace == OCI_NAMESPACE;
        let mut streams = Vec::new();
        for number in 1..=SIGNAL_MAX {
            let caught = if container {
                !OWN.contains(&number) && !NEVER_CAUGHT.contains(&number)
            } else {
                [SIGHUP, SIGINT, SIGTERM].contains(&number)
            };
            if caught {
                streams.push((number, signal(SignalKind::from_raw(number))?));
            }
        }
        Ok(Self { streams, container })
    }

    async fn next(&mut self) -> i32 {
        poll_fn(|context| {
            for (number, stream) in &mut self.streams {
                if stream.poll_recv(context).is_ready() {
                    return Poll::Ready(*number);
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Acts on signals as long as the sandbox lives.
    pub(super) async fn heed(mut self, sandbox: Arc<Sandbox>) {
        loop {
            let number = self.next().await;
            if self.container {
                self.pass_on(number, &sandbox).await;
            } else if number != SIGHUP {
                // A terminal that goes away is no reason to end.
                tracing::info!("told to end by signal {number}");
                sandbox.close(Close::Quit);
            }
        }
    }

    async fn pass_on(&self, number: i32, sandbox: &Arc<Sandbox>) {
        if number == SIGWINCH && sandbox.follow_terminal().await {
            return;
        }
        let passed_on = sandbox.signal_container(number.unsigned_abs()).await;
        if !passed_on && [SIGHUP, SIGINT, SIGQUIT, SIGTERM].contains(&number) {
            tracing::info!("told to end by signal {number}, without a container");
            sandbox.close(Close::Quit);
        }
    }
}
