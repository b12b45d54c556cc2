//! An agent that is none: what PID 1 of a guest may do to its host. The initramfs says what.

use std::fs;
use std::io::{self, Write};

use anyhow::bail;

/// The file of the initramfs that says how to behave.
pub(crate) const BEHAVIOUR: &str = "/behaviour";

/// Lines written at once by one that floods.
const FLOOD: usize = 64;

pub(crate) fn run() -> anyhow::Result<()> {
    match fs::read_to_string(BEHAVIOUR)?.trim() {
        "die" => bail!("dying, as told"),
        "hang" => loop {
            std::thread::park();
        },
        "flood" => {
            let lines = "the same line again and again\n".repeat(FLOOD);
            let mut console = io::stdout().lock();
            loop {
                console.write_all(lines.as_bytes())?;
            }
        }
        other => bail!("cannot behave like {other:?}"),
    }
}
