//! The sandbox and its fronts.

pub mod config;
pub mod image;
pub mod storage;
