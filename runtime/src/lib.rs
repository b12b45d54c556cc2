//! The sandbox and its fronts.

pub mod config;
