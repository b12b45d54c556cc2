//! The sandbox and its fronts.

pub mod agent;
pub mod cli;
pub mod config;
pub mod container;
pub mod hooks;
pub mod image;
pub mod network;
pub mod oci;
pub mod process;
pub mod sandbox;
pub mod shim;
mod signal_mask;
pub mod stdio;
pub mod storage;
pub mod task_client;
pub mod vm;
mod watched;
