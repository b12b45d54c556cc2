//! The harness of the end-to-end tests: drives the installed binaries as a user would, on this
//! machine where it has usable KVM, in the lab otherwise.
//!
//! A test begins with `let lazaret = start!("name")`, which takes its turn, notes what there is on
//! the machine, and at its end fails the test if anything is left behind.

mod background;
mod command;
mod engine;
mod lazaret;
mod leftovers;
mod machine;
mod oci;
mod outcome;
pub mod probe;
mod terminal;
mod validation;

pub use background::Background;
pub use command::Cmd;
pub use engine::{Engine, Kind, setup};
pub use lazaret::Lazaret;
pub use machine::Machine;
pub use oci::{Bundle, Oci};
pub use outcome::Outcome;
pub use terminal::Terminal;
pub use validation::{Suite, Verdict};

/// Begins a test, or ends it here, saying so, where neither usable KVM nor a lab is there.
#[macro_export]
macro_rules! start {
    ($name:literal) => {
        match $crate::Lazaret::start($name) {
            Some(lazaret) => lazaret,
            None => return,
        }
    };
}
