//! What happens to a sandbox's containers, for whoever wants to know: the seam
//! at which events are published to an engine.

use super::id::{ContainerId, ExecId};
use crate::process::Exit;

/// Named as containerd's task events are.
#[derive(Clone, Debug)]
pub enum Event {
    Create {
        container: ContainerId,
    },
    Start {
        container: ContainerId,
    },
    ExecAdded {
        container: ContainerId,
        exec: ExecId,
    },
    ExecStarted {
        container: ContainerId,
        exec: ExecId,
    },
    Exit {
        container: ContainerId,
        exec: Option<ExecId>,
        exit: Exit,
    },
    Oom {
        container: ContainerId,
    },
    Paused {
        container: ContainerId,
    },
    Resumed {
        container: ContainerId,
    },
    Delete {
        container: ContainerId,
        exec: Option<ExecId>,
    },
}

/// Takes events in the order in which they happen. Must not block.
pub type EventSink = Box<dyn Fn(Event) + Send + Sync>;
