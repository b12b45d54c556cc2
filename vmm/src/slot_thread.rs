//! A thread for the slots of one kind: an event loop under a filter of its own.

use std::io;
use std::sync::mpsc::channel;

use crate::devices::virtio::slot::{SlotEvent, SlotEvents};
use crate::event_loop::{EventLoop, EventLoopHandle};

/// Handlers keep what is large on the heap.
const STACK_SIZE: usize = 256 << 10;

/// Returns when `confine` has been called on the new thread.
pub fn start(
    name: &str,
    confine: fn() -> io::Result<()>,
    events: SlotEvents,
) -> io::Result<EventLoopHandle> {
    let (mut event_loop, handle) = EventLoop::new()?;
    let (started, confined) = channel();
    std::thread::Builder::new()
        .name(name.into())
        .stack_size(STACK_SIZE)
        .spawn(move || {
            let result = confine();
            let failed = result.is_err();
            // Whoever started this thread waits for the message.
            let _ = started.send(result);
            if failed {
                return;
            }
            if let Err(error) = event_loop.run() {
                events.send(SlotEvent::Failed(error.to_string()));
            }
        })?;
    confined
        .recv()
        .map_err(|_| io::Error::other("the thread ended as it started"))??;
    Ok(handle)
}
