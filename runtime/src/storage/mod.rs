//! What `lazaret` keeps on disk for containers: their records, their root
//! file systems, their volumes.

pub mod atomic;
pub mod container;
pub mod containers;
pub mod names;
pub mod rootfs;
pub mod volume;
