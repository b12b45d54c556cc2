//! lazaret's virtual machine monitor, as a library.

pub mod config;
pub mod control;
pub mod devices;
pub mod event_loop;
